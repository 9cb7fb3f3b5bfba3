"""Means, spreads and paired intervals over seeds, and the rule that turns one into a verdict.

Two settings that share a seed share the initial weights and the order of the examples, so what
counts is the difference seed by seed:

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
        """``mean [low, high]`` with signs."""
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def scaled(self, factor: float) -> Interval:
        """The same in another unit."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, low, high, self.count)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation; with one value, the deviation is NaN.

    Raises:
      ValueError: there are no values.
    """
    array = np.asarray(values, np.float64)
    if array.size == 0:
        raise ValueError("spread of no values; give at least one.")
    with np.errstate(invalid="ignore"):  # a diverged run may be infinite
        sd = float(array.std(ddof=1)) if array.size > 1 else float("nan")
    return Spread(float(array.mean()), sd, array.size)


def paired(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of ``a - b`` with its t interval; the values belong together one by one.

    Args:
      a: one value per seed.
      b: one value per seed, in the same order.
      confidence: of the interval, in (0, 1).

    Raises:
      ValueError: the lengths differ, or there are fewer than two seeds.
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
    """The verdict on "the difference is positive".

    Returns:
      ``"shown"`` when the whole interval lies above zero; otherwise ``"tie"`` when the mean is
      within ``margin`` of zero; otherwise ``"not shown"``: the difference is the other way
      round, or too noisy to tell.
    """
    if difference.low > 0:
        return "shown"
    if abs(difference.mean) <= margin:
        return "tie"
    return "not shown"


def rule(what: str, margin: str) -> str:
    """The rule of ``decide`` in words, for print next to a verdict."""
    return (
        f"95 % paired interval of {what}: above 0, shown; else mean within {margin} of 0, tie; "
        "else not shown."
    )


def as_good(difference: Interval, margin: float) -> str:
    """The verdict on "no worse than by ``margin``"."""
    if difference.low >= -margin:
        return "shown"
    return "tie" if difference.mean >= -margin else "not shown"


def rule_as_good(what: str, margin: float) -> str:
    """The rule of ``as_good`` in words; the margin is a share, told in points."""
    return (
        f"95 % paired interval of {what}: above -{100 * margin:g} point, shown; else mean above "
        "that, tie; else not shown."
    )
