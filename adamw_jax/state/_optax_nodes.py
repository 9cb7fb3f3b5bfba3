"""Find and read the states of optax inside a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import GetAttrKey

from adamw_jax._core import optax_states, state as states
from adamw_jax.moments import (
    AverageState,
    CenteredSquaresState,
    HeavyBallState,
    InfinityNormState,
    SquaresState,
)

State = Any


def is_zero(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and not np.any(np.asarray(x))


def fields_of(theirs: Any) -> optax_states.Fields:
    return optax_states.fields_of(type(theirs)) or optax_states.Fields()


GO_ON = (
    "To go on with it, keep the optimizer: "
    "tx = compose(('name', as_optimizer(...)), ...), and then "
    "state = tx.init(params); state._replace(stages={**state.stages, 'name': saved})."
)
"""What to do with a state that cannot be converted."""


def _has_moments(node: Any) -> bool:
    """Return whether a node is a state of optax with more than schedules and other states."""
    fields = optax_states.fields_of(type(node))
    return fields is not None and not fields.wraps and bool(jax.tree.leaves(node))


def _is_known(node: Any) -> bool:
    """Return whether a recipe can continue with the moments in a state of optax."""
    parts = (AverageState, HeavyBallState, SquaresState, CenteredSquaresState, InfinityNormState)
    twins = {twin.partition(".")[0] for part in parts for twin in part.twins}
    return optax_states.fields_of(type(node)) is not None and type(node).__name__ in twins


def holders_of(state: State) -> dict[Any, Any]:
    """Return the named tuples in a state by path."""
    return {path: node for path, node in states.nodes(state, tuple) if hasattr(node, "_fields")}


def holder_of(holders: Mapping[Any, Any], path: Any) -> Any:
    """Return the innermost named tuple around a leaf, or None."""
    starts = [path[:n] for n in range(len(path) + 1) if path[:n] in holders]
    return holders[starts[-1]] if starts else None


def _of_optax(state: State) -> list[tuple[Any, Any]]:
    """Find the named tuples of optax in a state, with their paths."""
    found = holders_of(state).items()
    return [(path, node) for path, node in found if optax_states.fields_of(type(node)) is not None]


def schedule_count(state: State) -> jax.Array | None:
    """Return the count of the schedules in a state of optax, or None without schedules.

    Raises:
      ValueError: their counts differ.
    """
    counts = [node.count for _, node in _of_optax(state) if fields_of(node).schedules]
    known = [int(count) for count in counts if not isinstance(count, jax.core.Tracer)]
    if len(set(known)) > 1:
        raise ValueError(
            f"the schedules of the saved state have counts {sorted(set(known))}, but a recipe has "
            "one count for all: continue with the schedules of optax in optax.chain."
        )
    return counts[0] if counts else None


def with_schedule_count(state: State, count: jax.Array) -> State:
    places = [path for path, node in _of_optax(state) if fields_of(node).schedules]
    keys = {(*path, GetAttrKey("count")) for path in places}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.array(count, x.dtype, copy=True) if path in keys else x, state
    )


def check_understood(saved: State) -> None:
    """Raise if a state of optax holds more than moments, schedules and empty sums."""
    holders = holders_of(saved)
    for path, _ in jax.tree_util.tree_leaves_with_path(saved):
        holder = holder_of(holders, path)
        empty = isinstance(holder, optax.MultiStepsState) and is_zero(holder.mini_step)
        if holder is None or empty or fields_of(holder).wraps or _is_known(holder):
            continue
        raise ValueError(
            f"the saved state has a {type(holder).__name__}, which no recipe of adamw_jax can "
            f"convert, so it would be lost. {GO_ON} Convert a MultiStepsState only when its sums "
            "are empty."
        )


def their_state(saved: State) -> Any:
    found = states.find(saved, _is_known)
    others = sorted({type(node).__name__ for _, node in states.find(saved, _has_moments)})
    if not found and others:
        raise ValueError(
            f"the saved state is of {', '.join(others)}, which no recipe of adamw_jax can convert. "
            f"{GO_ON}"
        )
    if len(found) != 1:
        raise ValueError(
            "expected one state of optax's Adam family, AdaBelief or SGD with momentum, found "
            f"{len(found)}; restore the checkpoint into the optax optimizer's own state first."
        )
    return found[0][1]
