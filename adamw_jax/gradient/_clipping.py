"""Limit or fix the norm of gradients and steps.

    clip_gradient    g      <- g min(1, max_grad_norm / (|g| + eps))
    clip_step        u      <- u min(1, max_step / (lr (|u| + 1e-10)))
    clip_elements    u_i    <- u_i min(1, limit / |u_i|)             element by element
    normalize        u      <- u / (|u| + 1e-10)

A clipped gradient does not limit the step. With ``clip_step`` no step is longer than ``max_step``,
whatever the learning rate and the momentum. A norm is taken over all leaves that the stage sees
(under ``optax.partition`` and ``optax.masked`` those of its part), or with ``per_leaf`` over each
leaf. Inside ``jax.shard_map`` a stage sees one shard; ``norm_axes`` of ``compose`` names the axes
over which norms are summed.

>>> clip_step(0.1, 1.0).spec.kinds
'direction -> direction'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import ScalarOrSchedule, bound, declare, length, nonnegative
from adamw_jax._core.gradients import norm_of_tree, norms_of_leaves, within
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

_FLOOR = 1e-10


@shows_options
def clip_gradient(max_grad_norm: ScalarOrSchedule, eps: ScalarOrSchedule = 1e-8) -> Stage:
    """Scale the gradient down to a norm of at most ``max_grad_norm``.

    Args:
      max_grad_norm: largest Euclidean norm over all leaves, > 0, or a schedule of it.
      eps: added to the norm, >= 0; 1e-8.

    Returns:
      A stage *gradient -> gradient*, without state.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.clip_gradient(1.0), aj.adamw(1e-3))
    """

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        most, length = step["max_grad_norm"], norm_of_tree(gradient) + step["clip_eps"]
        return _times(within(length, most), gradient), state

    declare(eps=nonnegative(eps))
    # A different name, so that adding a clip does not change the name of precondition's eps.
    declared = declare(max_grad_norm=bound(max_grad_norm), clip_eps=nonnegative(eps))
    return stage(
        "clip_gradient", Kind.GRADIENT, Kind.GRADIENT, apply, hyperparams=declared, clips=True
    )


@shows_options
def clip_step(
    learning_rate: ScalarOrSchedule, max_step: ScalarOrSchedule, *, per_leaf: bool = False
) -> Stage:
    """Scale the direction down if ``learning_rate`` times it would be longer than ``max_step``.

    Args:
      learning_rate: the learning rate of the recipe, a number >= 0 or a schedule.
      max_step: largest Euclidean length of a step over all parameters, in their units, > 0, or a
        schedule of it.
      per_leaf: limit the step of each leaf instead.

    Returns:
      A stage *direction -> direction*. It does not clip decay and rules that come after it.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.no_moment(), aj.moments.no_moment()),
      ...     aj.precondition(None),
      ...     aj.gradient.clip_step(0.1, max_step=0.01),
      ...     aj.scale_by_learning_rate(0.1),
      ... )
    """
    switch("per_leaf", per_leaf)

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        longest = step["max_step"]

        def factor(norm: jax.Array) -> jax.Array:
            return within(step["learning_rate"] * (norm + _FLOOR), longest)

        return _scaled_by_norm(per_leaf, factor, direction), state

    most = bound._replace(reshapes_step=True)
    declared = declare(learning_rate=length(learning_rate), max_step=most(max_step))
    return stage(
        "clip_step", Kind.DIRECTION, Kind.DIRECTION, apply, hyperparams=declared, clips=True
    )


def clip_elements(limit: ScalarOrSchedule) -> Stage:
    """Bound the magnitude of each element of the direction.

    Args:
      limit: largest magnitude, >= 0, or a schedule of it.

    Returns:
      A stage *direction -> direction*, without state. A complex element keeps its phase.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.scale_by_adam(), aj.gradient.clip_elements(2.0), aj.scale_by_learning_rate(1e-3)
      ... )
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        most = step["limit"]

        def leaf(u: jax.Array) -> jax.Array:
            u, limit = numerics.widen(u), lax.broadcast(most, u.shape)
            if not jnp.issubdtype(u.dtype, jnp.complexfloating):
                return lax.clamp(lax.neg(limit), u, limit)
            return lax.mul(u, numerics.like(within(lax.abs(u), limit), u))

        return jax.tree.map(leaf, direction), state

    declared = declare(limit=nonnegative._replace(infinite=True)(limit))
    return stage(
        "clip_elements", Kind.DIRECTION, Kind.DIRECTION, apply, hyperparams=declared, clips=True
    )


@shows_options
def normalize(*, per_leaf: bool = False) -> Stage:
    """Scale the direction to a norm of 1 over all parameters.

    Args:
      per_leaf: scale each leaf to a norm of 1 instead.

    Returns:
      A stage *direction -> direction*, without state. A direction of zeros stays zero.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.no_moment(), aj.moments.no_moment()),
      ...     aj.precondition(None),
      ...     aj.gradient.normalize(),
      ...     aj.scale_by_learning_rate(0.1),
      ... )
    """
    switch("per_leaf", per_leaf)

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        del step
        return _scaled_by_norm(per_leaf, lambda norm: 1.0 / (norm + _FLOOR), direction), state

    return stage("normalize", Kind.DIRECTION, Kind.DIRECTION, apply)


def _scaled_by_norm(per_leaf: bool, factor: Callable[[jax.Array], jax.Array], tree: Tree) -> Tree:
    if not per_leaf:
        return _times(factor(norm_of_tree(tree)), tree)
    return jax.tree.map(lambda norm, x: _times(factor(norm), x), norms_of_leaves(tree), tree)


def _times(factor: jax.Array, tree: Tree) -> Tree:
    return jax.tree.map(lambda x: numerics.scaled(factor, numerics.widen(x)), tree)
