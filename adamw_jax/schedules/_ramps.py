"""Make schedules from ramps that follow each other.

q in [0, 1] is the position in a ramp from start to end::

    constant     start
    linear       start (1 - q) + end q
    cosine       start cos^2(pi q / 2) + end sin^2(pi q / 2)
    exponential  start (end / start)^q
    polynomial   end + (start - end) (1 - q)^power
    1-sqrt       end + (start - end) (1 - sqrt(q))

The cosine is end + (start - end) (1 + cos(pi q)) / 2, written without cancellation. With it, a
learning rate that falls to zero over 100,000 steps would end without a correct digit in float32.
So would 1 - sqrt(q), which is (1 - q) / (1 + sqrt(q)).

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

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, one_of

SHAPES = ("constant", "linear", "cosine", "exponential", "polynomial", "1-sqrt")


@dataclasses.dataclass(frozen=True)
class Segment:
    """One ramp of a schedule.

    Attributes:
      begin: step at which it starts, a real number.
      length: number of steps, a real number > 0.
      start: value at its beginning.
      end: value at its end, and after it.
      shape: one of ``SHAPES``.
      power: exponent of the shape ``"polynomial"``, > 0.
    """

    begin: float
    length: float
    start: float
    end: float
    shape: str = "linear"
    power: float = 1.0

    def __post_init__(self) -> None:
        """Check the attributes."""
        one_of("shape", self.shape, SHAPES)
        number("the length of a ramp, in steps,", self.length, above=0)
        number("power", self.power, above=0)
        if self.shape == "exponential":
            number("the start of an exponential ramp", self.start, above=0)
            number("the end of an exponential ramp", self.end, above=0)

    def at(self, steps: jax.Array) -> jax.Array:
        """Return the value at a step, an integer or a float of the default dtype."""
        # Subtract whole steps first, in integers if the count is one, then the fraction. So small
        # shares keep their digits in float32.
        begin, end = math.floor(self.begin), math.floor(self.begin + self.length)
        done = (steps - begin).astype(numerics.default_float()) - (self.begin - begin)
        left = (end - steps).astype(numerics.default_float()) + (self.begin + self.length - end)
        done = jnp.clip(done / self.length, 0.0, 1.0)
        left = jnp.clip(left / self.length, 0.0, 1.0)
        if self.shape == "constant":
            return jnp.full_like(done, self.start)
        if self.shape == "linear":
            return self.start * left + self.end * done
        if self.shape == "cosine":
            return cosine(self.start, self.end, done, left)
        if self.shape == "exponential":
            return self.start * jnp.exp(done * math.log(self.end / self.start))
        if self.shape == "1-sqrt":
            return self.start * left / (1.0 + jnp.sqrt(done)) + self.end * jnp.sqrt(done)
        return self.end + (self.start - self.end) * left**self.power


@dataclasses.dataclass(frozen=True)
class Piecewise:
    """A schedule of segments, each used until the next begins.

    Attributes:
      segments: the segments in order.
    """

    segments: tuple[Segment, ...]

    def __call__(self, count: Any) -> jax.Array:
        """Return the value after ``count`` updates, in the default float dtype."""
        steps = jnp.asarray(count)
        whole = jnp.issubdtype(steps.dtype, jnp.integer)
        steps = steps.astype(
            jax.dtypes.canonicalize_dtype(int) if whole else numerics.default_float()
        )
        value = self.segments[0].at(steps)
        for segment in self.segments[1:]:
            value = jnp.where(steps >= math.ceil(segment.begin), segment.at(steps), value)
        return value

    def ahead(self, steps: int) -> Piecewise:
        """Shift the schedule so that it is that many steps ahead."""
        moved = (dataclasses.replace(s, begin=s.begin - steps) for s in self.segments)
        return Piecewise(tuple(moved))


def cosine(start: float, end: float, done: jax.Array, left: jax.Array) -> jax.Array:
    """Evaluate half a cosine from start to end at ``done`` = q and ``left`` = 1 - q."""
    falling = jnp.sin((0.5 * math.pi) * left)
    rising = jnp.sin((0.5 * math.pi) * done)
    return start * (falling * falling) + end * (rising * rising)
