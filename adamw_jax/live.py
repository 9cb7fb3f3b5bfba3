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

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adamw_jax.hyperparameters import domain_of, in_domain, real_number
from adamw_jax.state import ComposeState, LiveHyperparameter, find, replace

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
    return {name: _array(live.value) for name, live in _named(state).items()}


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

    def pin(name: str, live: LiveHyperparameter) -> LiveHyperparameter:
        if name not in keys:
            return live
        old = _array(live.value)
        given = real_number(keys[name], f"{name} must be a number, got", old.shape)
        if not isinstance(given, jax.core.Tracer):
            domain = domain_of(name)
            for one in np.ravel(given):
                in_domain(one, domain, f"{name} must be {domain.words}")
        value = jnp.asarray(given, old.dtype)
        # Selecting from the old array keeps its dtype, shape, placement and sharding; mapping over
        # it keeps the box that Flax NNX puts around.
        return LiveHyperparameter(
            jax.tree.map(lambda x: jnp.where(jnp.ones_like(x, bool), value, x), live.value),
            jax.tree.map(lambda x: x | True, live.pinned),
        )

    return _map(state, pin)


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
    keys = {_full_name(state, name) for name in names} or set(_named(state))

    def unpin(name: str, live: LiveHyperparameter) -> LiveHyperparameter:
        if name not in keys:
            return live
        return live._replace(pinned=jax.tree.map(lambda x: x & False, live.pinned))

    return _map(state, unpin)


def _array(value: Any) -> jax.Array:
    return jax.tree.leaves(value)[0]


def _prefix(path: str, several: bool) -> str:
    return f"{path}/" if several and path else ""


def _named(state: State) -> dict[str, LiveHyperparameter]:
    nodes = find(state, ComposeState)
    if not nodes:
        raise ValueError(
            "there are no live hyperparameters in this state: it is not the state of a recipe made "
            f"with compose() or of an optimizer of adamw_jax, but {type(state).__name__}."
        )
    return {
        _prefix(path, len(nodes) > 1) + name: live
        for path, node in nodes
        for name, live in node.hyperparams.items()
    }


def _full_name(state: State, name: str) -> str:
    known = _named(state)
    if name in known:
        return name
    ends = [full for full in known if full.endswith(f"/{name}")]
    if ends:
        raise ValueError(f"several recipes have a hyperparameter {name!r}; say which: {ends}.")
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown hyperparameter {name!r}, the state has {sorted(known)}{hint}")


def _map(state: State, change: Any) -> State:
    several = len(find(state, ComposeState)) > 1

    def node(path: str, found: ComposeState) -> ComposeState:
        prefix = _prefix(path, several)
        changed = {name: change(prefix + name, live) for name, live in found.hyperparams.items()}
        return found._replace(hyperparams=changed)

    return replace(state, ComposeState, node)
