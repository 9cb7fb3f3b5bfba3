"""The roles of arrays in a state: never negative, of either sign, or exact (not to be encoded).

A state class declares the roles of its fields in class attributes, a name or a tuple of names::

    class MaximumState(NamedTuple):
        maximum: Tree
        nonnegative = ("maximum",)  # needs no sign

    class LookaheadState(NamedTuple):
        slow: Tree
        exact = ("slow",)  # codes would lose the small terms that are added to it

For the states of optax ``optax_states`` has the roles. Names that a user chose (a label of
``optax.partition``, an entry of ``named_chain``, a stage of ``compose``) are keys of mappings, not
fields, and have no effect.

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
    """Return the role of the node at a path; the innermost class on the path decides.

    Args:
      state: a state of any transformation.
      path: key path to an array, or to a tree like the parameters.

    Returns:
      ``NONNEGATIVE``, ``EXACT``, or ``SIGNED`` if no class declares either.
    """
    role = SIGNED
    for node, key in _nodes(state, path):
        declared = _declared(type(node)) if isinstance(key, GetAttrKey) else {}
        if any(declared.values()):
            role = next((role for role, names in declared.items() if key.name in names), SIGNED)
    return role


def fields_of(state: Any, path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the fields on a path, each also with its class: ``nu`` and ``ScaleByAdamState.nu``.

    A key of a mapping counts as a field if it is the last key of the path.

    Args:
      state: a state of any transformation.
      path: key path to an array, or to a tree like the parameters.
    """
    fields: list[str] = []
    for node, key in _nodes(state, path):
        if isinstance(key, GetAttrKey):
            fields += [key.name, f"{type(node).__name__}.{key.name}"]
        elif isinstance(key, DictKey) and key is path[-1]:
            fields.append(str(key.key))
    return tuple(fields)


def _nodes(state: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Yield every node on a path with its next key; None for a node that cannot be opened."""
    for key in path:
        yield state, key
        if isinstance(key, GetAttrKey):
            state = getattr(state, key.name, None)
        elif isinstance(key, DictKey | SequenceKey) and isinstance(state, Mapping | Sequence):
            state = state[key.key if isinstance(key, DictKey) else key.idx]
        else:
            state = None


def _declared(kind: type) -> Mapping[str, tuple[str, ...]]:
    """Return the fields that a class declares, by role."""
    theirs = optax_states.fields_of(kind)
    if theirs is not None:
        return {NONNEGATIVE: theirs.nonnegative, EXACT: theirs.exact}
    named = {role: getattr(kind, role, ()) for role in (NONNEGATIVE, EXACT)}
    named = {role: (x,) if isinstance(x, str) else x for role, x in named.items()}
    return {role: names for role, names in named.items() if isinstance(names, tuple)}
