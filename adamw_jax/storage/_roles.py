"""What the arrays of a state are: never negative, of either sign, or not to become codes at all.

A state class says so itself, in class attributes that name its fields, one or a tuple of them::

    class MaximumState(NamedTuple):
        maximum: Tree
        nonnegative = ("maximum",)  # takes the map without a sign

    class LookaheadState(NamedTuple):
        slow: Tree
        exact = ("slow",)  # parameters, or what small terms are added to: codes would lose those

``optax_states`` says it for the states of optax. Names that a user chose (a label of
``optax.partition``, an entry of ``named_chain``, a stage of ``compose``) are keys of mappings and
not fields: they decide nothing.

>>> import jax, optax
>>> state = optax.adam(1e-3).init({"nu": 0.0})
>>> [role_of(state, path) for path, _ in jax.tree_util.tree_leaves_with_path(state)][1:]
['signed', 'nonnegative']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from adamw_jax._core import optax_states

NONNEGATIVE, SIGNED, EXACT = "nonnegative", "signed", "exact"


def role_of(state: Any, path: tuple[Any, ...]) -> str:
    """What the classes along a path say of what it leads to; the innermost one decides.

    Args:
      state: of any transformation.
      path: of keys, to an array or to a tree shaped like the parameters.

    Returns:
      ``NONNEGATIVE``, ``EXACT``, or ``SIGNED`` where no class says either.
    """
    role = SIGNED
    for node, key in _nodes(state, path):
        declared = _declared(type(node)) if isinstance(key, GetAttrKey) else {}
        if any(declared.values()):
            role = next((role for role, names in declared.items() if key.name in names), SIGNED)
    return role


def fields_of(state: Any, path: tuple[Any, ...]) -> tuple[str, ...]:
    """The fields along a path, each also with its class: ``nu`` and ``ScaleByAdamState.nu``.

    Of a transformation whose state is a plain mapping its last key is one.

    Args:
      state: of any transformation.
      path: of keys, to an array or to a tree shaped like the parameters.
    """
    fields: list[str] = []
    for node, key in _nodes(state, path):
        if isinstance(key, GetAttrKey):
            fields += [key.name, f"{type(node).__name__}.{key.name}"]
        elif isinstance(key, DictKey) and key is path[-1]:
            fields.append(str(key.key))
    return tuple(fields)


def _nodes(state: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Every node on the way with the key that leads on; None in the place of an opaque one."""
    for key in path:
        yield state, key
        if isinstance(key, GetAttrKey):
            state = getattr(state, key.name, None)
        elif isinstance(key, DictKey | SequenceKey) and isinstance(state, Mapping | Sequence):
            state = state[key.key if isinstance(key, DictKey) else key.idx]
        else:
            state = None


def _declared(kind: type) -> Mapping[str, tuple[str, ...]]:
    """The fields that a class names, by their role."""
    theirs = optax_states.fields_of(kind)
    if theirs is not None:
        return {NONNEGATIVE: theirs.nonnegative, EXACT: theirs.exact}
    named = {role: getattr(kind, role, ()) for role in (NONNEGATIVE, EXACT)}
    named = {role: (x,) if isinstance(x, str) else x for role, x in named.items()}
    return {role: names for role, names in named.items() if isinstance(names, tuple)}
