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
import jax.numpy as jnp
from jax import lax

from adamw_jax import numerics

Tree = Any


def eval_params(state: Any, params: Tree) -> Tree:
    """Slow or averaged weights where the state holds some, else ``params``.

    A state that holds weights has a method ``eval_params()``, which gives them and a flag: whether
    the parameters have just taken their place.

    Args:
      state: state of any optax transformation, wrapped as deep as you like.
      params: the current parameters, which give structure and dtypes; leaves without an average
        (masked ones) are taken from here.

    Raises:
      ValueError: the state holds more than one set of averaged weights for a parameter.
    """
    found: dict[str, tuple[Any, jax.Array]] = {}
    for node in jax.tree.leaves(state, is_leaf=_averages):
        if not _averages(node):
            continue
        averages, current = node.eval_params()
        for path, average in jax.tree_util.tree_leaves_with_path(averages):
            name = numerics.parameter_name(path)
            if name in found:
                raise ValueError(
                    f"the state holds several averages of {name!r}; call eval_params on the part "
                    "of the state that you mean."
                )
            found[name] = average, jax.tree.leaves(current)[0]

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        if (name := numerics.parameter_name(path)) not in found:
            return leaf
        average, current = found[name]
        if average.dtype != leaf.dtype:
            return lax.convert_element_type(average, leaf.dtype)
        # The flag of a mapped state has the mapped axes only, the leaf has its own behind them.
        current = current.reshape(current.shape + (1,) * (leaf.ndim - current.ndim))
        return jnp.where(current, leaf, average)

    return jax.tree_util.tree_map_with_path(choose, params) if found else params


def _averages(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "eval_params")
