"""Checks and norms of gradients that stages outside the moments share.

>>> import jax.numpy as jnp
>>> square_norm(jnp.array([3.0, 4.0]))
Array(25., dtype=float32)
"""

from __future__ import annotations

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
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"the {what} {numerics.parameter_name(path)!r} has dtype {jnp.result_type(leaf)}; "
                "only floating-point leaves can be optimized: keep it out of the tree or wrap the "
                "optimizer in optax.masked."
            )


def check_gradient(gradient: Tree, like: Tree | None) -> None:
    """Raises where the gradients are not floating or do not fit ``like`` (None: not known)."""
    check_floating(gradient, "gradient of")
    if like is None:
        return
    if jax.tree.structure(gradient) != jax.tree.structure(like):
        have, expected = numerics.leaf_names(gradient), numerics.leaf_names(like)
        raise ValueError(
            "the gradients do not have the structure of the parameters given to init: missing "
            f"leaves {sorted(set(expected) - set(have))}, surplus leaves "
            f"{sorted(set(have) - set(expected))}. Call init again for a changed tree; for "
            "parameters without a gradient give zeros, or None in both trees."
        )
    for (path, g), p in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(like), strict=True
    ):
        if g.shape != p.shape:
            raise ValueError(
                f"the gradient of {numerics.parameter_name(path)!r} has shape {g.shape}, the "
                f"parameter given to init had {p.shape}. Call init again for a changed tree."
            )
