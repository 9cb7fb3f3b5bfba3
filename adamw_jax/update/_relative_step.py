"""Scale by a relative step, a learning rate that falls without a schedule.

    update = -min(learning_rate, 1 / sqrt(t)) direction          t = 1, 2, ...

Shazeer & Stern, ICML 2018, arXiv 1804.04235, whose learning rate is 1e-2, or 1e-6 t for a slow
start. In PyTorch and Keras the user's learning rate is an upper bound in the same way.

>>> scale_by_relative_step(1e-2).spec.kinds
'direction -> update'
>>> import jax.numpy as jnp
>>> [round(float(relative_step(jnp.float32(0.1), jnp.int32(t - 1))), 3) for t in (1, 100, 400)]
[0.1, 0.1, 0.05]
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._rules import values_of
from adamw_jax.update._learning_rate import declared_with, scaled_by_rates

Tree = Any

LARGEST = 1e-2
"""The learning rate of the paper."""


def slow_start(count: Any) -> Any:
    """Return the paper's learning rate with warm-up, ``1e-6 t``."""
    return 1e-6 * (numerics.scalar(count) + 1.0)


def relative_step(learning_rate: jax.Array, count: jax.Array) -> jax.Array:
    """Return ``min(learning_rate, 1 / sqrt(t))`` at step ``t = count + 1``."""
    return lax.min(learning_rate, lax.rsqrt(numerics.scalar(count) + 1.0))


def learning_rates(rules: ParameterRules | None, step: Step, tree: Tree, *, relative: bool) -> Tree:
    """Return the learning rate of each leaf, or with ``relative`` its relative step."""

    def bounded(rate: jax.Array) -> jax.Array:
        return relative_step(rate, step.count) if relative else rate

    return values_of(rules, "learning_rate", step, tree, change=bounded)


@shows_options
def scale_by_relative_step(
    learning_rate: ScalarOrSchedule = LARGEST, rules: ParameterRules | None = None
) -> Stage:
    """Multiply the direction by minus the relative step.

    Args:
      learning_rate: upper bound of the relative step, >= 0, or a schedule of it; 1e-2 (paper).
      rules: per-parameter upper bounds, and multipliers of the step.

    Returns:
      A stage *direction -> update*.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.scale_by_adam(), aj.update.scale_by_relative_step(1e-2))
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        def change(rate: jax.Array) -> jax.Array:
            return -relative_step(rate, step.count)

        return scaled_by_rates(rules, direction, step, change), state

    return stage(
        "scale_by_relative_step",
        Kind.DIRECTION,
        Kind.UPDATE,
        apply,
        **declared_with(learning_rate, rules),
    )
