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
from jax import lax

from adamw_jax import numerics

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
    found: dict[str, Any] = {}
    for node in jax.tree.leaves(state, is_leaf=_averages):
        if not _averages(node):
            continue
        for path, average in jax.tree_util.tree_leaves_with_path(node.eval_params()):
            name = numerics.parameter_name(path)
            if name in found:
                raise ValueError(
                    f"the state holds several averages of {name!r}; call eval_params on the part "
                    "of the state that you mean."
                )
            found[name] = average

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        average = found.get(numerics.parameter_name(path))
        return leaf if average is None else lax.convert_element_type(average, leaf.dtype)

    return jax.tree_util.tree_map_with_path(choose, params) if found else params


def _averages(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "eval_params")
