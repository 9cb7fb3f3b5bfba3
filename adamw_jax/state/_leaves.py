"""The leaves of a state by path, as ``migrate_state`` compares and moves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax._core import numerics
from adamw_jax._core.state import ComposeState, Hyperparams, hyperparams_in, is_hyperparams
from adamw_jax.state._optax_nodes import GO_ON, holders_of

State = Any
Path = tuple[str, ...]


class Pinnable(NamedTuple):
    """One hyperparameter of a state."""

    value: Any
    pinned: Any


class Leaves(NamedTuple):
    """The leaves of a state by path; each hyperparameter is a leaf.

    Attributes:
      leaves: leaves by path.
      recipes: paths of the outermost recipes.
      stages: names of stages by the path of their recipe, if it has its type.
    """

    leaves: dict[Path, Any]
    recipes: list[Path]
    stages: dict[Path, set[str]]

    def recipe_of(self, path: Path) -> Path | None:
        """Return the path of the recipe that holds a leaf, or None."""
        return next((root for root in self.recipes if path[: len(root)] == root), None)

    def must_fit(self, path: Path) -> bool:
        """Return whether a leaf is in a recipe, or there is no recipe."""
        return not self.recipes or self.recipe_of(path) is not None

    def inner(self, path: Path) -> Path:
        """Return the path of a leaf inside its recipe."""
        root = self.recipe_of(path)
        return path if root is None else path[len(root) :]

    def name(self, path: Path) -> str:
        """Return the name in the report: the path inside the recipe, if there is only one."""
        return "/".join(self.inner(path) if len(self.recipes) == 1 else path)


def leaves_of(state: State) -> Leaves:
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_recipe)
    found = {path_of(path): node for path, node in nodes if _is_recipe(node)}
    leaves: dict[Path, Any] = {}
    named = {(*root, "hyperparams") for root in found}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_hyperparams):
        if not is_hyperparams(leaf):  # values by name, from a walk over mappings, have no pins
            bare = path_of(path)[:-1] in named
            leaves[path_of(path)] = Pinnable(leaf, jnp.zeros([], jnp.bool_)) if bare else leaf
            continue
        for name, value, pinned in hyperparams_in(leaf):
            leaves[(*path_of(path), name)] = Pinnable(value, pinned)
    typed = {root: node for root, node in found.items() if isinstance(node, ComposeState)}
    return Leaves(leaves, [*found], {root: set(node.stages) for root, node in typed.items()})


def check_kinds(saved: State, old: Leaves, target: State, new: Leaves) -> None:
    """Raise if only one of two states holds a recipe, or types of optax's states differ."""
    for what, side in (("saved", old), ("the state of tx", new)):
        if not side.recipes and (old.recipes or new.recipes):
            raise ValueError(
                f"{what} holds no recipe of adamw_jax. Convert a state of optax's Adam family or "
                f"SGD with from_optax or to_optax. {GO_ON}"
            )
    was, now = (
        {path: type(node).__name__ for path, node in holders_of(state).items()}
        for state in (saved, target)
    )
    for path in () if new.recipes else was.keys() & now.keys():
        if was[path] != now[path]:
            raise ValueError(f"saved has a {was[path]} where the state of tx has a {now[path]}.")


def _is_recipe(node: Any) -> bool:
    """Return whether a node is the state of a recipe, with or without its type."""
    if isinstance(node, ComposeState):
        return True
    if not isinstance(node, Mapping) or not {*node} <= {*ComposeState._fields}:
        return False
    # A parameter may be called count, too, but is not a whole number.
    count = jnp.issubdtype(getattr(node.get("count"), "dtype", float), jnp.integer)
    return count and ("stages" in node or is_hyperparams(node.get("hyperparams")))


def path_of(path: tuple[Any, ...]) -> Path:
    return tuple(numerics.leaf_name((key,)) for key in path)


def dtype_of(leaf: Any) -> Any:
    return jnp.result_type(leaf.value if isinstance(leaf, Pinnable) else leaf)


def why_misfit(old: Any, new: Any) -> str | None:
    """Say why a leaf of the checkpoint does not fit a place; None if it does."""
    if isinstance(new, Pinnable):
        fits = isinstance(old, Pinnable) and np.shape(old.value) in ((), np.shape(new.value))
        return None if fits else "has another shape in the checkpoint"
    if isinstance(old, Pinnable) or np.shape(old) != np.shape(new):
        return f"has shape {np.shape(old)} in the checkpoint and {np.shape(new)} now"
    dtypes = dtype_of(old), dtype_of(new)
    for kind in (jnp.floating, jnp.complexfloating):
        if all(jnp.issubdtype(dtype, kind) for dtype in dtypes):
            return None
    if dtypes[0] == dtypes[1]:
        return None
    return f"is {dtypes[0]} in the checkpoint and {dtypes[1]} now"


def copied_leaf(old: Any, new: Any) -> Any:
    """Copy a leaf of the checkpoint, in the dtype of the new leaf."""
    if not isinstance(new, Pinnable):
        return jnp.array(old, dtype=dtype_of(new), copy=True)
    value = jnp.broadcast_to(jnp.asarray(old.value, new.value.dtype), jnp.shape(new.value))
    pinned = jnp.broadcast_to(jnp.asarray(old.pinned), jnp.shape(new.value))
    return Pinnable(value, pinned)


def with_values(target: State, values: dict[Path, Any]) -> State:
    """Fill ``target`` with values by path."""

    def fill(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Hyperparams):
            return values[path_of(path)]
        given = [values[(*path_of(path), name)] for name in leaf.names]
        return leaf.filled([one.value for one in given], [one.pinned for one in given])

    return jax.tree_util.tree_map_with_path(fill, target, is_leaf=is_hyperparams)
