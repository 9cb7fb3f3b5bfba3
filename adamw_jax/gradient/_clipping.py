"""Step lengths from the norm over all leaves: clipping and normalisation.

    clip_gradient    g      <- g min(1, max_grad_norm / (|g| + eps))
    clip_step        u      <- u min(1, max_step / (lr (|u| + 1e-10)))
    normalize        u      <- u / (|u| + 1e-10)

``clip_step`` differs from clipping the gradient by its norm before momentum: no step is longer than
``max_step``, whatever the learning rate and the momentum. Norms are over the whole tree that the
stage sees, so under ``optax.partition`` and ``optax.masked`` each part has its own; ``per_leaf``
takes those of the leaves. Inside ``jax.shard_map`` a stage sees a shard, and ``norm_axes``
of ``compose`` says over which axes norms are summed.

>>> clip_step(0.1, 1.0).spec.kinds
'direction -> direction'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import ScalarOrSchedule, bound, declare, length, nonnegative
from adamw_jax._core.gradients import norm_of_tree, norms_of_leaves
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

_FLOOR = 1e-10


def clip_gradient(max_grad_norm: ScalarOrSchedule, eps: ScalarOrSchedule = 1e-8) -> Stage:
    """Scales the gradient down to a norm of at most ``max_grad_norm``.

    Args:
      max_grad_norm: largest Euclidean norm over all leaves, > 0, or a schedule of it.
      eps: added to the norm, >= 0; 1e-8.

    Returns:
      A stage *gradient -> gradient*, without state.

    Raises:
      ValueError: a value is out of its range.
      TypeError: a value is neither number nor schedule.
    """

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        most, length = step["max_grad_norm"], norm_of_tree(gradient) + step["clip_eps"]
        return _times(most / numerics.nonzero(lax.max(length, most)), gradient), state

    declare(eps=nonnegative(eps))
    # A name of its own: that of precondition's eps stays when a clip is put before it.
    declared = declare(max_grad_norm=bound(max_grad_norm), clip_eps=nonnegative(eps))
    return stage(
        "clip_gradient", Kind.GRADIENT, Kind.GRADIENT, apply, hyperparams=declared, clips=True
    )


def clip_step(
    learning_rate: ScalarOrSchedule, max_step: ScalarOrSchedule, *, per_leaf: bool = False
) -> Stage:
    """Shortens a direction whose step, ``learning_rate`` times it, were longer than ``max_step``.

    Args:
      learning_rate: that of the recipe, a number >= 0 or a schedule of the step count.
      max_step: largest Euclidean length of a step over all parameters, in their units, > 0, or a
        schedule of it.
      per_leaf: of a step of every leaf, instead.

    Returns:
      A stage *direction -> direction*; decay and rules behind it are not clipped.

    Raises:
      ValueError: a value is out of its range, or ``per_leaf`` is no bool.
      TypeError: a value is neither number nor schedule.
    """
    switch("per_leaf", per_leaf)

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        longest = step["max_step"]

        def factor(norm: jax.Array) -> jax.Array:
            length = step["learning_rate"] * (norm + _FLOOR)
            return longest / numerics.nonzero(lax.max(length, longest))

        return _scaled_by_norm(per_leaf, factor, direction), state

    declared = declare(learning_rate=length(learning_rate), max_step=bound(max_step))
    return stage(
        "clip_step", Kind.DIRECTION, Kind.DIRECTION, apply, hyperparams=declared, clips=True
    )


def normalize(*, per_leaf: bool = False) -> Stage:
    """Makes the direction 1 long over all parameters.

    Args:
      per_leaf: every leaf 1 long, instead.

    Returns:
      A stage *direction -> direction*, without state. A direction of zeros stays one.

    Raises:
      ValueError: ``per_leaf`` is no bool.
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
