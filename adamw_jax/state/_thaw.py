"""Leaves that join a recipe or leave it: what ``migrate_state(thaw=True)`` lets start and drop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core import masks, numerics
from adamw_jax._core.compose import Composed
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.late import LATE, clocked, group_of, groups_for, start_group
from adamw_jax._core.stage import Spec
from adamw_jax._core.state import ComposeState, nodes

Path = tuple[str, ...]


class Thaw(NamedTuple):
    """Which leaves join and leave.

    Attributes:
      params: the parameters by the path of the leaf.
      old: by the path of an array of the checkpoint, the path of its leaf.
      new: the same for the new state.
      groups: the groups of late leaves in the checkpoint.
    """

    params: Mapping[Path, Any]
    old: Mapping[Path, Path]
    new: Mapping[Path, Path]
    groups: frozenset[Any]

    @staticmethod
    def between(old: list[Path], new: list[Path], params: Any) -> Thaw:
        """Compare two states by the paths of their arrays in the recipe."""
        leaves = jax.tree_util.tree_leaves_with_path(numerics.unbox(params))
        owned = {as_names(path): leaf for path, leaf in leaves}
        groups = frozenset(path[2] for path in old if _is_late(path))
        return Thaw(owned, _owners(old, owned), _owners(new, owned), groups)

    @property
    def joining(self) -> set[Path]:
        """The leaves that have state only in the new recipe."""
        return {*self.new.values()} - {*self.old.values()}

    def starts(self, inner: Path) -> bool:
        """Return whether an array may start, since its leaf joins."""
        return self.new.get(inner) in self.joining or _is_late(inner)

    def drops(self, inner: Path) -> bool:
        """Return whether an array may be dropped, since its leaf leaves."""
        owner = self.old.get(inner)
        return _is_late(inner) or (owner is not None and owner not in self.new.values())

    def start(self, inner: Path, leaf: Any, exact: set[Path]) -> Any:
        """Return the start of an array: weights of a leaf that joins start at its value."""
        owner = self.new.get(inner)
        if owner is None or inner[: len(inner) - len(owner)] not in exact or not self.starts(inner):
            return leaf
        value = jnp.broadcast_to(jnp.asarray(self.params[owner]), jnp.shape(leaf))
        return jnp.array(value, leaf.dtype, copy=True)


def as_names(path: tuple[Any, ...]) -> Path:
    """Return a key path as names, one for each key."""
    return tuple(numerics.leaf_name((key,)) for key in path)


def exact_fields(state: Any) -> set[Path]:
    """Return the paths of the fields that hold weights."""
    held = nodes(state, lambda node: hasattr(type(node), "exact"))
    return {(*as_names(path), field) for path, node in held for field in type(node).exact}


def with_late(
    state: ComposeState, tx: Composed, params: Any, change: Thaw, thaw: bool
) -> tuple[ComposeState, dict[str, Any]]:
    """Add the clocks of leaves that join, and those that the checkpoint has, to a new state.

    Args:
      state: the state of ``tx``, not encoded.
      tx: the recipe.
      params: the parameters.
      change: which leaves join.
      thaw: whether leaves may join.

    Returns:
      The state, and the entry that was added.
    """
    known = set(change.groups)
    if thaw and change.joining:
        _check(state, tx.specs, change)
        joining = {"/".join(path) for path in change.joining}
        known |= {*groups_for(joining, ["/".join(path) for path in change.params])}
    groups = {group_of("/".join(path), known) for path in change.new.values()}
    used = sorted(group for group in groups if group is not None)
    params = numerics.unbox(numerics.as_arrays(params))
    start = start_group(tx.specs, state.stages, params)
    if not used or not start:
        return state, {}
    for group in (None, *used):
        _check_apart(group, used, state, tx, params)
    late = {LATE: {group: jax.tree.map(jnp.copy, start) for group in used}}
    return state._replace(stages={**state.stages, **late}), late


def _check(state: ComposeState, specs: Iterable[Spec], change: Thaw) -> None:
    """Raise if a stage cannot begin with some leaves later than with others."""
    for spec in specs:
        held = jax.tree_util.tree_leaves_with_path(state.stages.get(spec.name))
        owners = [change.new.get(("stages", spec.name, *as_names(path))) for path, _ in held]
        joins = any(owner in change.joining for owner in owners)
        if joins and None in owners and not (clocked(spec) or spec.tail):
            raise ValueError(
                f"thaw=True: {spec.name} has scalars for all leaves together, so none can join "
                "later. Start with tx.init(params)."
            )


def _check_apart(
    group: Any, groups: list[str], state: ComposeState, tx: Composed, params: Any
) -> None:
    """Raise if the state of a group is not a part of the whole, since leaves are packed."""
    if tx.frozen is not None:
        params = masks.hide(params, masks.resolve(tx.frozen, params, "frozen"))
    chosen = numerics.map_named(lambda name, _: group_of(name, groups) == group, params)
    for spec in tx.specs:
        if spec.name not in state.stages or not clocked(spec) or spec.init is None:
            continue
        own = _shapes(lambda p, make=spec.init: decode_state(make(p)), masks.show(params, chosen))
        if not own.items() <= _shapes(decode_state, state.stages[spec.name]).items():
            raise ValueError(
                f"thaw=True: pack_small_leaves puts leaves of {spec.name} together, so they cannot "
                "join later. Leave packing out (repack_state), or start with tx.init(params)."
            )


def _shapes(make: Callable[[Any], Any], tree: Any) -> dict[Any, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(make, tree))
    return {path: leaf.shape for path, leaf in leaves}


def _owners(paths: Iterable[Path], params: Mapping[Path, Any]) -> dict[Path, Path]:
    """Return, for each array of a parameter in a recipe, the path of the parameter."""
    inside = [path for path in paths if path[0] == "stages" and not _is_late(path)]
    whole = [path[:-1] if path[-1].endswith(("_codes", "_scales")) else path for path in inside]
    triples = zip(inside, whole, numerics.owners_in(whole, params), strict=True)
    return {path: end[start:] for path, end, start in triples if start is not None}


def _is_late(inner: Path) -> bool:
    return inner[1:2] == (LATE,)
