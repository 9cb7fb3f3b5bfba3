"""Leaves that join a recipe or leave it: what ``migrate_state(thaw=True)`` lets start and drop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core import masks, numerics
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.late import LATE, clocked, group_of, groups_for, start_group
from adamw_jax._core.passes import Recipe
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


def late_of(
    state: ComposeState, recipe: Recipe, params: Any, change: Thaw, thaw: bool
) -> dict[str, Any]:
    """Return the clocks of leaves that join, and of those that the checkpoint has.

    Args:
      state: the new state of the recipe, not encoded.
      recipe: the recipe.
      params: the parameters.
      change: which leaves join.
      thaw: whether leaves may join.

    Returns:
      The entry for the stages of the state; empty if no leaf is late.
    """
    known = set(change.groups)
    if thaw and change.joining:
        _check(state, recipe.specs, change)
        joining = {"/".join(path) for path in change.joining}
        known |= {*groups_for(joining, ["/".join(path) for path in change.params])}
    groups = {group_of("/".join(path), known) for path in change.new.values()}
    used = sorted(group for group in groups if group is not None)
    params = numerics.unbox(numerics.as_arrays(params))
    start = start_group(recipe.specs, state.stages, params)
    if not used or not start:
        return {}
    for group in (None, *used):
        _check_apart(group, used, state, recipe, params)
    return {LATE: {group: jax.tree.map(jnp.copy, start) for group in used}}


def _check(state: ComposeState, specs: Iterable[Spec], change: Thaw) -> None:
    """Raise if a stage cannot begin with some leaves later than with others."""
    for spec in specs:
        held = jax.tree_util.tree_leaves_with_path(state.stages.get(spec.name))
        owners = [change.new.get(("stages", spec.name, *as_names(path))) for path, _ in held]
        joins = any(owner in change.joining for owner in owners)
        if joins and None in owners and not (clocked(spec) or spec.tail):
            raise ValueError(
                f"thaw=True: {spec.name} has scalars for all leaves together, so none can join "
                "later. Start all again with tx.init(params), or give the leaves that join an "
                "optimizer of their own: train with optax.partition({'rest': tx, 'late': "
                "optax.set_to_zero()}, labels), and go on with {'rest': tx, 'late': tx}, whose "
                "state is new.init(params) with inner_states['rest'] of the old one."
            )


def _check_apart(
    group: Any, groups: list[str], state: ComposeState, recipe: Recipe, params: Any
) -> None:
    """Raise if the state of a group is not a part of the whole, since leaves are packed."""
    if recipe.frozen is not None:
        params = masks.hide(params, masks.resolve(recipe.frozen, params, "frozen"))
    chosen = numerics.map_named(lambda name, _: group_of(name, groups) == group, params)
    for spec in recipe.specs:
        if spec.name not in state.stages or not clocked(spec) or spec.init is None:
            continue
        own = _shapes(lambda p, make=spec.init: decode_state(make(p)), masks.show(params, chosen))
        if not own.items() <= _shapes(decode_state, state.stages[spec.name]).items():
            raise ValueError(
                f"thaw=True: pack_small_leaves puts leaves of {spec.name} together, so they cannot "
                "join later. Go on without packing: convert the state with repack_state(saved, "
                "old, params), where old is the old recipe without pack_small_leaves, then call "
                "migrate_state with that state and tx without pack_small_leaves."
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
