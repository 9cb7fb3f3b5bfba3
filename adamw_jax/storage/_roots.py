"""Codes of roots: 8 bits by a formula, with a scale for each small block.

    scale = max |x| over the block, rounded up to bfloat16,    s = x / scale
    signed:            code = round(127 sign(s) |s|^(1/2))
    never negative:    code = round(255 s^(1/4)), at least 1 if x > 0

A second moment has twice the decades of a first one, so both have the same share of the codes for a
decade. Companding by a formula, with scales in 16 bits for small blocks, is from Gonzalez Ortiz et
al. 2026, arXiv 2602.23349 (FlashOptim). They have 2 s / (1 + |s|), the square root, and float16;
the roots here have smaller errors for values of different scales, and bfloat16 has the range of
float32. Codes relative to the rounded scale lose nothing by its rounding. Scales of float64 arrays
are float64. NaN and infinities are treated as by ``BlockWise``.

>>> import jax.numpy as jnp
>>> codec = Roots(Blocks(64), signed=True)
>>> codec.decode(codec.encode(jnp.array([0.0, 1.0, -0.3, 4.0]))).round(4)
Array([ 0.    ,  1.0158, -0.3038,  4.    ], dtype=float32)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.blocks import Blocks
from adamw_jax._core.encoded import Encoded, Layout, encoded
from adamw_jax.storage._block_wise import finite, nonnegative, wide


@dataclasses.dataclass(frozen=True)
class Roots:
    """Codes of 8 bits with one scale per block, without a table or a search.

    Attributes:
      blocks: the parts that share a scale.
      signed: whether values may be negative.
    """

    blocks: Blocks
    signed: bool

    @property
    def name(self) -> str:
        """Formula and blocks."""
        return f"roots8_{'signed' if self.signed else 'unsigned'}_{self.blocks.name}"

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """Encode a real array."""
        return self.encode_by(x, self.scales_of(x), noise)

    def scales_of(self, x: jax.Array) -> jax.Array:
        """Return the scales with which ``encode`` would store an array."""
        maxima = jnp.max(lax.abs(self._split(x)), axis=-1)
        return maxima if maxima.dtype == jnp.float64 else _rounded_up(maxima)

    def encode_by(self, x: jax.Array, scales: jax.Array, noise: jax.Array | None) -> Encoded:
        """Encode an array with these scales."""
        layout, x = Layout(self, x.shape, x.dtype), self._split(x)
        part = _shares(lax.abs(x), scales)
        index = self.index(part)
        if noise is None:
            index = lax.round(index, lax.RoundingMethod.TO_NEAREST_EVEN)
        else:  # so that the mean is the value
            low = lax.floor(index)
            below, above = self.level(low), self.level(low + 1)
            up = lax.lt(self.blocks.split(noise), lax.div(lax.sub(part, below), above - below))
            index = lax.add(low, lax.convert_element_type(up, low.dtype))
        index = lax.min(index, lax.full_like(index, self.top))
        if self.signed:
            codes = lax.convert_element_type(
                lax.mul(index, lax.convert_element_type(lax.sign(x), index.dtype)), jnp.int8
            )
        else:
            some = lax.convert_element_type(lax.gt(x, lax.full_like(x, 0)), index.dtype)
            codes = lax.convert_element_type(lax.max(index, some), jnp.uint8)
        return encoded(self.blocks.join(codes, layout.shape), scales, layout)

    def decode(self, stored: Encoded) -> jax.Array:
        """Return the array in its original dtype."""
        layout, shape = stored.layout, stored.codes.shape
        if self.blocks.order == "flat":
            shape = layout.shape
        index = lax.convert_element_type(self.blocks.split(stored.codes), jnp.float32)
        level = self.level(lax.abs(index))
        level = lax.mul(lax.sign(index), level) if self.signed else level
        (scales,) = self.peaks(stored)
        level = lax.convert_element_type(level, scales.dtype)
        value = lax.mul(level, jnp.broadcast_to(scales[..., None], level.shape))
        return lax.convert_element_type(self.blocks.join(value, shape), layout.dtype)

    def peaks(self, stored: Encoded) -> list[jax.Array]:
        """Return the scales, in float32 or wider."""
        return [wide(stored.scales)]

    def pieces(self, axes: int) -> tuple[Blocks, int]:
        """Return the blocks; one code per byte."""
        return self.blocks, 1

    @property
    def top(self) -> int:
        """The largest index, whose level is 1."""
        return 127 if self.signed else 255

    def index(self, part: jax.Array) -> jax.Array:
        """Return the index, not yet whole, of a part of the scale in [0, 1]."""
        root = lax.sqrt(part) if self.signed else lax.sqrt(lax.sqrt(part))
        return lax.mul(root, lax.full_like(root, self.top))

    def level(self, index: jax.Array) -> jax.Array:
        """Return the part of the scale that an index stands for."""
        root = lax.mul(index, lax.full_like(index, 1 / self.top))
        return lax.integer_pow(root, 2 if self.signed else 4)

    def _split(self, x: jax.Array) -> jax.Array:
        return self.blocks.split(finite(x) if self.signed else nonnegative(x))


def _rounded_up(scale: jax.Array) -> jax.Array:
    """Return the next bfloat16 that is not below a scale, or the largest."""
    bits = lax.bitcast_convert_type(scale, jnp.uint32)
    bits = (bits + jnp.uint32(0xFFFF)) & jnp.uint32(0xFFFF0000)
    most = lax.full_like(scale, float(jnp.finfo(jnp.bfloat16).max))
    up = lax.min(lax.bitcast_convert_type(bits, jnp.float32), most)
    return lax.convert_element_type(up, jnp.bfloat16)


def _shares(x: jax.Array, scales: jax.Array) -> jax.Array:
    """Return ``x / scale`` in float32, 0 if the scale is 0 or subnormal.

    It is written for each element: inverses of the scales alone XLA for a GPU would store. As in
    ``share``, both are divided by 4 if the inverse would be no normal number.
    """
    info = jnp.finfo(x.dtype)
    scale = jnp.broadcast_to(lax.convert_element_type(scales, x.dtype)[..., None], x.shape)
    large = lax.gt(scale, lax.full_like(scale, 2.0 ** (int(info.maxexp) - 3)))
    factor = lax.select(large, lax.full_like(x, 0.25), lax.full_like(x, 1))
    usable = lax.ge(scale, lax.full_like(scale, info.tiny))
    under = lax.select(usable, lax.mul(scale, factor), lax.full_like(scale, jnp.inf))
    return lax.convert_element_type(lax.div(lax.mul(x, factor), under), jnp.float32)
