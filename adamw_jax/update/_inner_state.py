"""Change the state of the inner optimizer at a Lookahead sync."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax._core import optax_states, state as states
from adamw_jax._core.encoded import decode_state, encode_like
from adamw_jax._core.record import Clock
from adamw_jax._core.state import ComposeState
from adamw_jax.moments import MomentsState

State = Any
Tree = Any

INNER_STATES = ("keep", "reset", "pullback")


def restarted(state: State, fresh: State) -> State:
    """Return ``state`` with the moments of ``fresh``; everything else stays."""
    return jax.tree.map(
        lambda old, new: new if _restarts(old) else old, state, fresh, is_leaf=_restarts
    )


def check_restart(state: State) -> None:
    """Raise an error if a state has arrays, but none that is known to be a moment."""
    known = any(map(_restarts, jax.tree.leaves(state, is_leaf=_restarts)))
    if known or states.find(state, ComposeState):
        return
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
    if any(x.ndim for x in floats):
        raise ValueError(
            'inner_state="reset" does not know which arrays of the inner state are moments: give '
            'inner_state="keep", or declare restarts = True in the class of their state.'
        )


def _restarts(node: Any) -> bool:
    theirs = optax_states.fields_of(type(node))
    return states.restarts(node) if theirs is None else theirs.restarts


def momentum_of(state: State) -> dict[str, Tree]:
    """Return the momentum in a state by field, for this library, ``optax.trace`` and optax's Adams.

    A state of this library names the fields of its momentum in ``momenta``; flags and previous
    gradients are not among them.

    Raises:
      ValueError: the state does not have exactly one momentum.
    """
    _, fields = _holder(state)
    return fields


def pulled_back(
    state: State, old: dict[str, Tree], alpha: jax.Array
) -> tuple[State, dict[str, Tree]]:
    """Return the state with momentum alpha m + (1 - alpha) old, and that momentum."""
    path, now = _holder(state)

    def mix(m: Any, o: Any) -> Any:
        if isinstance(m, Clock):
            return m.mixed(o, alpha)
        return (alpha.astype(m.dtype) * m + (1 - alpha).astype(m.dtype) * o).astype(m.dtype)

    mixed = jax.tree.map(
        mix, decode_state(now), decode_state(old), is_leaf=lambda x: isinstance(x, Clock)
    )
    mixed = encode_like(now, mixed)

    def change(p: str, node: Any) -> Any:
        if p != path:
            return node
        if isinstance(node, MomentsState):
            return node._replace(first=node.first._replace(**mixed))
        return node._replace(**mixed)

    return states.replace(state, _may_hold, change), jax.tree.map(jnp.copy, mixed)


def _momenta(node: Any) -> tuple[str, ...]:
    """Return the names of the fields that hold the momentum and its clock."""
    theirs = optax_states.fields_of(type(node))
    if theirs is not None:
        return (theirs.momentum,) if theirs.momentum else ()
    return getattr(type(node), "momenta", ())


def _may_hold(node: Any) -> bool:
    return isinstance(node, MomentsState) or bool(_momenta(node))


def _holder(state: State) -> tuple[str, dict[str, Tree]]:
    """Return the path of the momentum, and its fields."""
    found = []
    for path, node in states.find(state, _may_hold):
        if found and path.startswith(f"{found[-1][0]}/"):
            continue  # part of a MomentsState that is already found
        inner = node.first if isinstance(node, MomentsState) else node
        if names := _momenta(inner):
            found.append((path, {name: getattr(inner, name) for name in names}))
    if len(found) != 1:
        raise ValueError(
            'inner_state="pullback" needs an inner optimizer with one momentum (one of '
            f"adamw_jax, optax.sgd with momentum, optax.adam, ...), but its state has "
            f'{len(found)}: give inner_state="keep" or "reset", or another optimizer.'
        )
    return found[0]
