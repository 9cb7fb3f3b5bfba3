"""``repack_state``: a state from one packing to another, so that checkpoints can be exchanged.

The elements of all leaves that share a buffer are in the order of the tree, whatever the groups, so
a state is cut anew without knowing how it was packed.

>>> import jax.numpy as jnp
>>> from adamw_jax import sgdw
>>> from adamw_jax.packing import pack_small_leaves
>>> params = {"a": jnp.ones(2), "b": jnp.ones((2, 2))}
>>> state = pack_small_leaves(sgdw(0.1)).init(params)
>>> repack_state(state, sgdw(0.1), params).stages["estimate_moments"].first.value["b"].shape
(2, 2)
"""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax

State = Any
Tree = Any


def repack_state(saved: State, tx: optax.GradientTransformation, params: Tree) -> State:
    """A state in the layout of ``tx``: packed, plain, or in groups of another size.

    Args:
      saved: a state of ``tx`` with another packing, wrapped alike.
      tx: the transformation to go on with.
      params: parameters, or ``ShapeDtypeStruct``s like them.

    Raises:
      ValueError: the states differ by more than packing.
    """
    target, structure = jax.tree.flatten(jax.eval_shape(tx.init, params), is_leaf=_is_absent)
    have, found = jax.tree.flatten(saved, is_leaf=_is_absent)
    if found != structure:
        raise ValueError(
            "saved is not the state of tx up to packing: it has the structure "
            f"{found}, expected {structure}. For other edits use migrate_state."
        )
    pairs = list(zip(have, target, strict=True))
    fits = [_form(x) == _form(y) for x, y in pairs]
    moving = [pair for pair, fit in zip(pairs, fits, strict=True) if not fit]
    pieces = [x for x, _ in moving if x is not None]
    wanted = [y for _, y in moving if y is not None]
    recut = iter(_recut(pieces, wanted))
    values = [
        x if fit else None if y is None else next(recut)
        for (x, y), fit in zip(pairs, fits, strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def _recut(pieces: list[Any], wanted: list[Any]) -> list[Any]:
    """The elements of ``pieces``, in their order, in the shapes of ``wanted``."""
    queue, made = collections.deque(x.reshape(-1) for x in pieces), []
    for y in wanted:
        parts, missing = [], y.size
        while missing and queue:
            piece = queue.popleft()
            parts.append(piece[:missing])
            if piece.size > missing:
                queue.appendleft(piece[missing:])
            missing -= parts[-1].size
        if missing or any(part.dtype != y.dtype for part in parts):
            queue.extend(parts)
            break
        made.append(jnp.concatenate(parts).reshape(y.shape))
    if queue or len(made) < len(wanted):
        raise ValueError(
            "saved is not the state of tx up to packing: shapes, dtypes or parameters differ. "
            "Restore with the optimizer and parameters that wrote it."
        )
    return made


def _form(x: Any) -> Any:
    return None if x is None else (x.shape, x.dtype)


def _is_absent(x: Any) -> bool:
    return x is None
