"""Leaf after leaf: a step whose scratch is that of its largest leaf.

A direction that is scaled by its own norm must be whole before the parameters move, and left alone
XLA keeps those of all leaves at once. Here what a step reads of a leaf waits for a scalar of the
leaf before, which is known only when that direction is whole. The values are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from adamw_jax import numerics
from adamw_jax.order.after import is_large, when
from adamw_jax.order.calls import Calls
from adamw_jax.order.device import is_alone

Tree = Any

WHOLE = "whole"
"""The signal with a scalar of a leaf that is known once its direction is whole, of some leaves or
all; where nobody asks for it there is none."""

_IN_ORDER = ContextVar("_IN_ORDER", default=False)


def leaf_by_leaf(
    step: Callable[[Tree, Tree], tuple[Tree, Tree, Tree]],
    updates: Tree,
    state: Tree,
    count: jax.Array,
) -> tuple[Tree, Tree]:
    """``step(updates, state) -> moved, state, scalars``, in order, without the scalars.

    Args:
      step: traced once more; its scalars stand in the places of the updates, where there are some.
      updates: the gradients.
      state: of the step.
      count: the step count.
    """
    with ordered():
        traced, made = jax.make_jaxpr(step, return_shape=True)(updates, state)
    outputs, structure = jax.tree.flatten(made)
    leaves, held = jax.tree.leaves(updates), jax.tree_util.tree_leaves_with_path(state)
    calls = Calls(traced, [*leaves, *(array for _, array in held)])
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    read = {path: [number] for number, path in enumerate(paths)}
    starts = numerics.owners_in([path for path, _ in held], read)
    for number, ((path, array), start) in enumerate(zip(held, starts, strict=True), len(leaves)):
        if start is not None and jnp.issubdtype(array.dtype, jnp.inexact):
            read[path[start:]].append(number)
    told = [path for path, _ in jax.tree_util.tree_leaves_with_path(made[2])]
    places = {path: place for place, path in enumerate(told, len(outputs) - len(told))}

    known = None
    for number, path in enumerate(paths):
        if path not in places or not is_large(leaves[number]):
            continue
        if known is not None:
            for place in read[path]:
                calls.inputs[place] = when(known, calls.inputs[place], count)
        (known,) = calls.outputs([places[path]])
        calls.outputs([number])
    moved, state, _ = jax.tree.unflatten(structure, calls.outputs(range(len(outputs))))
    return moved, state


def is_due(updates: Tree, state: Tree) -> bool:
    """Whether a step shall go leaf by leaf: a traced one of large leaves, on a single device.

    What is not traced is in order already, and so is a step inside an ordered one.

    Args:
      updates: the gradients.
      state: of the step, which is concrete under an eager ``grad`` or ``vmap``.
    """
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(state))
    several = sum(map(is_large, jax.tree.leaves(updates))) > 1
    return traced and several and is_alone(updates, state) and not _IN_ORDER.get()


@contextlib.contextmanager
def ordered() -> Iterator[None]:
    """Steps that are traced inside are not put in order: the caller is, or shall not be."""
    token = _IN_ORDER.set(True)
    try:
        yield
    finally:
        _IN_ORDER.reset(token)
