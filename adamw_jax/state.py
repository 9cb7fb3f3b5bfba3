"""The state of a composed recipe, and how to find it under any wrapper."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from adamw_jax import numerics


class LiveHyperparameter(NamedTuple):
    """A hyperparameter in the state.

    Attributes:
      value: what the last step used, a scalar of the default float dtype.
      pinned: whether the user set it; then the code's value or schedule is not used.
    """

    value: jax.Array
    pinned: jax.Array


class ComposeState(NamedTuple):
    """State of a composed recipe.

    Attributes:
      count: updates made, int32; drives every schedule.
      hyperparams: by name, the value used at the last step and whether the user pinned it.
      stages: by stage name, the states of the stages that have one.
    """

    count: jax.Array
    hyperparams: dict[str, LiveHyperparameter]
    stages: dict[str, Any]


def restarts(node: Any) -> bool:
    """Whether a restart of the moments empties a node: its class says ``restarts = True``."""
    return getattr(type(node), "restarts", False) is True


def check_owners(state: Any) -> None:
    """Raises where two nodes own the same parameters, by the field that their class names ``owns``.

    Raises:
      ValueError: two Lookaheads hold slow weights of one parameter.
    """
    owned: set[str] = set()
    for node in jax.tree.leaves(state, is_leaf=lambda x: hasattr(type(x), "owns")):
        if not hasattr(type(node), "owns"):
            continue
        names = set(numerics.leaf_names(getattr(node, type(node).owns)))
        if both := sorted(names & owned):
            raise ValueError(
                f"two {type(node).__name__} hold {type(node).owns} weights of {both}: what one "
                "makes of the parameters would become those of the other. Leave one out."
            )
        owned |= names


def find(state: Any, kind: type) -> list[tuple[str, Any]]:
    """All nodes of a type in a state, each with its slash-separated path."""
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, kind))
    return [(numerics.leaf_name(path), node) for path, node in leaves if isinstance(node, kind)]


def replace(state: Any, kind: type, change: Any) -> Any:
    """``state`` with ``change(path, node)`` in place of every node of a type."""

    def one(path: Any, node: Any) -> Any:
        return change(numerics.leaf_name(path), node) if isinstance(node, kind) else node

    return jax.tree_util.tree_map_with_path(one, state, is_leaf=lambda x: isinstance(x, kind))
