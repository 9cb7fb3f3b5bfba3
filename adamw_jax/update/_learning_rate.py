"""Turn the direction into an update by the learning rate.

    update = -lr_t direction

>>> scale_by_learning_rate(1e-3).spec.kinds
'direction -> update'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, length
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._rule import times
from adamw_jax.direction._rules import values_of

Tree = Any


@shows_options
def scale_by_learning_rate(
    learning_rate: ScalarOrSchedule,
    *,
    flip_sign: bool = True,
    rules: ParameterRules | None = None,
) -> Stage:
    """Multiply the direction by minus the learning rate.

    Args:
      learning_rate: number >= 0, or a schedule of the step count, whose values are not checked (a
        negative value ascends). To maximise, negate the loss or the gradients.
      flip_sign: False multiplies by the learning rate itself, to maximise.
      rules: learning rates of groups of parameters, and multipliers.

    Returns:
      A stage *direction -> update*.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.scale_by_adam(), aj.scale_by_learning_rate(1e-3))
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        if step.facts.step_size is not None:
            step.facts.step_size = step.facts.step_size * step["learning_rate"]
        sign = lax.neg if flip_sign else None
        return scaled_by_rates(rules, direction, step, sign), state

    return stage(
        "scale_by_learning_rate",
        Kind.DIRECTION,
        Kind.UPDATE,
        apply,
        **declared_with(learning_rate, rules),
    )


class ScaledGradientState(NamedTuple):
    """Marks a state, without an array, whose momentum includes the learning rate."""


@shows_options
def scale_gradient(learning_rate: ScalarOrSchedule, rules: ParameterRules | None = None) -> Stage:
    """Multiply the gradient by the learning rate, so that the momentum buffer includes it.

    With ``descend()`` at the end this is Algorithm 1 of Loshchilov & Hutter (1711.05101).
    ``rules`` are as for ``scale_by_learning_rate``.

    Returns:
      A stage *gradient -> gradient*.
    """

    def apply(gradient: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        return scaled_by_rates(rules, gradient, step), state

    return stage(
        "scale_gradient",
        Kind.GRADIENT,
        Kind.GRADIENT,
        apply,
        init=lambda params: ScaledGradientState(),
        **declared_with(learning_rate, rules),
    )


def descend() -> Stage:
    """Negate a direction that already includes the learning rate: *direction -> update*."""

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        del step
        return jax.tree.map(lambda d: -d, direction), state

    return stage("descend", Kind.DIRECTION, Kind.UPDATE, apply)


def declared_with(learning_rate: ScalarOrSchedule, rules: ParameterRules | None) -> dict[str, Any]:
    """Return what a stage declares that multiplies by the learning rates of the leaves."""
    own = {} if rules is None else rules.declared("learning_rate")
    return {
        "hyperparams": declare(learning_rate=length(learning_rate)) | own,
        "settings": None if rules is None else rules.settings,
    }


def scaled_by_rates(
    rules: ParameterRules | None, flow: Tree, step: Step, change: Callable[..., Any] | None = None
) -> Tree:
    """Return each leaf times its learning rate, which ``change`` is given first."""
    tree = flow if step.params is None else step.params
    rates = values_of(rules, "learning_rate", step, tree, change=change or (lambda rate: rate))
    return jax.tree.map(lambda rate, x: times(numerics.widen(x), rate), rates, flow)
