"""Start slow weights and averages of weights again from the parameters.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax import adamw, compose, eval_params, lookahead
>>> tx = compose(adamw(1e-3), lookahead())
>>> poisoned = jax.tree.map(lambda x: x * jnp.nan, tx.init(jnp.ones(2)).stages["lookahead"].slow)
>>> state = tx.init(poisoned)
>>> eval_params(restart_averages(state, tx, jnp.ones(2)), jnp.ones(2))
Array([1., 1.], dtype=float32)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamw_jax._core import numerics, state as states
from adamw_jax._core.boxes import boxed
from adamw_jax._core.stage import transformation
from adamw_jax.update._eval_params import averages
from adamw_jax.update._inner_state import momentum_of
from adamw_jax.update._lookahead import LookaheadWrapperState

Tree = Any


def restart_averages(state: Any, tx: optax.GradientTransformation, params: Tree) -> Any:
    """Set slow weights and averages back to the parameters, after you have put others in.

    If a run was not guarded and NaN got into it, good parameters alone do not help: at the next
    sync Lookahead moves them to slow weights that are NaN, and averages stay NaN. Then call
    ``restart_moments`` and this function. Histories of norms, which neither restores, stay as they
    are::

        state = restart_averages(restart_moments(state), tx, good_params)

    Args:
      state: the state of ``tx``.
      tx: the optimizer.
      params: the parameters to go on with.

    Returns:
      The state with every node that ``eval_params`` reads as ``tx.init(params)`` makes it:
      Lookahead as right after a sync, ``average_iterates`` before its first collection,
      schedule-free's iterate at the parameters, KOALA-M's filter at its start. With
      ``lookahead(inner_state="pullback")`` the momentum of the last sync is the present one. Step
      count, schedules, hyperparameters, moments and rounding keys stay.

    Raises:
      ValueError: ``state`` is not of ``tx``, or holds no averages.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.compose(aj.adamw(1e-3), aj.average_iterates())
      >>> state = aj.update.restart_averages(tx.init(params), tx, params)
    """
    tx = transformation(tx, "tx")
    plain = numerics.on_device(numerics.unbox(state))
    fresh = tx.init(numerics.unbox(numerics.as_arrays(params)))
    if not any(map(averages, jax.tree.leaves(plain, is_leaf=averages))):
        raise ValueError(
            f"there are no slow weights or averages in this state, a {type(state).__name__}: "
            "so there is nothing to restart."
        )
    if jax.tree.structure(plain) != jax.tree.structure(fresh):
        raise ValueError(
            "the state has another structure than tx.init(params): give the optimizer and the "
            "parameters of this state."
        )

    def one(old: Any, new: Any) -> Any:
        return new if averages(old) else old

    def synced(_: str, node: LookaheadWrapperState) -> LookaheadWrapperState:
        if not jax.tree.leaves(node.momentum):
            return node
        return node._replace(momentum=jax.tree.map(jnp.copy, momentum_of(node.inner)))

    made = jax.tree.map(one, plain, fresh, is_leaf=averages)
    made = states.replace(made, LookaheadWrapperState, synced)
    return numerics.in_memory_of(boxed(made, tx, params, state), state)
