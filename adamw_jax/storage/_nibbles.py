"""Pack two 4-bit codes into a byte: neighbours along the last axis, the first in the high half.

>>> import jax.numpy as jnp
>>> pack(jnp.array([1, 2, 3], jnp.uint8))
Array([18, 48], dtype=uint8)
>>> unpack(_, (3,))
Array([1, 2, 3], dtype=uint8)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def pack(codes: jax.Array) -> jax.Array:
    """Pack ``(..., n)`` codes into ``(..., ceil(n / 2))`` bytes."""
    if codes.ndim == 0:
        codes = codes[None]
    if codes.shape[-1] % 2:
        codes = jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    pairs = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 2, 2)
    four = jnp.asarray(4, jnp.uint8)
    return lax.bitwise_or(
        lax.shift_left(pairs[..., 0], lax.full_like(pairs[..., 0], four)), pairs[..., 1]
    )


def unpack(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unpack the codes of an array of ``shape``."""
    high = lax.shift_right_logical(packed, lax.full_like(packed, 4))
    low = lax.bitwise_and(packed, lax.full_like(packed, 15))
    both = jnp.stack([high, low], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])
    return both[..., : (shape or (1,))[-1]].reshape(shape)
