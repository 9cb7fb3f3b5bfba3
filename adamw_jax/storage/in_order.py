"""One array after the other: a step whose scratch is that of its largest array.

A scale needs the largest element of its block before the first code can be written, so XLA on CPU
keeps whole moments in float32 between the two, and left alone it does so for all of them at once.
Here a traced step is put in order, with the same operations and values. On one device each array
waits for the scales of the one before, parameter by parameter. Of several devices that would be a
word between them, so there the codes of each parameter are made in a branch of a conditional of its
own, which is computed from start to end by itself; the updates decode the old codes once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax.numerics import owners_in
from adamw_jax.order import Calls
from adamw_jax.storage.encoded import Noise, encoded_as, is_encoded

Tree = Any


def parameter_by_parameter(
    step: Callable[[Tree], tuple[Tree, Tree]],
    state: Tree,
    noise: Noise | None,
    *,
    in_branches: bool,
) -> tuple[Tree, Tree]:
    """``step(state) -> updates, state``, traced, and the new state encoded like the old one.

    Args:
      step: of the transformation, on a state that is encoded.
      state: the state.
      noise: what rounds by chance; None for the nearest level.
      in_branches: whether each parameter has a branch, in place of waiting for the one before.
    """
    traced, (moved, new) = jax.make_jaxpr(step, return_shape=True)(state)
    ends = [path for path, _ in jax.tree_util.tree_leaves_with_path(moved)]
    owners = {end: i for i, end in enumerate(ends)}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded)]
    nodes, structure = jax.tree.flatten(state, is_leaf=is_encoded)
    results = structure.flatten_up_to(new)
    inputs, outputs = _places(nodes, 0), _places(results, len(ends))

    held: dict[int, list[int]] = {}
    starts = owners_in(paths, owners)
    for number, (path, start, node) in enumerate(zip(paths, starts, nodes, strict=True)):
        if start is not None and is_encoded(node):
            held.setdefault(owners[path[start:]], []).append(number)

    calls = Calls(traced, jax.tree.leaves(state))

    def result(calls: Calls, number: int, before: Sequence[jax.Array] = ()) -> Any:
        arrays = calls.outputs(outputs[number])
        made = jax.tree.unflatten(jax.tree.structure(results[number]), arrays)
        if is_encoded(nodes[number]) and not is_encoded(made):
            made = encoded_as(nodes[number], _after(made, before), number, noise)
        return made

    done: dict[int, Any] = {}
    if in_branches:
        groups = list(held.values())
        alone = calls.apart([[i for number in group for i in outputs[number]] for group in groups])
        for own, group in zip(alone, groups, strict=True):

            def branch(own: Calls = own, group: list[int] = group) -> list[Any]:
                return [result(own, number) for number in group]

            old = [nodes[number] for number in group]
            done.update(zip(group, lax.cond(_always(), branch, lambda old=old: old), strict=True))
    else:
        before: list[jax.Array] = []
        for owner in sorted(held):
            for i in (i for number in held[owner] for i in inputs[number][1:]):
                calls.inputs[i] = _after(calls.inputs[i], before)
            for number in held[owner]:
                done[number] = result(calls, number, before)
                before = jax.tree.leaves(done[number].scales) or before
            calls.outputs([owner])
    rest = [done[n] if n in done else result(calls, n) for n in range(len(nodes))]
    whole = calls.outputs(range(len(ends)))
    return jax.tree.unflatten(jax.tree.structure(moved), whole), jax.tree.unflatten(structure, rest)


def _places(nodes: Sequence[Any], start: int) -> list[range]:
    """Where in a flat list the leaves of each node are."""
    places = []
    for node in nodes:
        stop = start + len(jax.tree.leaves(node))
        places.append(range(start, stop))
        start = stop
    return places


def _after(x: jax.Array, readers: Sequence[jax.Array]) -> jax.Array:
    """``x``, once ``readers``, arrays without NaN, are known.

    The select always takes ``x``, since no scale is negative, but XLA does not know that.
    """
    if not readers:
        return x
    total = functools.reduce(lax.add, [r.ravel()[0] for r in readers])
    return lax.select(lax.ge(total, lax.full_like(total, -1.0)), x, lax.full_like(x, 0))


def _always() -> jax.Array:
    """True, which XLA cannot know."""
    return lax.optimization_barrier(jnp.bool_(True))
