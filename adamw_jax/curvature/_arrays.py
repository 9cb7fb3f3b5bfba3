"""Helpers of the curvature and diagnostics rooms: array arguments, trees as vectors, batches.

>>> [x.shape for x in broadcast(t=real_array("t", [1, 2]), b2=real_array("b2", 0.9, below=1.0))]
[(2,), (2,)]
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.gradients import square_norm_of_tree

Tree = Any


def real_array(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> jax.Array:
    """Return ``value`` in the default float dtype, checked against bounds.

    NaN passes. Tracers are not checked.
    """
    if not isinstance(value, jax.core.Tracer):
        known = np.asarray(value, float)
        bounds = (
            (">", above, known <= above),
            (">=", least, known < least),
            ("<", below, known >= below),
        )
        stated = [(f"{sign} {x:g}", wrong) for sign, x, wrong in bounds if math.isfinite(x)]
        for _, wrong in stated:
            if wrong.any():
                words = " and ".join(word for word, _ in stated)
                raise ValueError(f"{name} must be {words} everywhere, got {known[wrong][0]:g}.")
    return jnp.asarray(value, numerics.default_float())


def broadcast(**arrays: jax.Array) -> list[jax.Array]:
    """Broadcast the arrays to one shape by NumPy's rules."""
    shapes = {name: array.shape for name, array in arrays.items()}
    try:
        shape = np.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(f"the arguments must have shapes that broadcast, got {shapes}.") from None
    return [jnp.broadcast_to(array, shape) for array in arrays.values()]


def inner(a: Tree, b: Tree) -> jax.Array:
    """Return the real part of <a, b> over all leaves, in the default float dtype."""

    def leaf(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = numerics.widen(x), numerics.widen(y)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            return jnp.sum(lax.real(x) * lax.real(y) + lax.imag(x) * lax.imag(y))
        return jnp.sum(x * y)

    return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)), jnp.zeros([], numerics.default_float()))


def random_direction(key: jax.Array, like: Tree) -> Tree:
    """Draw a tree of length 1, uniform over directions, in the default float dtype."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, jnp.shape(x), numerics.default_float())
        for k, x in zip(keys, leaves, strict=True)
    ]
    length = jnp.sqrt(square_norm_of_tree(draws))
    return jax.tree.unflatten(structure, [x / length for x in draws])


def examples(batch: Any) -> int:
    """Return the length of the first axis of the first array of a batch, 0 if there is none."""
    leaves = jax.tree.leaves(batch)
    return leaves[0].shape[0] if leaves and getattr(leaves[0], "ndim", 0) else 0
