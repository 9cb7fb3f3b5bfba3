"""Run a step on a state with encoded arrays: decode the state, step, encode it again."""

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
    """Run one step on a state that may hold encoded arrays.

    Args:
      update: the update function of the transformation, on a decoded state.
      updates: the gradients.
      state: the state; it may have no encoded arrays.
      params: current parameters, or None.
      extra: further arguments of ``update``.
      key: the key of stochastic rounding; None for the nearest level.
      decode: the function that decodes the state.

    Returns:
      Updates, and a state encoded like ``state``.
    """
    if not _holds_encoded(state):
        return update(updates, state, params, **extra)
    if has_boxes(updates):  # encoded arrays have no boxes: remove all
        plain, bare, bare_params = map(numerics.unbox, (updates, state, params))
        moved, new = update_encoded(update, plain, bare, bare_params, extra, key=key, decode=decode)
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
    """Put the arrays of ``tree`` into the boxes of ``like``."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(tree))


def _holds_encoded(state: Tree) -> bool:
    return any(map(is_encoded, jax.tree.leaves(state, is_leaf=is_encoded)))


def check_encoded(
    name: str, state: Tree, init: Callable[[Tree], Tree], updates: Tree, min_size: int
) -> None:
    """Raise if an array of a state is not stored as ``init`` would store it.

    Args:
      name: name of the stage or function, for the error.
      state: the state.
      init: the function that makes the expected state.
      updates: the parameters, or a tree like them.
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
            f"than storage= says: {are[0]}, and not {are[1]}. Start with its own init, or convert "
            "a state of another storage with migrate_state(saved, tx, params)."
        )


@functools.lru_cache(maxsize=64)
def _expected(
    init: Callable[[Tree], Tree], structure: Any, leaves: tuple[Any, ...], _: Any
) -> dict[Any, Any]:
    """Return the arrays that ``init`` makes by path, cached for each default float dtype."""
    made = jax.eval_shape(init, jax.tree.unflatten(structure, leaves))
    return dict(jax.tree_util.tree_leaves_with_path(made, is_leaf=is_encoded))


def _is_stored_otherwise(held: Any, made: Any) -> bool:
    """Return whether one of two arrays of a shape is encoded, or both in different layouts.

    A shard, whose layout has the shape of the whole array, and an array of another dtype are not
    compared.
    """
    if not is_encoded(held):
        return is_encoded(made) and jnp.shape(held) == made.layout.shape
    like, layout = (made.layout if is_encoded(made) else made), held.layout
    if (like.shape, like.dtype) != (layout.shape, layout.dtype):
        return False
    return not is_encoded(made) or made.layout.name != layout.name
