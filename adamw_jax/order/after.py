"""One array after others that read what it overwrites, or what its reader overwrites.

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
from adamw_jax.order.device import is_alone, is_on_cpu

Tree = Any

SMALL = 4096
"""Arrays of fewer elements are read whole, and do not wait for others: it costs less."""


def after(x: Tree, count: jax.Array, *readers: Tree, kept: bool = False) -> Tree:
    """``x``, written only when ``readers`` are: trees like it, of arrays or scalars.

    Without an order between the two XLA copies the donated array before it is overwritten.

    Args:
      x: what is written.
      count: the step count.
      *readers: on a single CPU device one element of each is read for it, of small ones and
        elsewhere every one.
      kept: whether the readers are arrays of the new state, which XLA computes whole, so that one
        element is enough of small ones, too.
    """
    alone = is_alone(x, readers) and is_on_cpu()

    def seen(reader: jax.Array) -> jax.Array:
        if alone and kept:
            return _first(reader)
        return known_once_whole(reader, count) if alone and is_large(reader) else reader

    def leaf(new: jax.Array, *arrays: jax.Array) -> jax.Array:
        # In the compute dtype: a reader may be too large for that of ``new``.
        wide = numerics.widen(new)
        known = functools.reduce(lax.add, (_like(seen(a), wide) for a in arrays))
        return numerics.cast(when(known, wide, count), new.dtype)

    return jax.tree.map(leaf, x, *readers)


def when(known: jax.Array, x: jax.Array, count: jax.Array) -> jax.Array:
    """``x``, once another array of its shape or a scalar is known.

    The select always takes ``x``, since a step count is never negative, but XLA does not know that.
    """
    known = _like(known, x)
    known = known if known.shape == x.shape else lax.broadcast(known, x.shape)
    return lax.select(_always(count), x, known)


def is_large(x: jax.Array) -> bool:
    """Whether an array is large enough to wait for; a symbolic size is not.

    Args:
      x: an array.
    """
    return isinstance(x.size, int) and x.size >= SMALL


def known_once_whole(x: jax.Array, count: jax.Array) -> jax.Array:
    """A scalar of ``x``. A branch reads it, for else XLA would compute one element by itself.

    Args:
      x: an array.
      count: the step count.
    """
    nothing = lax.full((), 0, x.dtype)
    return lax.cond(_always(count), _first, lambda _: nothing, x) if x.size else nothing


def _first(x: jax.Array) -> jax.Array:
    return x.ravel()[0] if x.size else lax.full((), 0, x.dtype)


def _always(count: jax.Array) -> jax.Array:
    return lax.ge(count, lax.full_like(count, 0))


def _like(known: jax.Array, x: jax.Array) -> jax.Array:
    if jnp.iscomplexobj(known) and not jnp.iscomplexobj(x):
        known = lax.real(known)
    return numerics.cast(lax.stop_gradient(known), x.dtype)
