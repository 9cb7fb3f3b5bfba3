"""Checks and norms of gradients, for stages that do not work on moments.

>>> import jax.numpy as jnp
>>> square_norm(jnp.array([3.0, 4.0]))
Array(25., dtype=float32)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics, sequential

Tree = Any


@dataclasses.dataclass(frozen=True)
class Shards:
    """The facts about shards inside ``jax.shard_map`` that the norms of one step need.

    Attributes:
      axes: the mesh axes over which norms are summed (``norm_axes``); None if not given.
      gradient: the gradient of the step.
      params: the parameters of the step, or None.
      stage: the stage that takes the norm, for the error.
    """

    axes: tuple[str, ...] | None
    gradient: Tree
    params: Tree | None
    stage: str = ""

    def cut(self, x: jax.Array) -> frozenset[str]:
        """Return the axes along which ``x`` is a shard: it, a parameter and its gradient all vary.

        Without ``check_vma`` types do not show this, and arrays count as shards along ``axes``.
        """
        varying = numerics.varying_axes(x)
        if self.axes is not None:
            typed = {a for a in self.axes if numerics.varying_axes(lax.axis_index(a))}
            return (varying & typed) | (frozenset(self.axes) - typed)
        if not varying:
            return varying
        gradients = jax.tree.leaves(self.gradient)
        params = gradients if self.params is None else jax.tree.leaves(self.params)
        pairs = zip(gradients, params, strict=True)
        both = [numerics.varying_axes(g) & numerics.varying_axes(p) for g, p in pairs]
        return varying & frozenset().union(*both)


_SHARDS: ContextVar[Shards | None] = ContextVar("_SHARDS", default=None)


@contextlib.contextmanager
def step_of(axes: tuple[str, ...] | None, gradient: Tree, params: Tree | None) -> Iterator[None]:
    """Sum norms over ``axes`` in the step inside; None for the axes of the step around it."""
    around = _SHARDS.get()
    axes = around.axes if axes is None and around is not None else axes
    for axis in axes or ():
        try:
            lax.axis_index(axis)
        except NameError:
            raise ValueError(
                f"norm_axes names {axis!r}, which is not an axis of a jax.shard_map around this "
                "update: leave norm_axes out if the update sees whole arrays."
            ) from None
    token = _SHARDS.set(Shards(axes, gradient, params))
    try:
        yield
    finally:
        _SHARDS.reset(token)


@contextlib.contextmanager
def norms_of(stage: str) -> Iterator[None]:
    """Name the stage that takes the norms inside, for the error."""
    shards = _SHARDS.get()
    token = _SHARDS.set(shards and dataclasses.replace(shards, stage=stage))
    try:
        yield
    finally:
        _SHARDS.reset(token)


def summed_axes(x: jax.Array) -> tuple[str, ...]:
    """Return the mesh axes over which a sum over ``x`` must be summed to be that of the whole.

    Raises:
      ValueError: ``x`` is a shard, and ``norm_axes`` was not given.
    """
    shards, axes = _SHARDS.get(), _cut(x)
    if axes and shards is not None and shards.axes is None:
        raise ValueError(
            f"{shards.stage} takes a norm, and inside this jax.shard_map it sees arrays that "
            f"differ along the mesh axes {[*axes]}. If they are shards of whole arrays, write "
            f"compose(tx, norm_axes={axes[0]!r}), which sums norms over the axis; if every device "
            "trains its own model, compose(tx, norm_axes=())."
        )
    return axes


def _cut(x: jax.Array) -> tuple[str, ...]:
    shards = _SHARDS.get()
    return () if shards is None else tuple(sorted(shards.cut(x)))


def check_uncut(x: jax.Array, what: str, remedy: str) -> None:
    """Raise if ``x`` is a shard inside ``jax.shard_map``, for sums over parts of a leaf.

    Args:
      x: a leaf.
      what: the operation that needs the whole leaf, for the error.
      remedy: another remedy, for the error.
    """
    if axes := _cut(x):
        raise ValueError(
            f"{what} needs whole arrays, but one of shape {x.shape} is a shard along the mesh axes "
            f"{[*axes]} of this jax.shard_map: call the update outside, on the sharded arrays, or "
            f"{remedy}; if every device trains its own model, write compose(tx, norm_axes=())."
        )


def size(x: jax.Array) -> int:
    """Return the number of elements of a leaf, over all its shards."""
    return math.prod([x.size, *map(lax.axis_size, summed_axes(x))])


def sum_over_shards(parts: Iterable[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Add scalars that are sums over leaves, and for shards of leaves over all devices.

    Args:
      parts: pairs of scalar and leaf.
    """
    by_axes: dict[tuple[str, ...], list[jax.Array]] = {}
    for part, x in parts:
        by_axes.setdefault(summed_axes(x), []).append(part)
    sums = [lax.psum(sum(some), axes) if axes else sum(some) for axes, some in by_axes.items()]
    return functools.reduce(lax.add, sums, jnp.zeros([], numerics.default_float()))


