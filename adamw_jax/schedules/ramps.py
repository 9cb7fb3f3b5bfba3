"""Ramps between two values, and schedules that are ramps one after the other.

With q in [0, 1] the share of a ramp that is done::

    constant     start
    linear       start + q (end - start)
    cosine       end + (start - end) (1 + cos(pi q)) / 2
    exponential  start (end / start)^q
    polynomial   end + (start - end) (1 - q)^power

>>> ramp = Piecewise((Segment(0, 10, 0.0, 1.0), Segment(10, 10, 1.0, 0.0, "cosine")))
>>> [round(float(ramp(count)), 3) for count in (0, 5, 10, 15, 20, 99)]
[0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

SHAPES = ("constant", "linear", "cosine", "exponential", "polynomial")


@dataclasses.dataclass(frozen=True)
class Segment:
    """One ramp on the axis of steps.

    Attributes:
      begin: step at which it starts, a real number.
      length: steps it takes, a real number > 0.
      start: value at its begin.
      end: value at its end, which is also the value ever after.
      shape: one of ``SHAPES``.
      power: exponent of the shape ``"polynomial"``.
    """

    begin: float
    length: float
    start: float
    end: float
    shape: str = "linear"
    power: float = 1.0

    def __post_init__(self) -> None:
        """Checks what can go wrong."""
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {SHAPES}, got {self.shape!r}.")
        if not self.length > 0:
            raise ValueError(f"a ramp must take more than 0 steps, got {self.length}.")
        if self.shape == "exponential" and not (self.start > 0 and self.end > 0):
            raise ValueError(
                "an exponential ramp needs a start and an end > 0, got "
                f"{self.start} and {self.end}."
            )

    def at(self, count: jax.Array) -> jax.Array:
        """The value at a step, given as a float."""
        done = jnp.clip((count - self.begin) / self.length, 0.0, 1.0)
        if self.shape == "constant":
            return jnp.full_like(done, self.start)
        if self.shape == "linear":
            return self.start + done * (self.end - self.start)
        if self.shape == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1.0 + jnp.cos(math.pi * done))
        if self.shape == "exponential":
            return self.start * jnp.exp(done * math.log(self.end / self.start))
        return self.end + (self.start - self.end) * (1.0 - done) ** self.power


@dataclasses.dataclass(frozen=True)
class Piecewise:
    """A schedule of segments: from its begin on, a segment holds until the next begins.

    Attributes:
      segments: in the order of their begins.
      lead: steps by which the value runs ahead of the count.
    """

    segments: tuple[Segment, ...]
    lead: int = 0

    def __call__(self, count: Any) -> jax.Array:
        """The value at ``count`` updates, a scalar of the default float dtype."""
        steps = jnp.asarray(count, jax.dtypes.canonicalize_dtype(float)) + self.lead
        value = self.segments[0].at(steps)
        for segment in self.segments[1:]:
            value = jnp.where(steps >= segment.begin, segment.at(steps), value)
        return value


def positive_steps(name: str, steps: Any) -> int:
    """``steps`` as an int, or the error that says what it must be."""
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(f"{name} must be a whole number of steps >= 1, got {steps!r}.")
    return int(steps)
