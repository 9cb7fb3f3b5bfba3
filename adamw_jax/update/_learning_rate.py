"""Turn the direction into an update by the learning rate.

    update = -lr_t direction

>>> scale_by_learning_rate(1e-3).spec.kinds
'direction -> update'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, length
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any


def scale_by_learning_rate(learning_rate: ScalarOrSchedule, *, flip_sign: bool = True) -> Stage:
    """Multiply the direction by minus the learning rate.

    Args:
      learning_rate: number >= 0, or a schedule of the step count, whose values are not checked (a
        negative value ascends). To maximise, negate the loss or the gradients.
      flip_sign: False multiplies by the learning rate itself, to maximise.

    Returns:
      A stage *direction -> update*.
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        rate = -step["learning_rate"] if flip_sign else step["learning_rate"]
        if step.facts.step_size is not None:
            step.facts.step_size = step.facts.step_size * step["learning_rate"]
        return _scaled(rate, direction), state

    declared = declare(learning_rate=length(learning_rate))
    return stage("scale_by_learning_rate", Kind.DIRECTION, Kind.UPDATE, apply, hyperparams=declared)


class ScaledGradientState(NamedTuple):
    """Marks a state, without an array, whose momentum includes the learning rate."""


def scale_gradient(learning_rate: ScalarOrSchedule) -> Stage:
    """Multiply the gradient by the learning rate, so that the momentum buffer includes it.

    With ``descend()`` at the end this is Algorithm 1 of Loshchilov & Hutter (1711.05101).

    Returns:
      A stage *gradient -> gradient*.
    """

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        rate = step["learning_rate"]
        return _scaled(rate, gradient), state

    declared = declare(learning_rate=length(learning_rate))
    return stage(
        "scale_gradient",
        Kind.GRADIENT,
        Kind.GRADIENT,
        apply,
        init=lambda params: ScaledGradientState(),
        hyperparams=declared,
    )


def descend() -> Stage:
    """Negate a direction that already includes the learning rate: *direction -> update*."""

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        del step
        return jax.tree.map(lambda d: -d, direction), state

    return stage("descend", Kind.DIRECTION, Kind.UPDATE, apply)


def _scaled(rate: jax.Array, tree: Tree) -> Tree:
    wide = jax.tree.map(numerics.widen, tree)
    return jax.tree.map(lambda x: numerics.scaled(rate, x), wide)
