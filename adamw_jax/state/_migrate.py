"""``migrate_state``: convert a checkpoint to an edited recipe with the same accumulators.

Accumulators are matched by stage and leaf. Wrappers, hyperparameters and tails (stages such as
``lookahead``, whose state may come and go) may be added or removed. New leaves start at their
initial value, leaves without a place are dropped, and the report names both. Leaves outside the
recipe are kept if they have the same place. If another accumulator is missing or in excess, such as
AMSGrad's maximum or diffGrad's previous gradient, an error names it.

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
from adamw_jax._core.checks import switch
from adamw_jax._core.encoded import decode_state, encode_like, is_encoded
from adamw_jax._core.late import LATE
from adamw_jax._core.passes import recipes_started
from adamw_jax._core.stage import TAILS, transformation
from adamw_jax._core.state import (
    ComposeState,
    Hyperparams,
    find,
    replace,
)
from adamw_jax.state._leaves import (
    Leaves,
    Path,
    check_kinds,
    copied_leaf,
    dtype_of,
    leaves_of,
    path_of,
    why_misfit,
    with_values,
)
from adamw_jax.state._thaw import Thaw, exact_fields, late_of

State = Any


class MigrationReport(NamedTuple):
    """A report of ``migrate_state``: what happened to each leaf.

    Attributes:
      kept: leaves taken from the checkpoint.
      started: leaves of the new state that start at their initial value.
      dropped: leaves of the checkpoint that have no place in the new state.
      converted: kept leaves whose dtype has changed.
    """

    kept: tuple[str, ...]
    started: tuple[str, ...]
    dropped: tuple[str, ...]
    converted: tuple[str, ...]


def migrate_state(
    saved: State, tx: optax.GradientTransformation, params: Any, *, thaw: bool = False
) -> tuple[State, MigrationReport]:
    """Return the state of ``tx`` with the accumulators of ``saved``.

    Args:
      saved: a state with a recipe of this library. It may consist of the plain dicts and lists of a
        restore without a target, and may be in the boxes of ``nnx.Optimizer``. Arrays in another
        ``storage`` are decoded and encoded again, if the state has its types. Floats of another
        width (saved in bfloat16, or with another ``jax_enable_x64``) are converted. Without such a
        recipe, as in ``quantize_state(optax.adamw(...))``, ``tx`` must have the same arrays; the
        types of a plain state cannot be compared, so give the optimizer that wrote it.
      tx: the transformation to continue with: the recipe edited, wrapped, unwrapped, with a tail
        added or removed, or with other hyperparameters.
      params: current parameters; new slow weights and averages start here.
      thaw: whether leaves may join, which were frozen before, or leave, because they are frozen
        now. The moments of a leaf that joins start anew, with a clock and a count of their own, as
        in PyTorch, so its first steps are those of a fresh optimizer. Schedules, pinned values and
        all other leaves go on. ``tx`` and ``saved`` then hold one recipe of this library, which may
        be in a wrapper (``optax.MultiSteps``, ``quantize_state``, ``optax.chain``). Averages of the
        weights and Lookahead count the frozen value as the past of the leaf. What a stage knows of
        all leaves together, such as norms of the gradient, goes on.

    Returns:
      The state, in arrays of its own and in the memory of the host if ``saved`` was, and a report
      of what was kept, started, dropped and converted. Leaves outside the recipe (schedules of
      ``optax.chain``, sums of ``MultiSteps``, slow weights of a wrapper, moments of another
      optimizer) are kept if path, shape and kind of number are the same.

    Raises:
      ValueError: an accumulator that does not belong to a tail was added or removed, the parameter
        tree or a shape changed, with ``thaw`` a stage has scalars for all leaves together
        (KOALA-M) or leaves are packed, a pinned value is out of its range after rounding, or the
        recipes of the two states cannot be matched.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> state = tx.init(params)
      >>> tx = aj.compose(aj.adamw(1e-3), aj.lookahead())
      >>> state, report = aj.migrate_state(state, tx, params)
    """
    tx = transformation(tx, "tx")
    switch("thaw", thaw)
    plain = numerics.on_device(numerics.unbox(saved))
    with recipes_started() as started:
        target: Any = tx.init(numerics.unbox(numerics.as_arrays(params)))
    stored = target
    if _must_decode(plain, target, thaw):
        plain, target = decode_state(plain), decode_state(target)
    old, new = leaves_of(plain), leaves_of(target)
    check_kinds(plain, old, target, new)
    change, exact = _change(old, new, params, thaw), set()
    if change is not None:
        ((_, node),) = find(target, ComposeState)
        late = late_of(node, started[0], params, change, thaw)
        target, stored = (_joined(state, late) for state in (target, stored))
        new, exact = leaves_of(target), exact_fields(node)
    tails = TAILS | {spec.name for recipe in started for spec in recipe.specs if spec.tail}
    values, report = _fill(old, new, tails, params, change if thaw else None, exact)
    filled = encode_like(stored, with_values(target, values))
    for _, node in find(filled, Hyperparams):
        node.check_pins(node.names.domains)
    late = find(filled, ComposeState)[0][1].stages if change is not None else {}
    late = {LATE: late[LATE]} if LATE in late else {}
    shaped = tx._replace(init=lambda params: _joined(tx.init(params), late))
    return numerics.in_memory_of(boxes.boxed(filled, shaped, params, saved), saved), report


def _joined(state: Any, late: Mapping[str, Any]) -> Any:
    """Return a state with the entry of late leaves in its recipe, if there is one."""

    def join(path: str, node: ComposeState) -> ComposeState:
        return node._replace(stages={**node.stages, **late})

    return replace(state, ComposeState, join) if late else state


def _change(old: Leaves, new: Leaves, params: Any, thaw: bool) -> Thaw | None:
    """Compare the leaves of two recipes; None if there are several."""
    if len(old.recipes) == len(new.recipes) == 1:
        was, now = ([side.inner(path) for path in side.leaves] for side in (old, new))
        return Thaw.between(was, now, params)
    if thaw:
        raise ValueError(
            "thaw=True needs one recipe in tx and in saved: thaw the recipes of a partition one "
            "after the other."
        )
    return None


def _fill(
    old: Leaves,
    new: Leaves,
    tails: set[str],
    params: Any,
    change: Thaw | None,
    exact: set[Path],
) -> tuple[dict[Path, Any], MigrationReport]:
    """Return the values of the new leaves, and the report; raise if the two do not fit."""
    origin = _matched(old.recipes, new.recipes)
    _check_not_mapped(old, new)
    sources = {path: origin(path) for path in new.leaves}
    values: dict[Path, Any] = {}
    kept, started, converted, problems = [], [], [], []
    for path, leaf in new.leaves.items():
        name, source = new.name(path), old.leaves.get(sources[path])
        inside, inner = new.must_fit(path), new.inner(path)
        misfit = None if source is None else why_misfit(source, leaf)
        if source is None or (misfit and not inside):
            values[path] = leaf if change is None else change.start(inner, leaf, exact)
            started.append(name)
            del sources[path]
            joins = change is not None and change.starts(inner)
            if inside and not (joins or (new.recipes and _may_start(inner, tails))):
                problems.append(f"{name} is in the new recipe but not in the checkpoint")
            continue
        kept.append(name)
        if misfit:
            problems.append(f"{name} {misfit}")
            continue
        values[path] = copied_leaf(source, leaf)
        if dtype_of(source) != dtype_of(leaf):
            converted.append(name)
    taken = {*sources.values()}
    left = [path for path in old.leaves if path not in taken]
    problems += _missed(left, old, new, tails, params, change) + _empty_stages(old, new, tails)
    if problems:
        coded = any(path[-1].endswith(("_codes", "_scales")) for path in left)
        raise ValueError(_misfits(problems, change, coded=coded))
    lists = (kept, started, map(old.name, left), converted)
    return values, MigrationReport(*(tuple(sorted(names)) for names in lists))


def _misfits(problems: list[str], change: Thaw | None, *, coded: bool) -> str:
    """Make the error text for a checkpoint that does not fit; ``coded``: codes have no place."""
    hint = "If leaves were frozen or are frozen now, give thaw=True."
    if change is not None:
        hint = "With pack_small_leaves, packed leaves cannot join or leave: see repack_state."
    if coded:
        hint = (
            "Codes without their types can only be read by the storage= that wrote them: migrate "
            "to that first, and the result to another storage."
        )
    return (
        "the checkpoint does not fit the new recipe: " + "; ".join(problems) + ". Restore with "
        f"the recipe and parameters that wrote it, or start with tx.init(params). {hint}"
    )


def _missed(
    left: list[Path], old: Leaves, new: Leaves, tails: set[str], params: Any, change: Thaw | None
) -> list[str]:
    """List the accumulators of the checkpoint that have no place, and may not be dropped."""
    inside = [path for path in left if old.must_fit(path)]
    return [
        f"{old.name(path)} is in the checkpoint but not in the new recipe"
        for path in inside
        if not (change and change.drops(old.inner(path)))
        and _is_missed(old, path, old.leaves[path], new, tails, params)
    ]


def _check_not_mapped(old: Leaves, new: Leaves) -> None:
    for root in old.recipes:
        shape = np.shape(old.leaves.get((*root, "count"), 0))
        if shape and not any(np.shape(new.leaves[(*at, "count")]) for at in new.recipes):
            raise ValueError(
                f"saved is the state of {shape[0]} mapped runs: migrate each of them, with "
                "jax.vmap(lambda saved, params: migrate_state(saved, tx, params)[0])."
            )


def _matched(old: list[Path], new: list[Path]) -> Any:
    """Return a function from paths of the new state to matching paths of the old one."""
    if len(old) == len(new) == 1:
        roots = {new[0]: old[0]}
    elif set(old) == set(new):
        roots = {root: root for root in new}
    else:
        raise ValueError(
            f"the recipes of saved are at {_shown(old)}, those of the state of tx at {_shown(new)}:"
            " keep the labels of a partition, or migrate its recipes one by one."
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


def _must_decode(saved: State, target: State, thaw: bool) -> bool:
    """Return whether storages differ; codes that lost their types are known by their names."""
    layouts = [_layouts(state) for state in (saved, target)]
    if layouts[0] == layouts[1] or (thaw and _are_alike(saved, target)):
        return False
    names = {path_of(path)[-1] for path, _ in jax.tree_util.tree_leaves_with_path(saved)}
    return bool(layouts[0]) or not any(f"{name}_codes" in names for name in layouts[1])


def _layouts(state: State) -> list[str]:
    nodes = jax.tree.leaves(state, is_leaf=is_encoded)
    return sorted(node.layout.name for node in nodes if is_encoded(node))


def _are_alike(saved: State, target: State) -> bool:
    """Return whether the arrays that two states have in common are stored alike."""
    sides = [
        {path: node.layout.name if is_encoded(node) else None for path, node in leaves}
        for leaves in (
            jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded)
            for state in (saved, target)
        )
    ]
    common = sides[0].keys() & sides[1].keys()
    return bool(common) and all(sides[0][path] == sides[1][path] for path in common)


def _stage_of(inner: Path) -> str | None:
    return inner[1] if inner[0] == "stages" else None


def _may_start(inner: Path, tails: set[str]) -> bool:
    return inner[0] == "hyperparams" or _stage_of(inner) in tails


def _is_missed(
    old: Leaves, path: Path, leaf: Any, new: Leaves, tails: set[str], params: Any
) -> bool:
    """Return whether a leaf that has no place any more is an accumulator."""
    if not old.recipes:
        return True
    inner = old.inner(path)
    stage = _stage_of(inner)
    if stage is None or stage in tails:
        return False
    if stage in {_stage_of(new.inner(p)) for p in new.leaves}:
        return True
    owners = jax.tree_util.tree_leaves_with_path(numerics.unbox(params))
    return any(
        inner[len(inner) - len(owner) :] == path_of(owner) and jnp.shape(leaf) == jnp.shape(param)
        for owner, param in owners
    )


def _empty_stages(old: Leaves, new: Leaves, tails: set[str]) -> list[str]:
    """List stages without arrays that come or go, which change the meaning of accumulators."""
    if len(old.recipes) != 1 or not old.stages:
        return []
    gone, come = (x.stages[x.recipes[0]] for x in (old, new))
    held = {_stage_of(x.inner(path)) for x in (old, new) for path in x.leaves}
    return [
        f"{name} is in only one of the two, the checkpoint or the new recipe"
        for name in sorted((gone ^ come) - held - tails)
    ]
