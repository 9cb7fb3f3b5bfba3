"""Compute means, spreads and paired intervals over seeds, and verdicts from them.

Two settings with the same seed have the same initial weights and order of examples. So intervals
are computed for the difference d per seed:

    mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n)

>>> print(paired([0.9, 0.8, 0.85, 0.9], [0.7, 0.7, 0.7, 0.7]))
+0.1625 [+0.0863, +0.2387]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
SIGNS = {"shown": "✓", "tie": "≈", "not shown": "✗"}
WORDS = tuple(SIGNS)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator) of some values."""

    mean: float
    sd: float
    count: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean difference and its confidence interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Return ``mean [low, high]`` with signs."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, low, high, self.count)


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation; with one value the deviation is NaN."""
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("values must not be empty: give at least one.")
    with np.errstate(invalid="ignore"):  # a diverged run may be infinite
        sd = float(array.std(ddof=1)) if array.size > 1 else float("nan")
    return Spread(float(array.mean()), sd, array.size)


def paired(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``a - b`` with its t interval.

    Args:
      a: one value per seed.
      b: one value per seed, in the same order.
      confidence: confidence of the interval, in (0, 1).
    """
    if len(a) != len(b):
        raise ValueError(f"paired values must come in pairs, got {len(a)} and {len(b)}.")
    if len(a) < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got {len(a)}.")
    with np.errstate(invalid="ignore"):
        difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
        mean = float(difference.mean())
        error = float(difference.std(ddof=1)) / float(np.sqrt(len(difference)))
    half = float(stdtrit(len(difference) - 1, 0.5 + confidence / 2)) * error
    return Interval(mean, mean - half, mean + half, len(difference))


def decide(difference: Interval, margin: float) -> str:
    """Return the verdict on "the difference is positive".

    It is ``"shown"`` if the whole interval is above zero, else ``"tie"`` if the mean is within
    ``margin`` of zero, else ``"not shown"``: the difference is negative or too noisy.
    """
    if difference.low > 0:
        return "shown"
    if abs(difference.mean) <= margin:
        return "tie"
    return "not shown"


def rule(what: str, margin: str) -> str:
    """Return the rule of ``decide`` in words, for the report."""
    return (
        f"95 % paired interval of {what}: above 0, shown; else mean within {margin} of 0, tie; "
        "else not shown."
    )


def as_good(difference: Interval, margin: float) -> str:
    """Return the verdict on "at most ``margin`` worse"."""
    if difference.low >= -margin:
        return "shown"
    return "tie" if difference.mean >= -margin else "not shown"


def rule_as_good(what: str, margin: float) -> str:
    """Return the rule of ``as_good`` in words; the margin is a share, printed in points."""
    return (
        f"95 % paired interval of {what}: above -{100 * margin:g} point, shown; else mean above "
        "that, tie; else not shown."
    )
