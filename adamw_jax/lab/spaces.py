"""Declare search spaces of hyperparameters, and draw trials from them.

An axis of a space is a list of values, or a range. If every axis is a list, the trials are the
grid of all combinations. Otherwise they are a scrambled Sobol sequence (``scipy.stats.qmc``), which
covers several axes evenly with few points.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import qmc

Numbers = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of values, evenly covered in the value or in its logarithm.

    Attributes:
      low: smallest value.
      high: largest value.
      log: whether the logarithm is covered evenly; then ``low`` must be > 0.
    """

    low: float
    high: float
    log: bool = True

    def __post_init__(self) -> None:
        """Check the bounds."""
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(
                f"a range must have finite bounds low < high, got {self.low} and {self.high}."
            )
        if self.log and self.low <= 0:
            raise ValueError(
                f"a logarithmic range must begin above 0, got {self.low}; use uniform(...)."
            )

    def at(self, share: float) -> float:
        """Return the value at a share of the range between 0 and 1, with four digits."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + share * (self.high - self.low)
        return float(f"{value:.4g}")

    def beyond(self, above: bool) -> Range:
        """Return the range next to this one, of half its width."""
        a, b = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        half = (b - a) / 2
        ends = (b, b + half) if above else (a - half, a)
        low, high = (math.exp(e) for e in ends) if self.log else ends
        return Range(low, high, self.log)

    def __str__(self) -> str:
        """Return the range in words."""
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


Axis = Range | Sequence[float]
Space = Mapping[str, Axis]


def log_uniform(low: float, high: float) -> Range:
    """Return a range that is covered evenly in the logarithm.

    Args:
      low: smallest value, > 0.
      high: largest value.

    >>> log_uniform(1e-4, 1e-2).at(0.5)
    0.001
    """
    return Range(low, high)


def uniform(low: float, high: float) -> Range:
    """Return a range that is covered evenly.

    Args:
      low: smallest value.
      high: largest value.

    Example:
      >>> from adamw_jax.lab import uniform
      >>> space = {"b1": uniform(0.8, 0.95)}
    """
    return Range(low, high, log=False)


def checked(what: str, axis: object) -> Axis:
    """Return an axis of a space; a number is a list of one value."""
    if isinstance(axis, Range):
        return axis
    values = [axis] if isinstance(axis, int | float) else axis
    try:
        numbers = tuple(float(value) for value in values)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"{what} must be a number, a list of numbers, log_uniform(low, high) or "
            f"uniform(low, high), got {axis!r}."
        )
    return tuple(dict.fromkeys(numbers))


def trials(space: Space, count: int, seed: int) -> list[Numbers]:
    """Return the hyperparameters to try.

    Args:
      space: axes by name.
      count: number of trials if an axis is a range; a grid has as many as combinations.
      seed: seed of the Sobol sequence.

    >>> trials({"learning_rate": [0.1, 0.2], "b1": [0.9]}, 8, seed=0)
    [{'learning_rate': 0.1, 'b1': 0.9}, {'learning_rate': 0.2, 'b1': 0.9}]
    >>> len(trials({"learning_rate": log_uniform(1e-3, 1e-1)}, 6, seed=0))
    6
    """
    if not any(isinstance(axis, Range) for axis in space.values()):
        combined = itertools.product(*space.values())  # type: ignore[arg-type]
        return [dict(zip(space, values, strict=True)) for values in combined]
    power = max(count - 1, 0).bit_length()
    sequence = qmc.Sobol(len(space), rng=np.random.default_rng(seed)).random_base2(power)[:count]
    return [
        {
            name: _at(axis, float(share))
            for (name, axis), share in zip(space.items(), point, strict=True)
        }
        for point in sequence
    ]


def _at(axis: Axis, share: float) -> float:
    if isinstance(axis, Range):
        return axis.at(share)
    return axis[min(int(share * len(axis)), len(axis) - 1)]


def edges(tried: Sequence[Numbers], chosen: Numbers) -> dict[str, bool]:
    """Return the axes on which the chosen trial is at the edge, and whether at the upper one.

    An axis counts if at least four of its values were tried: of few, most are at an edge.

    >>> edges([{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}, {"lr": 0.4}], {"lr": 0.4})
    {'lr': True}
    """
    found = {}
    for name, value in chosen.items():
        values = {numbers[name] for numbers in tried if name in numbers}
        if len(values) > 3 and value in (min(values), max(values)):
            found[name] = value == max(values)
    return found


def extended(space: Space, at_edge: Mapping[str, bool]) -> tuple[Space, Space]:
    """Return the space beyond the edges at which the best trial lies, and both together.

    A range is continued by half its width. A list gets one value more, at the distance of the last
    two, as a ratio if all values are positive.
    """
    new: dict[str, Axis] = dict(space)
    whole: dict[str, Axis] = dict(space)
    for name, above in at_edge.items():
        axis = space[name]
        if isinstance(axis, Range):
            beyond = axis.beyond(above)
            low, high = min(axis.low, beyond.low), max(axis.high, beyond.high)
            new[name], whole[name] = beyond, Range(low, high, axis.log)
            continue
        values = sorted(axis)
        last, before = (values[-1], values[-2]) if above else (values[0], values[1])
        value = last * last / before if values[0] > 0 else 2 * last - before
        value = float(f"{value:.4g}")
        new[name], whole[name] = (value,), (*axis, value)
    return new, whole
