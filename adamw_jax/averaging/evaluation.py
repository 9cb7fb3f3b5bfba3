"""``eval_params``: the weights to evaluate on, whatever averages the recipe keeps.

>>> import jax.numpy as jnp
>>> from adamw_jax import adam
>>> params = jnp.ones(2)
>>> eval_params(adam(1e-3).init(params), params) is params
True
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax import lax

Tree = Any


def eval_params(state: Any, params: Tree) -> Tree:
    """Slow or averaged weights where the state holds some, else ``params``.

    Args:
      state: state of any optax transformation, wrapped as deep as you like.
      params: the current parameters, which give structure and dtypes; leaves without an average
        (masked ones) are taken from here.

    Raises:
      ValueError: the state holds more than one set of averaged weights for a parameter.
    """
    averages = [
        node.eval_params() for node in jax.tree.leaves(state, is_leaf=_averages) if _averages(node)
    ]
    result, taken = params, jax.tree.map(lambda _: False, params)
    for average in averages:
        present = jax.tree.map(
            lambda a, p: not isinstance(a, optax.MaskedNode), average, params, is_leaf=_masked
        )
        if any(jax.tree.leaves(jax.tree.map(lambda a, b: a and b, taken, present))):
            raise ValueError(
                "the state holds several averages of the same parameters; call eval_params on the "
                "part of the state that you mean."
            )
        taken = jax.tree.map(lambda a, b: a or b, taken, present)
        result = jax.tree.map(_choose, average, result, is_leaf=_masked)
    return result


def _choose(average: Any, leaf: jax.Array) -> jax.Array:
    return leaf if _masked(average) else lax.convert_element_type(average, leaf.dtype)


def _averages(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "eval_params")


def _masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
