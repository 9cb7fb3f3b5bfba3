"""``eval_params``: the weights to evaluate on, whatever averages the recipe keeps.

>>> import jax.numpy as jnp
>>> from adamw_jax import adam
>>> params = jnp.ones(2)
>>> eval_params(adam(1e-3).init(params), params) is params
True
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.encoded import decode_state

Tree = Any


def eval_params(state: Any, params: Tree) -> Tree:
    """Slow or averaged weights where the state holds some, else ``params``.

    A state that knows other weights than the parameters has a method ``eval_params()``, which gives
    a tree of the parameters' structure and a function of one of its leaves and the parameter.

    Args:
      state: state of any optax transformation, wrapped as deep as you like.
      params: the current parameters, which give structure and dtypes; leaves without an average
        (masked ones) are taken from here.

    Returns:
      A tree like ``params``, ``params`` itself where the state holds no average.

    Raises:
      ValueError: the state holds more than one set of averaged weights for a parameter, or the
        average of one that ``params`` does not have.
    """
    found: dict[str, tuple[jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]] = {}
    for node in jax.tree.leaves(state, is_leaf=_averages):
        if not _averages(node):
            continue
        kept, evaluate = node.eval_params()
        kept = decode_state(kept)
        for name, leaf in numerics.named_leaves(kept):
            if name in found:
                raise ValueError(
                    f"the state holds several averages of {name!r}; call eval_params on the part "
                    "of the state that you mean."
                )
            found[name] = leaf, evaluate

    def choose(name: str, leaf: jax.Array) -> jax.Array:
        if name not in found:
            return leaf
        leaf = numerics.as_arrays(leaf)
        kept, evaluate = found[name]
        return lax.convert_element_type(evaluate(kept, leaf), leaf.dtype)

    if unknown := sorted(set(found) - set(numerics.leaf_names(params))):
        raise ValueError(
            f"the state holds averages of {unknown}, which params does not have, its leaves are "
            f"{numerics.leaf_names(params)}: give the tree that init was given."
        )
    return numerics.map_named(choose, params) if found else params


def beside(scalar: Any, leaf: jax.Array) -> jax.Array:
    """A scalar of the state, made to broadcast against a leaf.

    That of a mapped state has the mapped axes, and the leaf has its own behind them; the box that
    Flax NNX puts around it is taken off.
    """
    (array,) = jax.tree.leaves(scalar)
    return array.reshape(array.shape + (1,) * (leaf.ndim - array.ndim))


def _averages(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "eval_params")
