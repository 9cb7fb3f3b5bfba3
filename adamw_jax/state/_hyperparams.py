"""Read, pin and unpin the hyperparameters of a running optimizer.

A pinned value replaces the number or schedule in the code until it is cleared, also after the
state is restored. Pinning does not recompile a step.

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

from adamw_jax._core.state import (
    ComposeState,
    Hyperparams,
    check_hyperparams,
    find,
    replace,
    unknown,
)

State = Any


def hyperparams(state: State) -> dict[str, jax.Array]:
    """Return the hyperparameters that the last step used, by name.

    Args:
      state: the state of a recipe of this library, under any wrapper.

    Returns:
      Scalars by name. If a state has several recipes (``optax.partition``), each name begins with
      the path of its recipe, ``inner_states/decay/inner_state/learning_rate``.

    Raises:
      ValueError: there is no recipe of this library in the state.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> state = tx.init(params)
      >>> sorted(aj.hyperparams(state))
      ['b1', 'b2', 'eps', 'learning_rate', 'weight_decay']
    """
    nodes = find(state, ComposeState)
    if not nodes:
        raise ValueError(
            f"there are no hyperparameters in this state, a {type(state).__name__}: give the state "
            "of a recipe made with compose() or of an optimizer of adamw_jax."
        )
    return {
        _prefix(path, len(nodes) > 1) + name: node.hyperparams.value(name)
        for path, node in nodes
        for name in check_hyperparams(node.hyperparams).names
    }


def set_hyperparams(
    state: State, values: Mapping[str, Any] | None = None, /, **named: Any
) -> State:
    """Pin hyperparameters to the given values.

    Args:
      state: the state of a recipe of this library, under any wrapper.
      values: values by full name, for names that are not identifiers.
      **named: values by name, ``learning_rate=3e-4``; numbers or scalar arrays.

    Returns:
      The state with the new values, each in the dtype, shape and sharding of the old one.

    Raises:
      ValueError: there is no recipe of this library in the state, or a name is unknown or belongs
        to several recipes.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> state = tx.init(params)
      >>> state = aj.set_hyperparams(state, learning_rate=0.5)
      >>> float(aj.hyperparams(state)["learning_rate"])
      0.5
    """
    wanted = {**(values or {}), **named}
    keys = {_full_name(state, name): value for name, value in wanted.items()}
    return _map(state, keys, lambda node, name, full: node.pinned_to(name, keys[full]))


def clear_hyperparams(state: State, *names: str) -> State:
    """Unpin hyperparameters, so that they follow the code again.

    Args:
      state: the state of a recipe of this library, under any wrapper.
      *names: names as in ``hyperparams``; without names, all are unpinned.

    Returns:
      The state without those pins. The next step uses the values in the code; ``hyperparams`` shows
      them after that step.

    Raises:
      ValueError: as for ``set_hyperparams``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> state = tx.init(params)
      >>> state = aj.set_hyperparams(state, learning_rate=0.5)
      >>> state = aj.clear_hyperparams(state, "learning_rate")  # the code decides again
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
        raise ValueError(f"several recipes have a hyperparameter {name!r}; give one of {ends}.")
    raise ValueError(unknown(name, [*known]))


def _map(
    state: State, keys: Collection[str], change: Callable[[Hyperparams, str, str], Hyperparams]
) -> State:
    """Apply ``change(node, name, full name)`` for every hyperparameter in ``keys``."""
    several = len(find(state, ComposeState)) > 1

    def node(path: str, found: ComposeState) -> ComposeState:
        new = found.hyperparams
        for name in new.names:
            if (full := _prefix(path, several) + name) in keys:
                new = change(new, name, full)
        return found._replace(hyperparams=new)

    return replace(state, ComposeState, node)
