"""Read, pin and unpin the hyperparameters of a running optimizer.

The code wins unless the user pinned a value: a pinned value stands over a number and a schedule
alike until it is cleared, across restores of the state, and none of this recompiles a step.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw
>>> state = adamw(1e-3).init(jnp.zeros(2))
>>> state = set_hyperparams(state, learning_rate=3e-4)
>>> f"{hyperparams(state)['learning_rate']:.4f}"
'0.0003'
>>> sorted(hyperparams(state))
['b1', 'b2', 'eps', 'learning_rate', 'weight_decay']
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from adamw_jax._core.state import ComposeState, Hyperparams, check_live, find, replace, unknown

State = Any


def hyperparams(state: State) -> dict[str, jax.Array]:
    """The hyperparameters that the last step used, by name.

    Args:
      state: the state of a recipe of this library, under any wrapper.

    Returns:
      Scalars by name. Where several recipes are in one state (``optax.partition``), each name is
      prefixed by the path of its recipe, ``inner_states/decay/inner_state/learning_rate``.

    Raises:
      ValueError: there is no recipe of this library in the state.
    """
    nodes = find(state, ComposeState)
    if not nodes:
        raise ValueError(
            "there are no live hyperparameters in this state: it is not the state of a recipe made "
            f"with compose() or of an optimizer of adamw_jax, but {type(state).__name__}."
        )
    return {
        _prefix(path, len(nodes) > 1) + name: node.hyperparams.value(name)
        for path, node in nodes
        for name in check_live(node.hyperparams).names
    }


def set_hyperparams(
    state: State, values: Mapping[str, Any] | None = None, /, **named: Any
) -> State:
    """A state in which hyperparameters are pinned to the given values.

    Args:
      state: the state of a recipe of this library, under any wrapper.
      values: values by full name, for names that are no identifiers.
      **named: values by name, ``learning_rate=3e-4``; numbers or scalar arrays.

    Returns:
      The state with the new values, each in the dtype, shape and sharding that the old one had.

    Raises:
      ValueError: there is no recipe of this library in the state, a name is unknown or in several
        of its recipes, or a value is out of its range or no scalar.
      TypeError: a value is not a real number.
    """
    wanted = {**(values or {}), **named}
    keys = {_full_name(state, name): value for name, value in wanted.items()}
    return _map(state, keys, lambda node, name, full: node.pinned_to(name, keys[full]))


def clear_hyperparams(state: State, *names: str) -> State:
    """A state in which the named hyperparameters follow the code again.

    Args:
      state: the state of a recipe of this library, under any wrapper.
      *names: names as in ``hyperparams``; none for all.

    Returns:
      The state without those pins. The next step computes with the code's values, which
      ``hyperparams`` shows after it.

    Raises:
      ValueError: there is no recipe of this library in the state, or a name is unknown or in
        several of its recipes.
    """
    keys = {_full_name(state, name) for name in names} or set(hyperparams(state))
    return _map(state, keys, lambda node, name, full: node.unpinned(name))


def _prefix(path: str, several: bool) -> str:
    return f"{path}/" if several and path else ""


def _full_name(state: State, name: str) -> str:
    known = hyperparams(state)
    if name in known:
        return name
    ends = [full for full in known if full.endswith(f"/{name}")]
    if ends:
        raise ValueError(f"several recipes have a hyperparameter {name!r}; say which: {ends}.")
    raise ValueError(unknown(name, [*known]))


def _map(
    state: State, keys: Collection[str], change: Callable[[Hyperparams, str, str], Hyperparams]
) -> State:
    """``state`` with ``change(node, name, full name)`` of every hyperparameter in ``keys``."""
    several = len(find(state, ComposeState)) > 1

    def node(path: str, found: ComposeState) -> ComposeState:
        live = found.hyperparams
        for name in live.names:
            if (full := _prefix(path, several) + name) in keys:
                live = change(live, name, full)
        return found._replace(hyperparams=live)

    return replace(state, ComposeState, node)
