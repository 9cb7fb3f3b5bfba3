"""Compute means, spreads and paired intervals over seeds, and verdicts from them.

Two settings with the same seed have the same initial weights and order of examples. So intervals
are computed for the difference d per seed:

    mean(d) +- t(0.975, n - 1) sd(d) / sqrt(n)

A verdict is one of five words, see ``decide``. If several claims are judged together, ``judge``
corrects for their number by Holm's method (Scandinavian Journal of Statistics 6, 1979).

>>> print(paired([0.9, 0.8, 0.85, 0.9], [0.7, 0.7, 0.7, 0.7]))
+0.1625 [+0.0863, +0.2387]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95
ERROR = 0.05
POWER = 0.8
SIGNS = {
    "shown": "✓",
    "equivalent": "≈",
    "contradicted": "✗",
    "undecided": "?",
    "does not apply": "–",
}
WORDS = tuple(SIGNS)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator) of some values."""

    mean: float
    sd: float
    count: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean difference and its 95 % confidence interval from ``count`` pairs."""

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

    @property
    def narrow(self) -> tuple[float, float]:
        """The 90 % interval, which decides two one-sided tests at 5 % each."""
        share = float(stdtrit(self.count - 1, 1 - ERROR) / stdtrit(self.count - 1, 1 - ERROR / 2))
        return (
            self.mean - share * (self.mean - self.low),
            self.mean + share * (self.high - self.mean),
        )


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

    * ``"shown"``: the whole interval is above 0.
    * ``"contradicted"``: the whole interval is below 0.
    * ``"equivalent"``: neither, and two one-sided tests at 5 % put the difference within
      ``margin`` of 0 (Schuirmann 1987).
    * ``"undecided"``: none of these, so the seeds are too few for the scatter.
    * ``"does not apply"``: the difference is not finite, because runs diverged.
    """
    if not np.isfinite([difference.mean, difference.low, difference.high]).all():
        return "does not apply"
    if difference.low > 0:
        return "shown"
    if difference.high < 0:
        return "contradicted"
    low, high = difference.narrow
    return "equivalent" if -margin <= low and high <= margin else "undecided"


def rule(what: str, margin: str) -> str:
    """Return the rule of ``decide`` in words, for the report."""
    return (
        f"95 % paired interval of {what}: above 0, shown; below 0, contradicted; else equivalent "
        f"if two one-sided tests (5 % each) put it within {margin} of 0; else undecided."
    )


def as_good(difference: Interval, margin: float) -> str:
    """Return the verdict on "at most ``margin`` worse"."""
    if not np.isfinite([difference.mean, difference.low, difference.high]).all():
        return "does not apply"
    if difference.low >= -margin:
        return "shown"
    return "contradicted" if difference.high < -margin else "undecided"


def rule_as_good(what: str, margin: float) -> str:
    """Return the rule of ``as_good`` in words; the margin is a share, printed in points."""
    return (
        f"95 % paired interval of {what}: above -{100 * margin:g} point, shown; below it, "
        "contradicted; else undecided."
    )


@dataclasses.dataclass(frozen=True)
class Judged:
    """Verdicts on several differences, judged together; every array has one entry per difference.

    Attributes:
      mean: mean differences.
      low: lower ends of the intervals at the level that Holm's method tests each difference at.
        With one difference, this is the 95 % interval.
      high: upper ends.
      p_difference: p-values of "the difference is 0", corrected by Holm.
      p_equivalence: p-values of "the difference is beyond the margin", corrected by Holm.
      detectable: differences that these seeds would have shown with a power of 80 %.
      words: the verdicts.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_difference: np.ndarray
    p_equivalence: np.ndarray
    detectable: np.ndarray
    words: np.ndarray


def judge(differences: np.ndarray, margin: float | np.ndarray) -> Judged:
    """Judge "each difference is positive" for several differences together.

    The words are those of ``decide``, with p-values that are corrected for the number of
    differences. So with a probability of at most 5 % is any of them "shown" or "contradicted"
    where the true difference is 0, and any "equivalent" where it is beyond the margin.

    Args:
      differences: shape (..., comparisons, seeds).
      margin: largest difference that does not matter, in the same unit; a number or one per
        comparison.
    """
    seeds = differences.shape[-1]
    if seeds < 2:
        raise ValueError(f"a verdict needs at least 2 seeds, got {seeds}.")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = differences.mean(-1)
        error = differences.std(-1, ddof=1) / np.sqrt(seeds)
        known = np.isfinite(mean) & np.isfinite(error)
        apart = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
        room = margin - np.abs(mean)
        inside = np.where(error > 0, room / error, np.where(room >= 0, np.inf, -np.inf))
        p_difference = holm(np.where(known, 2 * stdtr(seeds - 1, -apart), 1.0))
        p_equivalence = holm(np.where(known, stdtr(seeds - 1, -inside), 1.0))
    places = np.argsort(np.argsort(-np.where(known, apart, -1.0), axis=-1), axis=-1)
    half = stdtrit(seeds - 1, 1 - ERROR / 2 / (differences.shape[-2] - places)) * error
    words = np.select(
        [~known, (p_difference < ERROR) & (mean > 0), p_difference < ERROR, p_equivalence < ERROR],
        ["does not apply", "shown", "contradicted", "equivalent"],
        "undecided",
    )
    seen = half + stdtrit(seeds - 1, POWER) * error
    return Judged(mean, mean - half, mean + half, p_difference, p_equivalence, seen, words)


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected for their number along the last axis.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, axis=-1)
    factors = p.shape[-1] - np.arange(p.shape[-1])
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * factors, axis=-1)
    out = np.empty_like(stepped)
    np.put_along_axis(out, order, np.minimum(stepped, 1.0), -1)
    return out
