"""Compute the values of 8-bit and 4-bit codes by arithmetic, without table, gather or search.

The dynamic map (Dettmers et al., ICLR 2022, arXiv 2110.02861) covers D decades. Decade i = 0..D-1
ends at 10^(i-D+1). Its upper nine tenths are divided into 2^i equal parts (2^(i+1) if values are
never negative), and the levels are their midpoints; 0 and 1 are added. Let a decade have n levels,
the first with index f. Then its levels, as a function of the index u, are points of a line

    level(u) = 10^(i-D+1) (0.1 + 0.9 (u - f + 1/2) / n)
             = 10^(i-D+1) / (20 n) (18 u + 9 + 2 n - 18 f)

The slopes grow with i. In the second form all factors but the first are whole numbers. So the map
is the maximum of D lines, cut at 0 and 1, which needs only vector operations. The midpoints between
levels of a decade are the ends of its parts. So the nearest level follows by counting parts from
the lower end e of the decade: f - 1 + ceil((x - e) / (0.9 10^(i-D+1) / n)).

>>> import jax.numpy as jnp
>>> dynamic(8, signed=True).level(jnp.array([0.0, 64.0, 127.0, 128.0])).round(4)
Array([0.   , 0.107, 0.993, 1.   ], dtype=float32)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
from jax import lax


class Segment(NamedTuple):
    """``count`` levels ``scale (stride u + offset)`` of the indices u from ``first`` on."""

    first: int
    count: int
    scale: float
    stride: int
    offset: int

    def at(self, index: float) -> float:
        """Return the level of an index; halves give the ends of the parts."""
        return self.scale * (self.stride * index + self.offset)


@dataclasses.dataclass(frozen=True)
class Levels:
    """An increasing map from indices 0..top to [0, 1], the maximum of some lines.

    Attributes:
      name: the name in checkpoints.
      segments: the lines, by increasing slope.
      top: the largest index; its level is 1.
    """

    name: str
    segments: tuple[Segment, ...]
    top: int

    def level(self, index: jax.Array) -> jax.Array:
        """Return the levels of whole indices, which are given in a float dtype."""

        def line(s: Segment) -> jax.Array:
            whole = lax.add(lax.mul(index, _full(s.stride, index)), _full(s.offset, index))
            return lax.mul(whole, _full(s.scale, index))

        highest = functools.reduce(lax.max, map(line, self.segments))
        return lax.clamp(_full(0.0, index), highest, _full(1.0, index))

    def nearest(self, value: jax.Array) -> jax.Array:
        """Return the index of the level nearest to a value in [0, 1], the lower one in a tie."""
        start, scale, first, count = (_full(x, value) for x in self._line(self.segments[0]))
        for segment in self.segments[1:]:
            here = lax.gt(value, _full(self._middle(segment.first), value))
            new = (_full(x, value) for x in self._line(segment))
            start, scale, first, count = (
                lax.select(here, x, old)
                for x, old in zip(new, (start, scale, first, count), strict=True)
            )
        part = lax.ceil(lax.mul(lax.sub(value, start), scale))
        index = lax.add(first, lax.clamp(_full(1.0, value), part, count))
        if self.segments[0].first:
            zero = lax.le(value, _full(self._middle(1), value))
            index = lax.select(zero, _full(0.0, value), index)
        last = self.segments[-1]
        if last.first + last.count == self.top:
            high = lax.gt(value, _full(self._middle(self.top), value))
            index = lax.select(high, _full(self.top, value), index)
        return index

    def _line(self, segment: Segment) -> tuple[float, float, int, int]:
        """Return lower end, parts per unit, index before the first, and number of levels."""
        per_unit = 1 / (segment.scale * segment.stride)
        return segment.at(segment.first - 0.5), per_unit, segment.first - 1, segment.count

    def _middle(self, index: int) -> float:
        """Return the midpoint between the levels of ``index`` and ``index - 1``."""
        low, high = (
            min(max(0.0, *(s.at(i) for s in self.segments)), 1.0) for i in (index - 1, index)
        )
        return (low + high) / 2


@functools.cache
def dynamic(bits: int, *, signed: bool) -> Levels:
    """Make the dynamic map of magnitudes: 0, then ``bits - 1`` decades, then 1.

    With a sign there are half as many levels: an 8-bit code then has 127 below 1 on either side,
    and no -1.
    """
    decades = bits - 1
    segments = []
    for i in range(decades):
        number = 2 ** (i if signed else i + 1)
        first = number if signed else number - 1
        end = 10.0 ** (i - decades + 1)
        offset = 9 + 2 * number - 18 * first
        segments.append(Segment(first, number, end / (20 * number), 18, offset))
    top = 2**decades if signed else 2**bits - 1
    return Levels(f"dynamic{bits}", tuple(segments), top)


@functools.cache
def linear_without_zero(bits: int) -> Levels:
    """Make equal levels k / 2^bits, k = 1..2^bits (Li et al., NeurIPS 2023, arXiv 2309.01507).

    Without a level 0, a second moment cannot become 0 while its first moment is not 0.
    """
    return Levels(f"linear{bits}", (Segment(0, 2**bits, 2.0**-bits, 1, 1),), 2**bits - 1)


def _full(value: float, like: jax.Array) -> jax.Array:
    return lax.full_like(like, value)
