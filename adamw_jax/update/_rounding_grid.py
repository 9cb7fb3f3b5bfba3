"""Round float32 numbers to those of a narrow dtype, in arithmetic that XLA must keep.

XLA may skip a conversion to bfloat16 and back. Instead, divide by the gap between neighbouring
numbers, which is a power of two, so the division is exact; then round to a whole number.

>>> import jax.numpy as jnp
>>> gap(jnp.float32(3.0), jnp.bfloat16), nearest(jnp.float32(3.02), jnp.bfloat16)
(Array(0.015625, dtype=float32), Array(3.015625, dtype=float32))
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_EXPONENT = 0x7F800000  # the exponent bits of a float32
_SMALLEST = float(jnp.finfo(jnp.float32).tiny)  # most hardware flushes smaller numbers to 0


def is_narrow(p: Any) -> bool:
    """Return whether a leaf is real and has fewer bits than float32."""
    return jnp.issubdtype(p.dtype, jnp.floating) and p.dtype.itemsize < 4


def largest(dtype: Any) -> float:
    """Return the largest finite number of a dtype."""
    return float(jnp.finfo(dtype).max)


def saturated(x: jax.Array, dtype: Any) -> jax.Array:
    """Clip ``x`` to the finite range of a dtype."""
    return jnp.clip(x, -largest(dtype), largest(dtype))


def gap(x: jax.Array, dtype: Any) -> jax.Array:
    """Return the distance from |x| to the next larger number of a dtype, at least 2**-126."""
    info = jnp.finfo(dtype)
    bits = lax.bitcast_convert_type(x, jnp.uint32) & _EXPONENT
    power = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.maximum(power * float(info.eps), max(float(info.smallest_subnormal), _SMALLEST))


def to_multiple(x: jax.Array, grid: jax.Array) -> jax.Array:
    """Round ``x`` to a multiple of ``grid``, a power of two, halves to even."""
    return lax.round(x / grid, lax.RoundingMethod.TO_NEAREST_EVEN) * grid


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """Round a float32 to the numbers of a dtype, ignoring its largest number."""
    return to_multiple(x, gap(x, dtype))


@jax.custom_jvp
def in_place_of(exact: jax.Array, rounded: jax.Array) -> jax.Array:
    """Return ``rounded``, with the derivatives of ``exact``."""
    del exact
    return rounded


in_place_of.defjvps(lambda tangent, *_: tangent, None)
