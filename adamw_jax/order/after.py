"""One array after others that read what it overwrites, or that it is read by.

>>> import jax.numpy as jnp
>>> after(jnp.zeros(2), jnp.int32(0), jnp.ones(2))
Array([0., 0.], dtype=float32)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax import numerics

Tree = Any


def after(x: Tree, count: jax.Array, *readers: Tree, kept: bool = False) -> Tree:
    """``x``, written only when ``readers`` are: trees of its shape that read what it overwrites.

    Without an order between the two XLA copies the donated array before it is overwritten.

    Args:
      x: what is written.
      count: the step count.
      *readers: each is read for it.
      kept: whether the readers are arrays of the new state. One element of those is enough, on a
        single device; of others XLA would compute that element by itself.
    """
    one = kept and jax.device_count() == 1

    def leaf(new: jax.Array, *arrays: jax.Array) -> jax.Array:
        # In the compute dtype: a reader may be too large for that of ``new``.
        wide = numerics.widen(new)
        read = [_like(first_element(a) if one else a, wide) for a in arrays]
        return numerics.cast(when(functools.reduce(lax.add, read), wide, count), new.dtype)

    return jax.tree.map(leaf, x, *readers)


def when(known: jax.Array, x: jax.Array, count: jax.Array) -> jax.Array:
    """``x``, once another array of its shape or a scalar is known.

    The select always takes ``x``, since a step count is never negative, but XLA does not know that.
    """
    known = _like(known, x)
    known = known if known.shape == x.shape else lax.broadcast(known, x.shape)
    return lax.select(lax.ge(count, lax.full_like(count, 0)), x, known)


def _like(known: jax.Array, x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(known) and not jnp.iscomplexobj(x):
        known = lax.real(known)
    return numerics.cast(lax.stop_gradient(known), x.dtype)


def first_element(x: jax.Array) -> jax.Array:
    """A scalar that is known once ``x`` is; 0 of an empty array."""
    return x.ravel()[0] if x.size else lax.full((), 0, x.dtype)
