"""Checks and norms of gradients that stages outside the moments share.

>>> import jax.numpy as jnp
>>> square_norm(jnp.array([3.0, 4.0]))
Array(25., dtype=float32)
"""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax import numerics

Tree = Any


def square_norm(x: jax.Array) -> jax.Array:
    """The sum of |x|^2 over one leaf, real, in the default float dtype."""
    return lax.reduce_sum(numerics.abs_square(numerics.widen(x)), tuple(range(x.ndim)))


def square_norm_of_tree(tree: Tree) -> jax.Array:
    """The sum of |x|^2 over all leaves; 0 for an empty tree.

    Of arrays sharded in a mesh it is that of the whole; inside ``jax.shard_map`` of the shard.
    """
    squares = [square_norm(x) for x in jax.tree.leaves(tree)]
    return sum(squares, jnp.zeros([], numerics.default_float()))


def check_floating(tree: Tree, what: str) -> None:
    """Raises ``TypeError`` where a leaf is an integer or a bool; ``what`` begins its name."""
    for name, leaf in numerics.named_leaves(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            kind = f"is a {type(leaf).__name__}" if dtype is None else f"has dtype {dtype}"
            raise TypeError(
                f"the {what} {name!r} {kind}; only floating-point arrays can be optimized: keep it "
                "out of the tree (in Equinox, eqx.filter(model, eqx.is_inexact_array)) or wrap the "
                "optimizer in optax.masked."
            )


def entering(gradient: Tree, params: Tree | None) -> tuple[Tree, Tree | None]:
    """Gradient and parameters of a step, as arrays, each parameter beside its gradient.

    Equinox gives the whole model as parameters, and None as the gradient of what is no array: that
    becomes None in both.

    Raises:
      ValueError: the parameters are others than the gradients are of.
    """
    gradient = numerics.as_arrays(gradient)
    if params is None:
        return gradient, None
    structure = jax.tree.structure(gradient)
    if jax.tree.structure(params) != structure:
        with contextlib.suppress(ValueError):
            params = jax.tree.map(
                lambda g, p: None if g is None else p, gradient, params, is_leaf=lambda g: g is None
            )
        if jax.tree.structure(params) != structure:
            raise ValueError(
                "the gradients do not have the structure of the parameters in params: "
                f"{_difference(gradient, params)}. Give the parameters that the gradients are of, "
                "and None as the gradient of what is not trained."
            )
    params = numerics.as_arrays(params)
    for (name, g), p in zip(numerics.named_leaves(gradient), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"the gradient of {name!r} has shape {jnp.shape(g)}, the parameter in params "
                f"{jnp.shape(p)}: give the parameters that the gradients are of."
            )
    return gradient, params


def check_gradient(gradient: Tree, like: Tree | None) -> None:
    """Raises where the gradients are not floating or do not fit ``like`` (None: not known)."""
    check_floating(gradient, "gradient of")
    if like is None:
        return
    if jax.tree.structure(gradient) != jax.tree.structure(like):
        raise ValueError(
            "the gradients do not have the structure of the parameters given to init: "
            f"{_difference(gradient, like)}. Call init again for a changed tree; for parameters "
            "without a gradient give zeros, or None in both trees."
        )
    for (name, g), p in zip(numerics.named_leaves(gradient), jax.tree.leaves(like), strict=True):
        if g.shape != p.shape:
            raise ValueError(
                f"the gradient of {name!r} has shape {g.shape}, the "
                f"parameter given to init had {p.shape}. Call init again for a changed tree."
            )


def _difference(have: Tree, expected: Tree) -> str:
    names, wanted = set(numerics.leaf_names(have)), set(numerics.leaf_names(expected))
    return f"missing leaves {sorted(wanted - names)}, surplus leaves {sorted(names - wanted)}"