def square_norm(x: jax.Array) -> jax.Array:
    """Return the sum of |x|^2 over one leaf, real, in the default float dtype."""
    square, axes = _square(x), summed_axes(x)
    return lax.psum(square, axes) if axes else square


def _square(x: jax.Array) -> jax.Array:
    return lax.reduce_sum(numerics.abs_square(numerics.widen(x)), tuple(range(x.ndim)))


def square_norm_of_tree(tree: Tree) -> jax.Array:
    """Return the sum of |x|^2 over all leaves; 0 for an empty tree.

    Sharded arrays count as a whole; see ``norm_axes`` of ``compose`` for ``jax.shard_map``.
    """
    return sum_over_shards([(_square(x), x) for x in jax.tree.leaves(tree)])


def norm_of_tree(tree: Tree) -> jax.Array:
    """Return the Euclidean norm over all leaves, correct even if squares overflow.

    For zeros it is 0, with a derivative of 0.
    """
    return norms_of_groups([jax.tree.leaves(tree)])[0]


def norms_of_leaves(tree: Tree, *, plain: bool = False) -> Tree:
    """Return the norm of every leaf: a tree of scalars.

    Args:
      tree: of arrays.
      plain: allow an infinite norm if a square overflows. A step that runs leaf by leaf needs this
        for its directions, because a branch would write each of them out once more.
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(norms_of_groups([[x] for x in leaves], plain=plain))


def norms_of_groups(groups: list[list[jax.Array]], *, plain: bool = False) -> list[jax.Array]:
    """Return the norm of each group of leaves.

    If a square overflows on a CPU, all leaves are read once more, scaled by a power of two. On
    other devices both sums are taken in one pass: a branch would write its operands to memory, such
    as the direction of LAMB, and there memory takes longer than arithmetic.
    """
    if not (plain or sequential.on_cpu()):
        return list(map(_norm_in_one_pass, groups))
    parts = [[_square(x) for x in leaves] for leaves in groups]
    squares = [sum_over_shards(zip(*both, strict=True)) for both in zip(parts, groups, strict=True)]
    if plain or not squares:
        return list(map(_root, squares))
    usual = functools.reduce(lax.bitwise_and, map(lax.is_finite, squares))

    def again(square: jax.Array, parts: list[jax.Array], leaves: list[jax.Array]) -> jax.Array:
        # XLA would take the square of a constant out of the sum, where it is 0.
        power = lax.select(lax.is_finite(square), lax.full_like(square, 1), _least(square))
        # A factor for each leaf, equal to ``power``: XLA would write out what leaves share.
        own = [lax.select(lax.ge(x, lax.full_like(x, 0)), power, x) for x in parts]
        small = [numerics.scaled(f, numerics.widen(x)) for f, x in zip(own, leaves, strict=True)]
        return _root(square_norm_of_tree(small)) / power

    return numerics.branch(
        usual, lambda: list(map(_root, squares)), lambda: list(map(again, squares, parts, groups))
    )


def _least(square: jax.Array) -> jax.Array:
    """Return a power of two that makes any number small enough to be squared."""
    return lax.full_like(square, 2.0 ** -(5 * int(jnp.finfo(square.dtype).maxexp) // 8))


def _norm_in_one_pass(leaves: list[jax.Array]) -> jax.Array:
    """Return the norm of a group of leaves from the sums of its squares and of smaller squares."""
    square = square_norm_of_tree(leaves)
    # XLA would take the square of a constant out of the sum, where it is 0.
    factor = sequential.unseen(_least(square))
    small = square_norm_of_tree([numerics.scaled(factor, numerics.widen(x)) for x in leaves])
    return lax.select(lax.is_finite(square), _root(square), _root(small) / factor)


def _root(square: jax.Array) -> jax.Array:
    """Return the root of x >= 0, with a derivative of 0 at 0."""
    nothing = lax.full_like(square, 0)
    return lax.select(lax.eq(square, nothing), nothing, lax.sqrt(numerics.nonzero(square)))


def within(length: jax.Array, most: jax.Array) -> jax.Array:
    """Return the factor, at most 1, that brings ``length`` down to ``most``, which may be inf."""
    one = lax.full_like(length, 1)
    return lax.select(lax.le(length, most), one, most / numerics.nonzero(length))


def check_floating(tree: Tree, what: str) -> None:
    """Raise if a leaf is not floating; ``what`` precedes its name in the error."""
    for name, leaf in numerics.named_leaves(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            raise numerics.not_floating(what, name, leaf)


def entering(gradient: Tree, params: Tree | None) -> tuple[Tree, Tree | None]:
    """Return gradient and parameters of a step as trees of arrays with the same structure.

    Equinox gives the whole model as parameters, and None as the gradient of leaves that are not
    arrays. These leaves become None in both trees.
    """
    gradient = numerics.as_arrays(gradient, "gradient of")
    if params is None:
        return gradient, None
    structure = jax.tree.structure(gradient)
    if jax.tree.structure(params) != structure:
        with contextlib.suppress(ValueError):
            params = jax.tree.map(
                lambda g, p: None if g is None else p, gradient, params, is_leaf=lambda g: g is None
            )
        if jax.tree.structure(params) != structure:
            raise ValueError(
                "the gradients do not have the structure of the parameters in params: "
                f"{_difference(gradient, params)}. Give the parameters that belong to the "
                "gradients, and None as the gradient of a parameter that is not trained."
            )
    params = numerics.as_arrays(params)
    for (name, g), p in zip(numerics.named_leaves(gradient), jax.tree.leaves(params), strict=True):
        if jnp.shape(g) != jnp.shape(p):
            raise ValueError(
                f"the gradient of {name!r} has shape {jnp.shape(g)}, the parameter in params "
                f"{jnp.shape(p)}: give the parameters that belong to the gradients."
            )
    return gradient, params


def check_gradient(gradient: Tree, like: Tree | None) -> None:
    """Raise if the gradients are not floating, or do not fit ``like`` (None: not known)."""
    check_floating(gradient, "gradient of")
    if like is None:
        return
    if jax.tree.structure(gradient) != jax.tree.structure(like):
        raise ValueError(
            "the gradients do not have the structure of the parameters given to init: "
            f"{_difference(gradient, like)}. Call init again for a changed tree; if leaves "
            "were frozen before or are now, use migrate_state(..., thaw=True). For parameters "
            "without a gradient give zeros, or None in both trees. If the state was made with, or "
            "without, pack_small_leaves, convert it with repack_state."
        )
    for (name, g), p in zip(numerics.named_leaves(gradient), jax.tree.leaves(like), strict=True):
        if g.shape != p.shape:
            raise ValueError(
                f"the gradient of {name!r} has shape {g.shape}, the "
                f"parameter given to init had {p.shape}. Call init again for a changed tree."
            )


def _difference(have: Tree, expected: Tree) -> str:
    names, wanted = set(numerics.leaf_names(have)), set(numerics.leaf_names(expected))
    return f"missing leaves {sorted(wanted - names)}, surplus leaves {sorted(names - wanted)}"
