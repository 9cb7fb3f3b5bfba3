"""Return the weights to evaluate, averaged if the recipe averages them.

>>> import jax.numpy as jnp
>>> from adamw_jax import adam
>>> params = jnp.ones(2)
>>> eval_params(adam(1e-3).init(params), params) is params
True
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from adamw_jax._core import numerics, optax_states, state as states
from adamw_jax._core.encoded import decode_state

Tree = Any


def eval_params(state: Any, params: Tree) -> Tree:
    """Return the slow or averaged weights in a state, or ``params`` if it has none.

    A state with other weights than the parameters has a method ``eval_params()``. It returns a tree
    with the structure of the parameters, and a function of a leaf of this tree and the parameter.
    Under ``optax.flatten`` this tree is one vector; it is cut into the leaves of ``params``.

    Args:
      state: state of any optax transformation, under any number of wrappers. Those of
        ``optax.contrib.schedule_free`` and ``optax.contrib.sam`` are known, too.
      params: the current parameters, which give structure and dtypes, and the leaves without an
        average (masked ones). Of an ``optax.LookaheadParams`` the slow weights count.

    Returns:
      A tree like ``params``; ``params`` itself if the state has no average.

    Raises:
      TypeError: the state is of ``optax.lookahead``, and ``params`` are no ``LookaheadParams``.
      ValueError: the state has two averages of a parameter, or the average of a parameter that
        ``params`` lacks or has in another shape.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.lookahead(aj.adamw(1e-3))
      >>> slow = aj.eval_params(tx.init(params), params)
    """
    if isinstance(params, optax.LookaheadParams):
        params = params.slow
    elif states.find(state, optax.LookaheadState):
        raise TypeError(
            "the state is of optax.lookahead, whose weights to evaluate are the slow ones: give "
            "the whole LookaheadParams as params, not its fast weights."
        )
    found: dict[str, tuple[jax.Array, Callable[[jax.Array, jax.Array], jax.Array]]] = {}
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=averages):
        if not averages(node):
            continue
        kept, evaluate = _other_weights(numerics.on_device(node))
        kept = decode_state(kept)
        for name, leaf in numerics.named_leaves(kept):
            if name in found:
                raise ValueError(
                    f"the state holds several averages of {name!r}: call eval_params on one part "
                    f"of the state, such as state{jax.tree_util.keystr(path)}."
                )
            found[name] = leaf, evaluate

    def choose(name: str, leaf: jax.Array) -> jax.Array:
        if name not in found:
            return leaf
        leaf = numerics.as_arrays(leaf)
        (kept, evaluate), average = found[name], None
        with contextlib.suppress(TypeError, ValueError):  # shapes that cannot be broadcast
            average = evaluate(kept, leaf)
        if average is None or average.shape != leaf.shape:
            raise ValueError(
                f"the average of {name!r} has shape {kept.shape}, the parameter in params "
                f"{leaf.shape}: give the tree that init was given."
            )
        return lax.convert_element_type(average, leaf.dtype)

    if [*found] == [""] and _joined(found[""][0], params):
        vector, cut = ravel_pytree(params)
        return cut(choose("", vector))
    if unknown := sorted(set(found) - set(numerics.leaf_names(params))):
        raise ValueError(
            f"the state holds averages of {unknown}, which params does not have (its leaves are "
            f"{numerics.leaf_names(params)}): give the tree that init was given, or for a part of "
            "the state the parameters of that part."
        )
    return numerics.map_named(choose, params) if found else params


def _joined(kept: jax.Array, params: Tree) -> bool:
    """Return whether ``kept`` is of all leaves of ``params``, joined by ``optax.flatten``."""
    leaves = numerics.named_leaves(numerics.as_arrays(params))
    itself = any(not name and kept.shape[kept.ndim - x.ndim :] == x.shape for name, x in leaves)
    return kept.shape[-1:] == (sum(x.size for _, x in leaves),) and not itself


def averages(node: Any) -> bool:
    """Return whether a node of a state holds other weights than the parameters."""
    return isinstance(node, tuple) and _other_weights(node) is not None


def _other_weights(node: Any) -> Any:
    """Return what ``eval_params()`` of a state returns, None if it has no such method."""
    if hasattr(node, "eval_params"):
        return node.eval_params()
    theirs = optax_states.fields_of(type(node))
    return theirs and theirs.eval_params and theirs.eval_params(node)
