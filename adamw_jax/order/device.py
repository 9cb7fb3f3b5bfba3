"""Where an order pays: on a single device, outside any mesh.

>>> import jax.numpy as jnp
>>> is_alone(jnp.ones(2)) == (jax.device_count() == 1)
True
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

from adamw_jax.numerics import varying_axes

Tree = Any

_UNORDERED = ContextVar("_UNORDERED", default=False)


def is_alone(*trees: Tree) -> bool:
    """Whether arrays are whole on the one device that there is.

    Of one on several devices a scalar costs a message. In a mesh, even of one device, the types of
    arrays tell how they lie in it, and those of unlike ones may not be mixed.

    Args:
      *trees: of arrays or tracers.
    """
    if _UNORDERED.get() or jax.device_count() != 1:
        return False
    return not any(map(_is_placed, jax.tree.leaves(trees)))


@contextlib.contextmanager
def unordered() -> Iterator[None]:
    """Steps that are traced inside have no order: who looks at one sees its formulas alone."""
    token = _UNORDERED.set(True)
    try:
        yield
    finally:
        _UNORDERED.reset(token)


def are_alike(*trees: Tree) -> bool:
    """Whether the types of arrays do not tell how they lie, or that all lie whole everywhere.

    Args:
      *trees: of arrays or tracers.
    """
    arrays = jax.tree.leaves(trees)
    shardings = [jax.typeof(x).sharding for x in arrays]
    kinds = {(s.mesh, varying_axes(x)) for s, x in zip(shardings, arrays, strict=True)}
    return len(kinds) < 2 and all(axis is None for s in shardings for axis in s.spec)


def is_on_cpu() -> bool:
    """Whether a branch is cheap: on a GPU it waits for the host.

    There it is not needed, for XLA writes an array and its readers in one kernel.
    """
    return jax.default_backend() == "cpu"


def _is_placed(x: Any) -> bool:
    return not jax.typeof(x).sharding.mesh.empty
