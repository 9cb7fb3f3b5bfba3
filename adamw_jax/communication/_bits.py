"""Pack codes of 1, 2, 4 or 8 bits into bytes, the first code in the low bits.

>>> import jax.numpy as jnp
>>> pack(jnp.array([1, 0, 1, 1]), 1)
Array([13], dtype=uint8)
>>> unpack(_, 1, 4)
Array([1, 0, 1, 1], dtype=uint8)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pack(codes: jax.Array, bits: int) -> jax.Array:
    """Pack ``n`` codes below ``2**bits`` into ``ceil(n bits / 8)`` bytes."""
    per_byte = 8 // bits
    codes = jnp.pad(codes.astype(jnp.uint8), (0, -codes.size % per_byte)).reshape(-1, per_byte)
    return jnp.sum(codes << _places(bits), axis=1, dtype=jnp.uint8)


def unpack(packed: jax.Array, bits: int, size: int) -> jax.Array:
    """Unpack the first ``size`` codes, uint8."""
    codes = (packed[:, None] >> _places(bits)) & jnp.uint8(2**bits - 1)
    return codes.reshape(-1)[:size]


def _places(bits: int) -> jax.Array:
    return jnp.arange(0, 8, bits, dtype=jnp.uint8)[None]
