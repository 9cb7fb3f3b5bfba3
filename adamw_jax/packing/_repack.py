"""``repack_state``: convert a state from one packing to another.

The sizes of leaves and buffers show which leaves a buffer holds, so it is not necessary to know how
the state was packed.

>>> import jax.numpy as jnp
>>> from adamw_jax import sgdw
>>> from adamw_jax.packing import pack_small_leaves
>>> params = {"a": jnp.ones(2), "b": jnp.ones((2, 2))}
>>> state = pack_small_leaves(sgdw(0.1)).init(params)
>>> repack_state(state, sgdw(0.1), params).stages["estimate_moments"].first.moment["b"].shape
(2, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from adamw_jax._core import numerics
from adamw_jax._core.boxes import boxed
from adamw_jax._core.stage import transformation

State = Any
Tree = Any


class Place(NamedTuple):
    """The place of a leaf: the index of the array of the state that holds it, and the offset."""

    holder: int
    start: int


def repack_state(saved: State, tx: optax.GradientTransformation, params: Tree) -> State:
    """Convert a state to the layout of ``tx``: packed, plain, or with another packing.

    Args:
      saved: a state of ``tx`` with another packing or none, in the same wrappers.
      tx: the transformation to continue with.
      params: parameters, or ``ShapeDtypeStruct`` objects like them.

    Returns:
      A state of ``tx`` with the values of ``saved``.

    Raises:
      ValueError: the states differ by more than packing.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {f"layer{i}": jnp.ones(8) for i in range(40)}
      >>> plain, packed = aj.adamw(1e-3), aj.pack_small_leaves(aj.adamw(1e-3))
      >>> state = aj.packing.repack_state(plain.init(params), packed, params)
    """
    tx, plain = transformation(tx, "tx"), numerics.unbox(numerics.as_arrays(params))
    want, structure = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(tx.init, plain), is_leaf=_is_absent
    )
    have, found = jax.tree.flatten(numerics.on_device(numerics.unbox(saved)), is_leaf=_is_absent)
    if found != structure:
        raise ValueError(
            "saved is not the state of tx up to packing: it has the structure "
            f"{found}, expected {structure}. For other edits use migrate_state."
        )
    sizes = {path: jnp.size(p) for path, p in jax.tree_util.tree_leaves_with_path(plain)}
    trees: dict[Any, list[tuple[int, int]]] = {}  # index and length of leaves, by tree
    starts = numerics.owners_in([path for path, _ in want], sizes)
    for i, ((path, _), start) in enumerate(zip(want, starts, strict=True)):
        tree, length = (i, 0) if start is None else (path[:start], sizes[path[start:]])
        trees.setdefault(tree, []).append((i, length))
    values = list(have)
    for members in trees.values():
        old, new = [have[i] for i, _ in members], [want[i][1] for i, _ in members]
        if [*map(_form, old)] != [*map(_form, new)]:
            cut = _recut(old, new, [length for _, length in members])
            for (i, _), value in zip(members, cut, strict=True):
                values[i] = value
    made = boxed(jax.tree.unflatten(structure, values), tx, params, saved)
    return numerics.in_memory_of(made, saved)


def _recut(old: Sequence[Any], new: Sequence[Any], lengths: Sequence[int]) -> list[Any]:
    """Return the values of ``old`` in the layout of ``new``, for leaves of these lengths."""
    sources, targets = _places(old, lengths), _places(new, lengths)
    parts: dict[int, list[jax.Array]] = {}
    for source, target, length in zip(sources, targets, lengths, strict=True):
        values = old[source.holder].reshape(-1)[source.start : source.start + length]
        parts.setdefault(target.holder, []).append(values)
    made: list[Any] = []
    for i, like in enumerate(new):
        if like is not None and any(part.dtype != like.dtype for part in parts[i]):
            raise _misfit()
        made.append(None if like is None else jnp.concatenate(parts[i]).reshape(like.shape))
    return made


def _places(leaves: Sequence[Any], lengths: Sequence[int]) -> list[Place]:
    """Find each leaf: in its own array, or in the buffer that was begun last."""
    places, buffer, used = [], -1, 0
    for i, (leaf, length) in enumerate(zip(leaves, lengths, strict=True)):
        if leaf is not None and leaf.size == length:
            places.append(Place(i, 0))
            continue
        if leaf is not None:
            _check_full(leaves, buffer, used)
            buffer, used = i, 0
        places.append(Place(buffer, used))
        used += length
    _check_full(leaves, buffer, used)
    return places


def _check_full(leaves: Sequence[Any], buffer: int, used: int) -> None:
    if used != (leaves[buffer].size if buffer >= 0 else 0):
        raise _misfit()


def _misfit() -> ValueError:
    return ValueError(
        "saved is not the state of tx up to packing: shapes, dtypes or parameters differ. "
        "Restore with the optimizer and parameters that wrote it."
    )


def _form(x: Any) -> Any:
    return None if x is None else (x.shape, x.dtype)


def _is_absent(x: Any) -> bool:
    return x is None
