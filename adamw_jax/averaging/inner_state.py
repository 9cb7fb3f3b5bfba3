"""What a Lookahead sync may do to the state of the optimizer inside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamw_jax import state as states
from adamw_jax.moments.estimate import MomentsState
from adamw_jax.state import ComposeState
from adamw_jax.storage.encoded import decode_state, encode_like

State = Any
Tree = Any

INNER_STATES = ("keep", "reset", "pullback")


def restarted(state: State, fresh: State) -> State:
    """``state`` with its moments as at the start.

    A recipe of this library keeps its step count and hyperparameters, so that schedules go on; any
    other state is replaced whole.
    """
    recipes = states.find(state, ComposeState)
    if not recipes:
        return fresh
    starts = dict(states.find(fresh, ComposeState))
    return states.replace(
        state, ComposeState, lambda path, node: node._replace(stages=starts[path].stages)
    )


def momentum_of(state: State) -> Tree:
    """The first moments in a state: of this library, ``optax.trace`` and optax's Adam family.

    Raises:
      ValueError: there is none, or more than one.
    """
    found = states.find(state, MomentsState) or _optax_momenta(state)
    if len(found) != 1:
        raise ValueError(
            'inner_state="pullback" needs an inner optimizer with one momentum (an optimizer of '
            f"adamw_jax, optax.sgd with momentum, optax.adam, ...), its state has {len(found)}."
        )
    node = found[0][1]
    return node.first if isinstance(node, MomentsState) else _momentum_field(node)


def pulled_back(state: State, old: Tree, alpha: jax.Array) -> tuple[State, Tree]:
    """The state with momentum alpha m + (1 - alpha) old, and that momentum."""
    now = momentum_of(state)
    mixed = jax.tree.map(
        lambda m, o: (alpha.astype(m.dtype) * m + (1 - alpha).astype(m.dtype) * o).astype(m.dtype),
        decode_state(now),
        decode_state(old),
    )
    mixed = encode_like(now, mixed)
    if states.find(state, MomentsState):
        new = states.replace(state, MomentsState, lambda _, node: node._replace(first=mixed))
    else:
        path = _optax_momenta(state)[0][0]
        new = states.replace(
            state,
            _HOLDERS,
            lambda p, node: _with_momentum(node, mixed) if p == path else node,
        )
    return new, jax.tree.map(jnp.copy, mixed)


_HOLDERS: Any = (
    optax.TraceState,
    optax.ScaleByAdamState,
    optax.ScaleByAmsgradState,
    optax.ScaleByBeliefState,
    optax.ScaleByLionState,
)


def _optax_momenta(state: State) -> list[tuple[str, Any]]:
    return states.find(state, _HOLDERS)


def _momentum_field(node: Any) -> Tree:
    return node.trace if isinstance(node, optax.TraceState) else node.mu


def _with_momentum(node: Any, value: Tree) -> Any:
    if isinstance(node, optax.TraceState):
        return node._replace(trace=value)
    return node._replace(mu=value)
