"""Small floats as storage: bfloat16 without scales, float8 with one scale per block.

    float8: scale = max |x| over the block / 448,    stored value = x / scale in e4m3

The scale is at least the smallest normal float32, because smaller ones are flushed to 0. So a block
with a maximum below 5.3e-36 has fewer digits, and values below 1.2e-38 become 0. Scales of float64
arrays are float64. bfloat16 has the range of float32 and needs no scale: magnitudes above its range
become its largest number. In a field that is never negative so do infinities, and positive values
below its range become its smallest normal number. For float64 arrays ``of`` gives it scales, too:
the maximum of a block, so that they are as large as the values when x64 is switched off.

>>> import jax.numpy as jnp
>>> codec = SmallFloat(jnp.dtype(jnp.bfloat16))
>>> codec.decode(codec.encode(jnp.array([1.0, 1.001])))
Array([1., 1.], dtype=float32)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.blocks import Blocks
from adamw_jax._core.encoded import Encoded, Layout, encoded
from adamw_jax.storage._block_wise import finite, nonnegative, share


@dataclasses.dataclass(frozen=True)
class SmallFloat:
    """Values in a narrower float dtype.

    Attributes:
      dtype: the narrower dtype.
      blocks: the parts that share a scale, which maps their largest magnitude to that of float8,
        or to 1 in bfloat16; None for no scale.
      signed: whether values may be negative; if not, no positive value is stored as 0, and none as
        infinity.
    """

    dtype: Any
    blocks: Blocks | None = None
    signed: bool = True

    @property
    def top(self) -> float:
        """The largest magnitude of a block, divided by its scale."""
        return 1.0 if self.dtype == jnp.bfloat16 else float(jnp.finfo(self.dtype).max)

    @property
    def name(self) -> str:
        """Dtype and blocks."""
        return self.dtype.name + ("" if self.blocks is None else f"_{self.blocks.name}")

    def of(self, dtype: Any) -> SmallFloat:
        """Return the codec for arrays of ``dtype``, with scales if they have a wider range."""
        wider = jnp.finfo(dtype).maxexp > jnp.finfo(self.dtype).maxexp
        return self if self.blocks or not wider else dataclasses.replace(self, blocks=Blocks(256))

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """Encode a real array."""
        return self.encode_by(x, self.scales_of(x), noise)

    def scales_of(self, x: jax.Array) -> jax.Array | None:
        """Return the scales with which ``encode`` would store an array, None without blocks."""
        if self.blocks is None:
            return None
        maxima = jnp.max(lax.abs(self._split(x, self.blocks)), axis=-1)
        tiny = lax.full_like(maxima, jnp.finfo(maxima.dtype).tiny)
        return lax.select(lax.ge(maxima, tiny), lax.max(maxima / self.top, tiny), 0 * maxima)

    def encode_by(self, x: jax.Array, scales: Any, noise: jax.Array | None) -> Encoded:
        """Encode an array with these scales."""
        layout = Layout(self, x.shape, x.dtype)
        if self.blocks is None:
            return encoded(narrow(self._within_range(x), self.dtype, noise), None, layout)
        blocks = self._split(x, self.blocks)
        scaled = share(blocks, scales[..., None])
        limit = lax.full_like(scaled, self.top)  # a product rounded up must not overflow
        scaled = lax.clamp(-limit, scaled, limit)
        noise = None if noise is None else self.blocks.split(noise)
        codes = narrow(scaled, self.dtype, noise)
        if not self.signed:
            info, normal = jnp.finfo(self.dtype), jnp.finfo(jnp.float32).tiny
            least = lax.full_like(codes, max(float(info.smallest_subnormal), float(normal)))
            positive = lax.gt(blocks, lax.full_like(blocks, 0))
            codes = lax.select(positive, lax.max(codes, least), codes)
        return encoded(self.blocks.join(codes, x.shape), scales, layout)

    def decode(self, stored: Encoded) -> jax.Array:
        """Return the array in its original dtype."""
        dtype, shape = stored.layout.dtype, stored.codes.shape
        if self.blocks is None:
            return lax.convert_element_type(stored.codes, dtype)
        if self.blocks.order == "flat":
            shape = stored.layout.shape
        blocks = lax.convert_element_type(self.blocks.split(stored.codes), stored.scales.dtype)
        values = lax.mul(blocks, jnp.broadcast_to(stored.scales[..., None], blocks.shape))
        return lax.convert_element_type(self.blocks.join(values, shape), dtype)

    def peaks(self, stored: Encoded) -> list[jax.Array]:
        """Return the maxima of the blocks, or the values if there are none."""
        if self.blocks is None:
            return jax.tree.leaves(stored.codes)
        return [lax.mul(x, lax.full_like(x, self.top)) for x in jax.tree.leaves(stored.scales)]

    def pieces(self, axes: int) -> tuple[Blocks, int]:
        """Return the blocks; one code per byte."""
        return self.blocks or Blocks(1), 1

    def _split(self, x: jax.Array, blocks: Blocks) -> jax.Array:
        return blocks.split(finite(x) if self.signed else nonnegative(x))

    def _within_range(self, x: jax.Array) -> jax.Array:
        """Replace values outside the range of the dtype by the ends of the range."""
        info = jnp.finfo(self.dtype)
        largest = lax.full_like(x, float(info.max))
        held = lax.clamp(-largest, x, largest)
        if self.signed:
            return lax.select(lax.is_finite(x), held, x)
        if jnp.finfo(x.dtype).tiny < float(info.tiny):
            positive = lax.gt(x, lax.full_like(x, 0))
            held = lax.select(positive, lax.max(held, lax.full_like(x, float(info.tiny))), held)
        return held


def narrow(x: jax.Array, dtype: Any, noise: jax.Array | None) -> jax.Array:
    """Round ``x`` to a narrower dtype: to nearest, or at random by uniform ``noise`` in [0, 1).

    The upper neighbour is taken with the probability that makes ``x`` the mean. Magnitudes below
    2^-100 are rounded on the grid of 2^-100.
    """
    if noise is None:
        return lax.convert_element_type(x, dtype)
    info = jnp.finfo(dtype)
    bits = lax.bitcast_convert_type(lax.convert_element_type(x, jnp.float32), jnp.uint32)
    exponent = lax.bitwise_and(bits, lax.full_like(bits, 0x7F800000))
    power = lax.bitcast_convert_type(exponent, jnp.float32)
    least = max(float(info.smallest_normal), 2.0**-100)
    ulp = lax.mul(lax.max(power, lax.full_like(power, least)), lax.full_like(power, info.eps))
    steps = lax.div(lax.convert_element_type(x, jnp.float32), ulp)
    down = lax.floor(steps)
    up = lax.convert_element_type(lax.lt(noise, lax.sub(steps, down)), jnp.float32)
    rounded = lax.mul(lax.add(down, up), ulp)
    return lax.convert_element_type(lax.select(lax.is_finite(x), rounded, x), dtype)
