"""The numbers that a narrow dtype has, in float32 arithmetic that no compiler may leave out.

A conversion to bfloat16 and back is a rounding that XLA is free to skip. A division by the gap
between neighbours, which is a power of two, is exact, and the rounding after it stays.

>>> import jax.numpy as jnp
>>> gap(jnp.float32(3.0), jnp.bfloat16), nearest(jnp.float32(3.02), jnp.bfloat16)
(Array(0.015625, dtype=float32), Array(3.015625, dtype=float32))
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_EXPONENT = 0x7F800000  # of a float32
_SMALLEST = float(jnp.finfo(jnp.float32).tiny)  # what is below is 0 to most hardware


def is_narrow(p: Any) -> bool:
    """Whether a leaf is real and of fewer bits than float32."""
    return jnp.issubdtype(p.dtype, jnp.floating) and p.dtype.itemsize < 4


def largest(dtype: Any) -> float:
    """The largest finite number of a dtype."""
    return float(jnp.finfo(dtype).max)


def saturated(x: jax.Array, dtype: Any) -> jax.Array:
    """``x``, held where a dtype ends."""
    return jnp.clip(x, -largest(dtype), largest(dtype))


def gap(x: jax.Array, dtype: Any) -> jax.Array:
    """From |x|, a float32, to the next larger number of a dtype; 2**-126 at least."""
    info = jnp.finfo(dtype)
    bits = lax.bitcast_convert_type(x, jnp.uint32) & _EXPONENT
    power = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.maximum(power * float(info.eps), max(float(info.smallest_subnormal), _SMALLEST))


def to_multiple(x: jax.Array, grid: jax.Array) -> jax.Array:
    """The multiple of a power of two nearest to ``x``, of two the even one."""
    return lax.round(x / grid, lax.RoundingMethod.TO_NEAREST_EVEN) * grid


def nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """What a float32 rounds to in a dtype, without a largest number."""
    return to_multiple(x, gap(x, dtype))


@jax.custom_jvp
def in_place_of(exact: jax.Array, rounded: jax.Array) -> jax.Array:
    """``rounded``, with the derivatives of ``exact``."""
    del exact
    return rounded


in_place_of.defjvps(lambda tangent, *_: tangent, None)
