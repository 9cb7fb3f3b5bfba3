"""Step lengths from the norm over all leaves: clipping and normalisation.

    clip_gradient    g      <- g min(1, max_grad_norm / (|g| + eps))
    clip_step        update  = -min(lr, max_step / (|u| + 1e-10)) u
    normalize        u      <- u / (|u| + 1e-10)

``clip_step`` differs from clipping the gradient by its norm before momentum: no step is longer than
``max_step``, whatever the learning rate and the momentum. Norms are over the whole tree that the
stage sees; under ``optax.partition`` and ``optax.masked`` each part has its own.

>>> clip_step(0.1, 1.0).spec.kinds
'direction -> update'
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax import numerics
from adamw_jax.gradients import square_norm_of_tree
from adamw_jax.hyperparameters import ScalarOrSchedule, declare
from adamw_jax.stage import Kind, Stage, Step, stage

Tree = Any

_FLOOR = 1e-10


def global_norm(tree: Tree) -> jax.Array:
    """The Euclidean norm over all leaves, in the default float dtype; 0 for an empty tree."""
    return numerics.root(square_norm_of_tree(tree))


def clip_gradient(max_grad_norm: ScalarOrSchedule, eps: ScalarOrSchedule = 1e-8) -> Stage:
    """Scales the gradient down to a norm of at most ``max_grad_norm``: *gradient -> gradient*.

    Args:
      max_grad_norm: largest norm, > 0.
      eps: added to the norm, >= 0.
    """

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        one = jnp.ones([], numerics.default_float())
        factor = lax.min(one, step["max_grad_norm"] / (global_norm(gradient) + step["eps"]))
        return _times(factor, gradient), state

    declared = declare(max_grad_norm=max_grad_norm, eps=eps)
    return stage("clip_gradient", Kind.GRADIENT, Kind.GRADIENT, apply, hyperparams=declared)


def clip_step(learning_rate: ScalarOrSchedule, max_step: ScalarOrSchedule) -> Stage:
    """Learning rate whose step is at most ``max_step`` long: *direction -> update*.

    Args:
      learning_rate: number >= 0, or a schedule of the step count.
      max_step: largest Euclidean length of a step over all parameters, > 0.
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        longest = step["max_step"] / (global_norm(direction) + _FLOOR)
        return _times(-lax.min(step["learning_rate"], longest), direction), state

    declared = declare(learning_rate=learning_rate, max_step=max_step)
    return stage("clip_step", Kind.DIRECTION, Kind.UPDATE, apply, hyperparams=declared)


def normalize() -> Stage:
    """Makes the direction 1 long over all parameters: *direction -> direction*."""

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        del step
        return _times(1.0 / (global_norm(direction) + _FLOOR), direction), state

    return stage("normalize", Kind.DIRECTION, Kind.DIRECTION, apply)


def _times(factor: jax.Array, tree: Tree) -> Tree:
    return jax.tree.map(lambda x: numerics.scaled(factor, numerics.widen(x)), tree)
