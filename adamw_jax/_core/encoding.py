"""A step on a state with encoded arrays: decode it, step, encode it as it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.boxes import has_boxes
from adamw_jax._core.encoded import decode_state, encode_like, encoded_as, is_encoded
from adamw_jax._core.sequential import leaf_by_leaf, wait, way

Tree = Any
Update = Callable[..., tuple[Tree, Tree]]


def update_encoded(
    update: Update,
    updates: Tree,
    state: Tree,
    params: Tree | None,
    extra: dict[str, Any],
    *,
    key: jax.Array | None = None,
    decode: Callable[[Tree], Tree] = decode_state,
) -> tuple[Tree, Tree]:
    """One step on a state that may hold encoded arrays.

    Args:
      update: of the transformation, on a decoded state.
      updates: what comes in.
      state: encoded, or as it is.
      params: current parameters, or None.
      extra: further arguments of ``update``.
      key: what stochastic rounding draws from; None for the nearest level.
      decode: opens the state.

    Returns:
      Updates, and a state encoded like ``state``.
    """
    if not _holds_encoded(state):
        return update(updates, state, params, **extra)
    if has_boxes(updates):  # an encoded array has none, so that all must do without
        plain, opened, open_params = map(numerics.unbox, (updates, state, params))
        moved, new = update_encoded(
            update, plain, opened, open_params, extra, key=key, decode=decode
        )
        return _as(updates, moved), _as(state, new)

    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded)

    def noise(number: int, x: jax.Array) -> jax.Array:
        assert key is not None
        own = numerics.key_of(key, nodes[number][0], x)
        return jax.random.uniform(own, x.shape, jnp.float32)

    def step(updates: Tree, state: Tree) -> tuple[Tree, Tree, None]:
        return *update(updates, decode(state), params, **extra), None

    chance = None if key is None else noise

    def encode(number: int, made: Any, known: jax.Array | None) -> tuple[Any, jax.Array | None]:
        if not is_encoded(made):
            made = made if known is None else wait(made, known)
            made = encoded_as(nodes[number][1], made, number, chance)
        scales = [scale.ravel()[0] for scale in jax.tree.leaves(made.scales)]
        return made, functools.reduce(lax.add, scales) if scales else known

    if (how := way(updates, state)) is not None:
        in_branches = how == "branches"
        return leaf_by_leaf(step, updates, state, is_encoded, encode, in_branches=in_branches)
    moved, new, _ = step(updates, state)
    return moved, encode_like(state, new, chance)


def _as(like: Tree, tree: Tree) -> Tree:
    """``tree`` in the boxes of ``like``."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def _holds_encoded(state: Tree) -> bool:
    return any(map(is_encoded, jax.tree.leaves(state, is_leaf=is_encoded)))


def check_encoded(
    name: str, state: Tree, init: Callable[[Tree], Tree], updates: Tree, min_size: int
) -> None:
    """Raises for a state with an array that is not stored as ``init`` would store it.

    Args:
      name: of the stage or function, for the error.
      state: what was given.
      init: makes what is expected.
      updates: the parameters, or what is shaped like them.
      min_size: arrays with fewer elements are never encoded.
    """
    leaves, structure = jax.tree.flatten(updates)
    if all(jnp.size(x) < min_size for x in leaves):
        return
    like = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    expected = _expected(init, structure, like, numerics.default_float())
    for path, held in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded):
        made = expected.get(path)
        if made is None or not _is_stored_otherwise(held, made):
            continue
        are = [x.layout.name if is_encoded(x) else "in full precision" for x in (held, made)]
        raise ValueError(
            f"the state of {name} has {jax.tree_util.keystr(path) or 'its array'} stored otherwise "
            f"than storage= says: {are[0]}, and not {are[1]}. Start with its own init, or carry a "
            "state of another storage over, with migrate_state(saved, tx, params) of a recipe of "
            "this library, or with adamw_jax.storage.encode_state(decode_state(state), params, "
            "choose(storage))."
        )


@functools.lru_cache(maxsize=64)
def _expected(
    init: Callable[[Tree], Tree], structure: Any, leaves: tuple[Any, ...], _: Any
) -> dict[Any, Any]:
    """By their paths, the arrays of a state that ``init`` makes; once for a dtype of floats."""
    made = jax.eval_shape(init, jax.tree.unflatten(structure, leaves))
    return dict(jax.tree_util.tree_leaves_with_path(made, is_leaf=is_encoded))


def _is_stored_otherwise(held: Any, made: Any) -> bool:
    """Whether one of two arrays of a shape is encoded, or both by different layouts.

    A shard, whose layout knows the whole array, and an array of another dtype prove nothing.
    """
    if not is_encoded(held):
        return is_encoded(made) and jnp.shape(held) == made.layout.shape
    like, layout = (made.layout if is_encoded(made) else made), held.layout
    if (like.shape, like.dtype) != (layout.shape, layout.dtype):
        return False
    return not is_encoded(made) or made.layout.name != layout.name
