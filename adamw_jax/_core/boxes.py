"""Put states into the boxes of Flax.

``nnx.Optimizer`` keeps a box around every array of a state. Functions that rewrite a state work on
the arrays, and return boxes if they were given some.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from adamw_jax._core import numerics

Tree = Any


def has_boxes(tree: Tree) -> bool:
    """Return whether any array of a tree is in a box."""
    return any(map(numerics.is_box, jax.tree.leaves(tree, is_leaf=numerics.is_box)))


def boxed(state: Tree, tx: optax.GradientTransformation, params: Tree, like: Tree) -> Tree:
    """Put a state of ``tx`` without boxes into the boxes that ``like`` and ``params`` imply.

    Args:
      state: a state of arrays without boxes.
      tx: the transformation.
      params: the parameters, in boxes or not.
      like: a state; if it is that of ``nnx.Optimizer``, so is the result.
    """
    if not has_boxes(like) and not has_boxes(params):
        return state
    places = jax.eval_shape(tx.init, params)  # in the boxes of the parameters, if any
    state = jax.tree.unflatten(jax.tree.structure(places), jax.tree.leaves(state))
    if not any(hasattr(box, "get_value") for box in _boxes(like)):
        return state
    from flax import nnx  # its boxes are in ``like``, so Flax is installed

    if not any(isinstance(box, nnx.OptState) for box in _boxes(like)):
        return state  # made by hand, in the boxes of the parameters

    def one(x: Any) -> Any:
        if numerics.is_box(x):
            return nnx.OptVariable(x.get_value(), **x.get_metadata())
        return nnx.OptArray(x)

    return jax.tree.map(one, state, is_leaf=numerics.is_box)


def _boxes(tree: Tree) -> list[Any]:
    return [x for x in jax.tree.leaves(tree, is_leaf=numerics.is_box) if numerics.is_box(x)]
