"""Clip each leaf of the gradient at a percentile of its last norms.

    h[t mod n] <- |g_t|^2          (t = 1, 2, ...; the first fills all n slots of h)
    g <- g min(1, sqrt(sorted(h)[k]) / |g_t|),      k = percentile n / 100, rounded down

The threshold follows the gradients, so it need not be tuned. This is the clipping of bitsandbytes
up to 0.49.2 (the code of Dettmers, Lewis, Shleifer & Zettlemoyer, ICLR 2022, arXiv 2110.02861; not
in the paper). There it was off by default, and the 5th percentile of 100 steps was recommended. In
bitsandbytes a first gradient of zeros sets the threshold to 0 for 94 more steps. Here norms that
are zero or not finite are not recorded.

>>> import jax.numpy as jnp
>>> tx = percentile_clipping()
>>> state = tx.init(jnp.zeros(2))
>>> for g in (jnp.array([3.0, 4.0]), jnp.array([30.0, 40.0])):
...     updates, state = tx.update(g, state)
>>> updates
Array([3., 4.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, switch, whole_number
from adamw_jax._core.gradients import (
    check_floating,
    check_gradient,
    norms_of_groups,
    square_norm_of_tree,
)
from adamw_jax._core.numerics import increment
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any


class PercentileClippingState(NamedTuple):
    """State of ``percentile_clipping``.

    Attributes:
      squares: the last squared norms, one row per leaf in the order of ``jax.tree.leaves``; 0
        before the first gradient.
      seen: number of gradients so far, int32.
    """

    squares: jax.Array
    seen: jax.Array


@shows_options
def percentile_clipping(
    percentile: float = 5, history: int = 100, *, whole_tree: bool = False
) -> Stage:
    """Scale each leaf of the gradient down to a percentile of its last norms.

    Args:
      percentile: in [0, 100); 5, which clips most steps and lets the norm change slowly. The
        current norm is one of those that are ranked.
      history: number n of norms that are kept, >= 1; 100 steps.
      whole_tree: use one norm over all leaves (of its part, under ``optax.partition`` and
        ``optax.masked``) instead of one per leaf.

    Returns:
      A stage *gradient -> gradient* with n scalars of state per leaf.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.gradient.percentile_clipping(5), aj.adamw(1e-3))
    """
    percentile = number("percentile", percentile, least=0, below=100)
    history = whole_number("history", history)
    switch("whole_tree", whole_tree)
    rank = int(percentile * history / 100)

    def init(params: Tree) -> PercentileClippingState:
        check_floating(params, "parameter")
        rows = 1 if whole_tree else len(jax.tree.leaves(params))
        squares = jnp.zeros((rows, history), numerics.default_float())
        return PercentileClippingState(squares, jnp.zeros([], jnp.int32))

    def apply(
        gradient: Tree, state: PercentileClippingState, step: Step
    ) -> tuple[Tree, PercentileClippingState]:
        check_gradient(gradient, step.params)
        leaves, structure = jax.tree.flatten(gradient)
        if not leaves:
            return gradient, state
        groups = [leaves] if whole_tree else [[g] for g in leaves]
        now = [square_norm_of_tree(group) for group in groups]
        _check_rows(len(now), state)
        seen = increment(state.seen)
        squares, limits = _recorded(jnp.stack(now), state.squares, seen)
        norms = norms_of_groups(groups)
        factors = list(map(_factor, now, norms, limits))
        factors = factors * (len(leaves) // len(factors))
        clipped = [
            numerics.scaled(factor, numerics.widen(g))
            for factor, g in zip(factors, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, clipped), PercentileClippingState(squares, seen)

    def _recorded(
        now: jax.Array, squares: jax.Array, seen: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the history with the current squared norms in it, and its percentiles."""
        slot = lax.rem(seen, lax.full_like(seen, history))
        before = lax.dynamic_index_in_dim(squares, slot, 1)
        now = now[:, None]
        now = jnp.where((now > 0) & lax.is_finite(now), now, before)
        squares = jnp.where(squares == 0, now, squares)
        squares = lax.dynamic_update_slice_in_dim(squares, now, slot, 1)
        return squares, lax.sort(squares)[:, rank]

    return stage("percentile_clipping", Kind.GRADIENT, Kind.GRADIENT, apply, init=init, clips=True)


def _factor(square: jax.Array, norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Return ``min(1, sqrt(limit) / norm)``, or 1 if no norm is recorded yet.

    A NaN norm also gives 1, so that a NaN does not spread over its leaf.
    """
    factor = numerics.root(limit) / numerics.nonzero(norm)
    return jnp.where((square > limit) & (limit > 0), factor, jnp.ones_like(factor))


def _check_rows(rows: int, state: PercentileClippingState) -> None:
    expected = state.squares.shape[0]
    if rows != expected:
        raise ValueError(
            f"the gradient has {rows} leaves, but the parameters given to init had {expected}: "
            "call init again after changing the tree."
        )
