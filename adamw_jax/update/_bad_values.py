"""Find values that are not finite, and let devices agree on it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.compose import Composed
from adamw_jax._core.gradients import summed_axes
from adamw_jax._core.wrapper import innermost

Tree = Any


class Devices(NamedTuple):
    """The devices that decide together inside ``jax.shard_map`` or ``jax.pmap``.

    Attributes:
      axes: the axes that were given.
      typed: whether to add those along which types show that a value differs.
    """

    axes: tuple[str, ...]
    typed: bool

    def mean(self, x: jax.Array) -> jax.Array:
        """Return the mean over the devices."""
        axes = self._axes(x)
        return lax.pmean(x, axes) if axes else x

    def largest(self, x: jax.Array) -> jax.Array:
        """Return the largest value of the devices."""
        axes = self._axes(x)
        return lax.pmax(x, axes) if axes else x

    def _axes(self, x: jax.Array) -> tuple[str, ...]:
        varying = numerics.varying_axes(x)
        axes = set(varying) if self.typed else set()
        for axis in self.axes:
            try:
                has_types = bool(numerics.varying_axes(lax.axis_index(axis)))
            except NameError:
                raise ValueError(
                    f"axis_name names {axis!r}, which is not an axis of a jax.shard_map or "
                    "jax.pmap around this update: leave axis_name out if the update sees whole "
                    "arrays."
                ) from None
            axes |= {axis} if axis in varying or not has_types else set()
        return tuple(sorted(axes))


def devices_of(
    tx: optax.GradientTransformation, axis_name: str | Sequence[str] | None
) -> tuple[Devices, tuple[str, ...] | None]:
    """Return the devices that decide together for ``tx``, and its ``norm_axes``."""
    recipe = innermost(tx)
    norm_axes = recipe.norm_axes if isinstance(recipe, Composed) else None
    given = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    return Devices(given, norm_axes != ()), norm_axes


def is_bad(tree: Tree) -> jax.Array:
    """Return whether a tree has a value that is not finite, on any device that has a shard."""
    return any_bad((x, bad(x)) for x in jax.tree.leaves(tree))


def bad(x: jax.Array) -> jax.Array:
    """Return where an array is not finite; nowhere if it has whole numbers."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return lax.full_like(x, False, jnp.bool_)
    parts = [lax.real(x), lax.imag(x)] if jnp.iscomplexobj(x) else [x]
    return lax.bitwise_not(functools.reduce(lax.bitwise_and, map(lax.is_finite, parts)))


def any_bad(found: Iterable[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Return whether anything is bad in pairs of an array and where it is bad."""
    by_axes: dict[tuple[str, ...], list[jax.Array]] = {}
    for x, where in found:
        some = lax.reduce_or(where, tuple(range(where.ndim)))
        by_axes.setdefault(summed_axes(x), []).append(some)
    parts = []
    for axes, some in by_axes.items():
        one = functools.reduce(lax.bitwise_or, some)
        parts.append(lax.pmax(lax.convert_element_type(one, jnp.int32), axes) > 0 if axes else one)
    return functools.reduce(lax.bitwise_or, parts, jnp.bool_(False))
