"""Block-wise codes: a scale for each block, and the code of the nearest level for each element.

    scale = max |x| over the block,    code = index of the level nearest to x / scale
    decoded x = scale * level

Dettmers et al., ICLR 2022, arXiv 2110.02861 (8 bits, blocks of 256 since bitsandbytes 0.44); Li et
al., NeurIPS 2023, arXiv 2309.01507 (4 bits, blocks of 128). A block of zeros has scale 0 and stays
exactly 0, as does every 0 if the map has a 0. NaN is stored as 0 and does not change the rest of
its block; so are infinities of signed arrays. An infinite second moment is stored as the largest
finite number, because 0 would make the next step far too long. Scales are float32, or float64 for
float64 arrays. Ties go to the lower code.

>>> import jax.numpy as jnp
>>> from adamw_jax.storage._levels import dynamic
>>> codec = BlockWise(dynamic(8, signed=True), 8, Blocks(256), signed=True)
>>> codec.decode(codec.encode(jnp.array([0.0, 1.0, -0.3, 4.0]))).round(4)
Array([ 0.    ,  0.9906, -0.3044,  4.    ], dtype=float32)
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.blocks import Blocks
from adamw_jax._core.encoded import Encoded, Layout, encoded
from adamw_jax.storage._levels import Levels
from adamw_jax.storage._nibbles import pack, unpack


@dataclasses.dataclass(frozen=True)
class BlockWise:
    """Codes of 8 or 4 bits with one scale per block.

    Attributes:
      levels: the map from codes to magnitudes.
      bits: 8, or 4 with two codes per byte along the last axis.
      blocks: the parts that share a scale.
      signed: whether values may be negative; if not, negative values are stored as 0.
      floor: never store a positive value as 0 (unsigned only). A second moment that became 0 while
        its first moment did not would make the next step up to 31 times too long.
      root: store square roots (unsigned only), which need half as many decades.
    """

    levels: Levels
    bits: int
    blocks: Blocks
    signed: bool
    floor: bool = False
    root: bool = False

    @property
    def name(self) -> str:
        """Map and blocks."""
        kind = "signed" if self.signed else "root" if self.root else "unsigned"
        return f"{self.levels.name}_{kind}_{self.blocks.name}"

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """Encode a real array."""
        return self.encode_by(x, self.scales_of(x), noise)

    def scales_of(self, x: jax.Array) -> jax.Array:
        """Return the scales with which ``encode`` would store an array."""
        return jnp.max(lax.abs(self._split(x)), axis=-1)

    def encode_by(self, x: jax.Array, scales: jax.Array, noise: jax.Array | None) -> Encoded:
        """Encode an array with these scales."""
        layout = Layout(self, x.shape, x.dtype)
        if noise is not None:
            noise = self.blocks.split(noise)
        codes = self.codes(self._split(x), scales[..., None], noise)
        codes = self.blocks.join(codes, layout.shape)
        return encoded(codes if self.bits == 8 else pack(codes), scales, layout)

    def _split(self, x: jax.Array) -> jax.Array:
        x = finite(x) if self.signed else nonnegative(x)
        return self.blocks.split(lax.sqrt(x) if self.root else x)

    def codes(self, x: jax.Array, scale: jax.Array, noise: jax.Array | None) -> jax.Array:
        """Return the unpacked codes of values with these scales."""
        value = share(lax.abs(x), scale)
        negative = lax.lt(x, lax.full_like(x, 0))
        if self.signed:  # the lower code of a negative value has the larger magnitude
            value = _next_above(value, negative)
        index = self.levels.nearest(value)
        if noise is not None:
            index = self._stochastic(index, value, noise)
            last = lax.full_like(index, self.levels.top)
            index = lax.clamp(lax.full_like(index, 0), index, last)
        if self.floor:
            least = lax.convert_element_type(lax.gt(x, lax.full_like(x, 0)), index.dtype)
            index = lax.max(index, least)
        if self.signed:
            zero = self._zero(index)
            index = lax.add(zero, lax.select(negative, -lax.min(index, zero), index))
        return lax.convert_element_type(index, jnp.uint8)

    def decode(self, stored: Encoded) -> jax.Array:
        """Return the array in its original dtype."""
        codes, shape = stored.codes, self.shape(stored)
        blocks = self.blocks.split(codes if self.bits == 8 else unpack(codes, shape))
        values = self.values(blocks, stored.scales[..., None])
        x = self.blocks.join(lax.mul(values, values) if self.root else values, shape)
        return lax.convert_element_type(x, stored.layout.dtype)

    def peaks(self, stored: Encoded) -> list[jax.Array]:
        """Return the scales, or their squares if they are those of roots."""
        return [lax.mul(x, x) if self.root else x for x in jax.tree.leaves(stored.scales)]

    def pieces(self, axes: int) -> tuple[Blocks, int]:
        """Return blocks and codes per byte."""
        return self.blocks, 8 // self.bits

    def shape(self, stored: Encoded) -> tuple[int, ...]:
        """Return the shape of the decoded array, correct under ``vmap`` and for a shard, too."""
        codes, whole = stored.codes.shape, stored.layout.shape
        if self.blocks.order == "flat" or not whole:
            return whole
        if self.bits == 8:
            return codes
        return *codes[:-1], whole[-1] if codes[-1] == -(-whole[-1] // 2) else 2 * codes[-1]

    def values(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """Return the values of unpacked codes with these scales."""
        index = lax.convert_element_type(codes, jnp.float32)
        if self.signed:
            index = lax.sub(index, self._zero(index))
        level = self.levels.level(lax.abs(index) if self.signed else index)
        if self.signed:
            level = lax.select(lax.lt(index, lax.full_like(index, 0)), -level, level)
        level = lax.convert_element_type(level, scale.dtype)
        return lax.mul(level, jnp.broadcast_to(scale, level.shape))

    def _zero(self, like: jax.Array) -> jax.Array:
        """Return the code of 0 in a signed map."""
        return lax.full_like(like, self.levels.top - 1)

    def _stochastic(self, index: jax.Array, value: jax.Array, noise: jax.Array) -> jax.Array:
        """Choose one of the two neighbouring levels at random, so that the mean is the value."""
        above = lax.gt(self.levels.level(index), value)
        lower = lax.select(above, lax.sub(index, lax.full_like(index, 1)), index)
        low, high = self.levels.level(lower), self.levels.level(lower + 1)
        gap = lax.max(lax.sub(high, low), lax.full_like(low, jnp.finfo(low.dtype).tiny))
        up = lax.lt(noise, lax.div(lax.sub(value, low), gap))
        return lax.add(lower, lax.convert_element_type(up, lower.dtype))


def _next_above(x: jax.Array, where: jax.Array) -> jax.Array:
    """Return the next float32 above x >= 0 if ``where``, else x."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    more = lax.add(bits, lax.convert_element_type(where, jnp.int32))
    return lax.bitcast_convert_type(more, jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """Convert ``x`` to float32, unless it is float64."""
    return lax.convert_element_type(x, jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def finite(x: jax.Array) -> jax.Array:
    """Return ``wide(x)`` with 0 in place of NaN and infinities."""
    x = wide(x)
    return lax.select(lax.is_finite(x), x, lax.full_like(x, 0))


def nonnegative(x: jax.Array) -> jax.Array:
    """Return ``wide(x)`` with 0 in place of NaN and negative values, and without infinities.

    The upper limit leaves room for the rounding of a root or of a scale.
    """
    x = wide(x)
    limit = lax.full_like(x, float(jnp.finfo(x.dtype).max) * (1 - 1e-6))
    zero = lax.full_like(x, 0)
    return lax.select(lax.ne(x, x), zero, lax.clamp(zero, x, limit))


def share(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Return ``x / scale`` in float32, or 0 where the scale is 0 or too small to have an inverse.

    The inverse of a float32 scale above 2^126 is not a normal number and would be flushed to 0. So
    from 2^125 on both are divided by 4.
    """
    one, info = lax.full_like(scale, 1), jnp.finfo(scale.dtype)
    large = lax.full_like(scale, 2.0 ** (int(info.maxexp) - 3))
    factor = lax.select(lax.gt(scale, large), one / 4, one)
    scale = lax.mul(scale, factor)
    usable = lax.ge(scale, lax.full_like(scale, info.tiny))
    inverse = lax.reciprocal(lax.select(usable, scale, one))
    inverse = lax.select(usable, inverse, lax.full_like(scale, 0))
    factor, inverse = (jnp.broadcast_to(each, x.shape) for each in (factor, inverse))
    return lax.convert_element_type(lax.mul(lax.mul(x, factor), inverse), jnp.float32)
