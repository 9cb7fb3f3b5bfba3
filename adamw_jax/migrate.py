"""Carry a checkpoint over an edit of the recipe that changed no accumulator.

Accumulators match by stage and leaf; wrappers around the recipe, hyperparameters and tails may
come and go. What is new starts at its initial value, what was dropped is reported, and anything
else, such as AMSGrad's maximum or diffGrad's previous gradient, is refused by name.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw, compose, lookahead
>>> params = {"w": jnp.ones(2)}
>>> saved = adamw(1e-3).init(params)
>>> state, report = migrate_state(saved, compose(adamw(1e-3), lookahead()), params)
>>> report.started[2:]
('stages/lookahead/since_sync', 'stages/lookahead/slow/w')
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax import numerics, state as states
from adamw_jax.compose import Composed
from adamw_jax.state import ComposeState
from adamw_jax.storage.encoded import decode_state, encode_like, is_encoded

State = Any

TAILS = (
    *("lookahead", "average_iterates", "stochastic_rounding", "compensated_rounding"),
    *("probe", "measure_noise_scale"),
)


class MigrationReport(NamedTuple):
    """What ``migrate_state`` did, leaf by leaf.

    Attributes:
      kept: leaves taken from the checkpoint.
      started: leaves of the new state that start at their initial value.
      dropped: leaves of the checkpoint that the new recipe has no place for.
    """

    kept: tuple[str, ...]
    started: tuple[str, ...]
    dropped: tuple[str, ...]


def migrate_state(
    saved: State, tx: optax.GradientTransformation, params: Any
) -> tuple[State, MigrationReport]:
    """The state of ``tx`` with the accumulators of ``saved``.

    Args:
      saved: a state of a recipe of this library, also as the plain dicts and lists that a restore
        without a target gives. One whose arrays are stored otherwise (``storage=``) is decoded and
        encoded anew, if it has its types.
      tx: the transformation to go on with: the recipe edited, wrapped, unwrapped, with a tail more
        or less, with other hyperparameters.
      params: current parameters; slow weights and averages that are new start here.

    Returns:
      The state and a report of what was kept, started and dropped.

    Raises:
      ValueError: an accumulator more or less, which is no tail's, a changed parameter tree, shape
        or dtype, or a state with no recipe or several of this library.
    """
    target = stored = tx.init(params)
    if _layouts(saved) != _layouts(target):
        saved, target = decode_state(saved), decode_state(target)
    tails = TAILS + (tuple(s.name for s in tx.specs if s.tail) if isinstance(tx, Composed) else ())
    (_, old), (root, new) = _recipe(saved, "saved"), _recipe(target, "the state of tx")
    kept, started, problems = [], [], []
    for name, leaf in new.items():
        if name in old:
            problems += _misfit(name, old[name], leaf)
            kept.append(name)
        else:
            started.append(name)
            if not _may_start(name, tails):
                problems.append(f"{name} is in the new recipe but not in the checkpoint")
    dropped = [name for name in old if name not in new]
    stages = {_stage_of(name) for name in new}
    shapes = zip(numerics.leaf_names(params), jax.tree.leaves(params), strict=True)
    owned = {name and f"/{name}": jnp.shape(leaf) for name, leaf in shapes}
    for name in dropped:
        stage = _stage_of(name)
        accumulator = stage not in tails and any(
            name.endswith(end) and jnp.shape(old[name]) == shape for end, shape in owned.items()
        )
        if stage and (stage in stages or accumulator):
            problems.append(f"{name} is in the checkpoint but not in the new recipe")
    if problems:
        raise ValueError(
            "the checkpoint does not fit the new recipe: " + "; ".join(problems) + ". Restore with "
            "the recipe and parameters that wrote it, or start with tx.init(params)."
        )

    def fill(path: Any, leaf: Any) -> Any:
        parts = _parts(path)
        inside = parts[: len(root)] == [*root]
        name = "/".join(parts[len(root) :]) if inside else ""
        return jnp.asarray(old[name], leaf.dtype) if name in old else leaf

    report = MigrationReport(*(tuple(sorted(x)) for x in (kept, started, dropped)))
    return encode_like(stored, jax.tree_util.tree_map_with_path(fill, target)), report


def _layouts(state: State) -> list[str]:
    nodes = jax.tree.leaves(state, is_leaf=is_encoded)
    return sorted(node.layout.name for node in nodes if is_encoded(node))


def _parts(path: Any) -> list[str]:
    return numerics.leaf_name(path).split("/")


def _within_recipe(parts: list[str]) -> str | None:
    """The part of a leaf's path inside a ComposeState, or None for a wrapper's own leaf."""
    for index, part in enumerate(parts):
        rest = parts[index:]
        if part == "stages" and len(rest) > 2:
            return "/".join(rest)
        if part == "hyperparams" and len(rest) == 3 and rest[2] in ("value", "pinned"):
            return "/".join(rest)
    return None


def _recipe(state: State, what: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Where the one recipe is in a state, and its leaves by their path inside it."""
    typed = states.find(state, ComposeState)
    if len(typed) == 1:  # the names below are for states that lost their types
        root, node = typed[0]
        leaves = jax.tree_util.tree_leaves_with_path(node)
        return tuple(root.split("/")) if root else (), {
            numerics.leaf_name(path): leaf for path, leaf in leaves
        }
    found: dict[str, Any] = {}
    roots, counts = set(), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        parts = _parts(path)
        if parts[-1] == "count":
            counts[tuple(parts[:-1])] = leaf
        name = _within_recipe(parts)
        if name is not None:
            roots.add(tuple(parts[: len(parts) - len(name.split("/"))]))
            found[name] = leaf
    if len(roots) != 1:
        raise ValueError(
            f"{what} must hold the state of exactly one recipe of adamw_jax, found {len(roots)} at "
            f"{sorted(roots)}; for optax's own states use from_optax, and migrate the recipes of a "
            "partition one by one."
        )
    root = roots.pop()
    if root in counts:
        found["count"] = counts[root]
    return root, found


def _stage_of(name: str) -> str | None:
    return name.split("/")[1] if name.startswith("stages/") else None


def _may_start(name: str, tails: tuple[str, ...]) -> bool:
    return name.startswith("hyperparams/") or _stage_of(name) in tails


def _misfit(name: str, old: Any, new: Any) -> list[str]:
    if jnp.shape(old) != new.shape:
        return [f"{name} has shape {jnp.shape(old)} in the checkpoint and {new.shape} now"]
    if jnp.result_type(old) != new.dtype and not name.startswith("hyperparams/"):
        return [f"{name} is {jnp.result_type(old)} in the checkpoint and {new.dtype} now"]
    return []
