"""Carry a checkpoint over an edit of the recipe that changed no accumulator.

Accumulators match by stage and leaf; wrappers around the recipe, hyperparameters and tails may
come and go. What stands beside the recipe is kept where it has the same place. What is new starts
at its initial value and what has no place any more is dropped, both as the report says. Anything
else, such as AMSGrad's maximum or diffGrad's previous gradient, is refused by name.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw, compose, lookahead
>>> params = {"w": jnp.ones(2)}
>>> saved = adamw(1e-3).init(params)
>>> state, report = migrate_state(saved, compose(adamw(1e-3), lookahead()), params)
>>> report.started[1:]
('stages/lookahead/since_sync', 'stages/lookahead/slow/w')
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax._core import boxes, numerics
from adamw_jax._core.compose import Composed
from adamw_jax._core.encoded import decode_state, encode_like, is_encoded
from adamw_jax._core.stage import TAILS, transformation
from adamw_jax._core.state import ComposeState, Hyperparams, find, is_live, live_of

State = Any
Path = tuple[str, ...]


class MigrationReport(NamedTuple):
    """What ``migrate_state`` did, leaf by leaf.

    Attributes:
      kept: leaves taken from the checkpoint.
      started: leaves of the new state that start at their initial value.
      dropped: leaves of the checkpoint that the new state has no place for.
      converted: those kept whose dtype is another now.
    """

    kept: tuple[str, ...]
    started: tuple[str, ...]
    dropped: tuple[str, ...]
    converted: tuple[str, ...]


class _Live(NamedTuple):
    """One hyperparameter of a state."""

    value: Any
    pinned: Any


def migrate_state(
    saved: State, tx: optax.GradientTransformation, params: Any
) -> tuple[State, MigrationReport]:
    """The state of ``tx`` with the accumulators of ``saved``.

    Args:
      saved: a state with a recipe of this library, also as the plain dicts and lists that a restore
        without a target gives, and in the boxes of ``nnx.Optimizer``. One whose arrays are stored
        otherwise (``storage=``) is decoded and encoded anew, if it has its types. One whose floats
        have another width (saved in bfloat16, or with another ``jax_enable_x64``) is converted.
      tx: the transformation to go on with: the recipe edited, wrapped, unwrapped, with a tail more
        or less, with other hyperparameters.
      params: current parameters; slow weights and averages that are new start here.

    Returns:
      The state, of arrays of its own, and a report of what was kept, started, dropped and
      converted. Outside the recipe (schedules of ``optax.chain``, the sums of ``MultiSteps``, slow
      weights of a wrapper, moments of another optimizer) what has the same path, shape and kind of
      number is kept.

    Raises:
      ValueError: an accumulator more or less, which is no tail's, a changed parameter tree or
        shape, a pinned value that rounding moved out of its range, or states whose recipes cannot
        be told apart.
    """
    tx = transformation(tx, "tx")
    plain = numerics.unbox(saved)
    target = stored = tx.init(numerics.unbox(params))
    if _must_decode(plain, target):
        plain, target = decode_state(plain), decode_state(target)
    old, new = _leaves(plain, "saved"), _leaves(target, "the state of tx")
    origin = _matched(old.recipes, new.recipes)
    named = [spec.name for spec in tx.specs if spec.tail] if isinstance(tx, Composed) else []
    tails = TAILS | {*named}
    _check_not_mapped(old, new)
    sources = {path: origin(path) for path in new.leaves}
    taken = set(sources.values())

    kept, started, dropped, converted, problems = [], [], [], [], []
    values: dict[Path, Any] = {}
    for path, leaf in new.leaves.items():
        name, source = new.name(path), old.leaves.get(sources[path])
        inside = new.recipe_of(path) is not None
        misfit = None if source is None else _misfit(source, leaf)
        if source is None or (misfit and not inside):
            values[path] = leaf
            started.append(name)
            taken.discard(sources[path])
            if inside and not _may_start(new.inner(path), tails):
                problems.append(f"{name} is in the new recipe but not in the checkpoint")
            continue
        kept.append(name)
        if misfit:
            problems.append(f"{name} {misfit}")
            continue
        values[path] = _taken(source, leaf)
        if _dtype(source) != _dtype(leaf):
            converted.append(name)
    for path, leaf in old.leaves.items():
        if path not in taken:
            dropped.append(old.name(path))
            if old.recipe_of(path) is not None and _is_missed(old, path, leaf, new, tails, params):
                problems.append(f"{old.name(path)} is in the checkpoint but not in the new recipe")
    problems += _empty_stages(old, new, tails)
    if problems:
        raise ValueError(
            "the checkpoint does not fit the new recipe: " + "; ".join(problems) + ". Restore with "
            "the recipe and parameters that wrote it, or start with tx.init(params)."
        )
    report = MigrationReport(*(tuple(sorted(x)) for x in (kept, started, dropped, converted)))
    filled = encode_like(stored, _filled(target, values))
    for _, live in find(filled, Hyperparams):
        live.check_pins(live.names.domains)
    return boxes.boxed(filled, tx, params, saved), report


def _check_not_mapped(old: _Leaves, new: _Leaves) -> None:
    for root in old.recipes:
        shape = np.shape(old.leaves.get((*root, "count"), 0))
        if shape and not any(np.shape(new.leaves[(*at, "count")]) for at in new.recipes):
            raise ValueError(
                f"saved is the state of {shape[0]} mapped runs: migrate each of them, with "
                "jax.vmap(lambda saved, params: migrate_state(saved, tx, params)[0])."
            )


class _Leaves(NamedTuple):
    """The leaves of a state by their paths, hyperparameters one by one.

    Attributes:
      leaves: by path.
      recipes: paths of the recipes, the outermost ones.
      stages: by the path of a recipe that has its type, the names of its stages.
    """

    leaves: dict[Path, Any]
    recipes: list[Path]
    stages: dict[Path, set[str]]

    def recipe_of(self, path: Path) -> Path | None:
        """The recipe that a leaf is in."""
        return next((root for root in self.recipes if path[: len(root)] == root), None)

    def inner(self, path: Path) -> Path:
        """The path inside its recipe."""
        root = self.recipe_of(path)
        return path if root is None else path[len(root) :]

    def name(self, path: Path) -> str:
        """What the report calls it: inside the one recipe by the path there, else by the whole."""
        return "/".join(self.inner(path) if len(self.recipes) == 1 else path)


def _leaves(state: State, what: str) -> _Leaves:
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_recipe)
    found = {_path(path): node for path, node in nodes if _is_recipe(node)}
    if not found:
        raise ValueError(
            f"{what} holds no recipe of adamw_jax: from_optax and to_optax carry states over from "
            "and to the optimizers of optax."
        )
    leaves: dict[Path, Any] = {}
    named = {(*root, "hyperparams") for root in found}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_live):
        if not is_live(leaf):  # values by name, as a walk over mappings gives them, are not pinned
            bare = _path(path)[:-1] in named
            leaves[_path(path)] = _Live(leaf, jnp.zeros([], jnp.bool_)) if bare else leaf
            continue
        for name, value, pinned in live_of(leaf):
            leaves[(*_path(path), name)] = _Live(value, pinned)
    typed = {root: node for root, node in found.items() if isinstance(node, ComposeState)}
    return _Leaves(leaves, [*found], {root: set(node.stages) for root, node in typed.items()})


def _is_recipe(node: Any) -> bool:
    """Whether a node is the state of a recipe, be it without its type."""
    if isinstance(node, ComposeState):
        return True
    if not isinstance(node, Mapping) or not {*node} <= {*ComposeState._fields}:
        return False
    # A parameter may be called count, too, but is no whole number.
    count = jnp.issubdtype(getattr(node.get("count"), "dtype", float), jnp.integer)
    return count and ("stages" in node or is_live(node.get("hyperparams")))


def _path(path: tuple[Any, ...]) -> Path:
    return tuple(numerics.leaf_name((key,)) for key in path)


def _matched(old: list[Path], new: list[Path]) -> Any:
    """From paths of the new state to those of the old one that mean the same, or None."""
    if len(old) == len(new) == 1:
        roots = {new[0]: old[0]}
    elif set(old) == set(new):
        roots = {root: root for root in new}
    else:
        raise ValueError(
            f"the recipes of saved are at {_shown(old)}, those of the state of tx at {_shown(new)}:"
            " migrate the recipes of a partition one by one, or keep its labels."
        )

    def origin(path: Path) -> Path | None:
        for mine, theirs in roots.items():
            if path[: len(mine)] == mine:
                return (*theirs, *path[len(mine) :])
        inside = any(path[: len(theirs)] == theirs for theirs in roots.values())
        return None if inside else path

    return origin


def _shown(paths: list[Path]) -> list[str]:
    return ["/".join(path) or "the root" for path in paths]


def _must_decode(saved: State, target: State) -> bool:
    """Whether arrays are stored otherwise; codes that lost their types are known by their names."""
    layouts = [_layouts(state) for state in (saved, target)]
    if layouts[0] == layouts[1]:
        return False
    names = {_path(path)[-1] for path, _ in jax.tree_util.tree_leaves_with_path(saved)}
    return bool(layouts[0]) or not any(f"{name}_codes" in names for name in layouts[1])


def _layouts(state: State) -> list[str]:
    nodes = jax.tree.leaves(state, is_leaf=is_encoded)
    return sorted(node.layout.name for node in nodes if is_encoded(node))


def _stage_of(inner: Path) -> str | None:
    return inner[1] if inner[0] == "stages" else None


def _may_start(inner: Path, tails: set[str]) -> bool:
    return inner[0] == "hyperparams" or _stage_of(inner) in tails


def _is_missed(
    old: _Leaves, path: Path, leaf: Any, new: _Leaves, tails: set[str], params: Any
) -> bool:
    """Whether a leaf that has no place any more is an accumulator."""
    inner = old.inner(path)
    stage = _stage_of(inner)
    if stage is None or stage in tails:
        return False
    if stage in {_stage_of(new.inner(p)) for p in new.leaves}:
        return True
    owners = jax.tree_util.tree_leaves_with_path(numerics.unbox(params))
    return any(
        inner[len(inner) - len(owner) :] == _path(owner) and jnp.shape(leaf) == jnp.shape(param)
        for owner, param in owners
    )


def _empty_stages(old: _Leaves, new: _Leaves, tails: set[str]) -> list[str]:
    """Stages without arrays that come or go, and change what an accumulator means."""
    if len(old.recipes) != 1 or not old.stages:
        return []
    gone, come = (x.stages[x.recipes[0]] for x in (old, new))
    held = {_stage_of(x.inner(path)) for x in (old, new) for path in x.leaves}
    return [
        f"{name} is in only one of the two, the checkpoint or the new recipe"
        for name in sorted((gone ^ come) - held - tails)
    ]


def _dtype(leaf: Any) -> Any:
    return jnp.result_type(leaf.value if isinstance(leaf, _Live) else leaf)


def _misfit(old: Any, new: Any) -> str | None:
    """Why a leaf of the checkpoint cannot stand in a place, or None."""
    if isinstance(new, _Live):
        fits = isinstance(old, _Live) and np.shape(old.value) in ((), np.shape(new.value))
        return None if fits else "has another shape in the checkpoint"
    if isinstance(old, _Live) or np.shape(old) != np.shape(new):
        return f"has shape {np.shape(old)} in the checkpoint and {np.shape(new)} now"
    dtypes = _dtype(old), _dtype(new)
    for kind in (jnp.floating, jnp.complexfloating):
        if all(jnp.issubdtype(dtype, kind) for dtype in dtypes):
            return None
    if dtypes[0] == dtypes[1]:
        return None
    return f"is {dtypes[0]} in the checkpoint and {dtypes[1]} now"


def _taken(old: Any, new: Any) -> Any:
    """A leaf of the checkpoint in the dtype of the new one, in a buffer of its own."""
    if not isinstance(new, _Live):
        return jnp.array(old, dtype=_dtype(new), copy=True)
    value = jnp.broadcast_to(jnp.asarray(old.value, new.value.dtype), jnp.shape(new.value))
    pinned = jnp.broadcast_to(jnp.asarray(old.pinned), jnp.shape(new.value))
    return _Live(value, pinned)


def _filled(target: State, values: dict[Path, Any]) -> State:
    """``target`` with the values of its leaves."""

    def fill(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Hyperparams):
            return values[_path(path)]
        live = [values[(*_path(path), name)] for name in leaf.names]
        return leaf.filled([one.value for one in live], [one.pinned for one in live])

    return jax.tree_util.tree_map_with_path(fill, target, is_leaf=is_live)
