"""The values that a code of 8 or 4 bits stands for, as arithmetic: no table, no gather, no search.

The dynamic map (Dettmers et al., ICLR 2022, arXiv 2110.02861) covers D decades. Decade i = 0..D-1
ends at 10^(i-D+1) and holds 2^i equally spaced values (2^(i+1) where none is negative), the
midpoints of equal parts of its upper nine tenths; 0 and 1 are added. With n values in a decade, of
which the first has index n (n - 1 for the unsigned map), they are points of a line

    level(u) = 10^(i-D+1) (0.9 (u - n + 0.5) / n + 0.1)

whose slopes grow with i. So the map is the largest of D lines, cut at 0 and 1, which a vector unit
evaluates as it stands; the nearest level of a value is the inverse of the line of its decade,
rounded.

>>> import jax.numpy as jnp
>>> dynamic(8, signed=True).level(jnp.array([0.0, 1.0, 127.0, 128.0]))
Array([0.000000e+00, 5.500000e-07, 9.929687e-01, 1.000000e+00], dtype=float32)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
from jax import lax


class Segment(NamedTuple):
    """Levels from index ``first`` on lie on the line ``slope u + offset``."""

    first: int
    slope: float
    offset: float


@dataclasses.dataclass(frozen=True)
class Levels:
    """An increasing map from indices 0..top to [0, 1], the largest of some lines.

    Attributes:
      name: what a stored state calls it.
      segments: the lines, by increasing slope.
      top: the largest index; its level is 1.
    """

    name: str
    segments: tuple[Segment, ...]
    top: int

    def level(self, index: jax.Array) -> jax.Array:
        """The values of whole indices, given and returned in a float dtype."""
        lines = [
            lax.add(lax.mul(index, _full(s.slope, index)), _full(s.offset, index))
            for s in self.segments
        ]
        highest = functools.reduce(lax.max, lines)
        return lax.clamp(_full(0.0, index), highest, _full(1.0, index))

    def nearest(self, value: jax.Array) -> jax.Array:
        """Where values in [0, 1] stand among the levels: rounding it gives the nearest index."""
        position = None
        for s in self.segments:
            inverse = lax.mul(lax.sub(value, _full(s.offset, value)), _full(1 / s.slope, value))
            position = self._from(s.first, value, inverse, position)
        return self._from(self.top, value, _full(float(self.top), value), position)

    def _from(
        self, first: int, value: jax.Array, upper: jax.Array, lower: jax.Array | None
    ) -> jax.Array:
        """``upper`` where a value is nearer to level ``first`` than to the one below it."""
        if first == 0:
            return upper
        last = _full(float(first - 1), value)
        lower = last if lower is None else lax.min(lower, last)
        middle = (self.exact(first - 1) + self.exact(first)) / 2
        return lax.select(lax.gt(value, _full(middle, value)), upper, lower)

    def exact(self, index: int) -> float:
        """One level in double precision."""
        highest = max(s.slope * index + s.offset for s in self.segments)
        return 1.0 if index == self.top else max(highest, 0.0)


@functools.cache
def dynamic(bits: int, *, signed: bool) -> Levels:
    """The dynamic map of magnitudes: 0, then ``bits - 1`` decades, then 1.

    With a sign there are half as many levels: a code of 8 bits then has 127 below 1 on either side,
    and no -1.
    """
    decades = bits - 1
    segments = []
    for i in range(decades):
        number = 2 ** (i if signed else i + 1)
        first = number if signed else number - 1
        end = 10.0 ** (i - decades + 1)
        slope = 0.9 * end / number
        segments.append(Segment(first, slope, 0.1 * end + slope * (0.5 - first)))
    top = 2**decades if signed else 2**bits - 1
    return Levels(f"dynamic{bits}", tuple(segments), top)


@functools.cache
def linear_without_zero(bits: int) -> Levels:
    """Equally spaced levels k / 2^bits, k = 1..2^bits (Li et al., NeurIPS 2023, arXiv 2309.01507).

    Without a 0 no second moment becomes 0 under a first moment that is not.
    """
    step = 2.0**-bits
    return Levels(f"linear{bits}", (Segment(0, step, step),), 2**bits - 1)


def _full(value: float, like: jax.Array) -> jax.Array:
    return lax.full_like(like, value)
