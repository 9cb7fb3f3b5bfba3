"""Scale the step of each leaf by the root mean square of its parameters.

    u <- max(min_scale, RMS(theta)) u                        RMS over the whole leaf

``min_scale`` lets a leaf of zeros move. T5X also has an upper bound. Shazeer & Stern, ICML 2018,
arXiv 1804.04235, section 8.

>>> import jax.numpy as jnp
>>> stage = scale_by_parameter_rms(1e-3)
>>> u, theta = jnp.array([1.0, -1.0]), jnp.array([2.0, -2.0])
>>> stage.update(u, stage.init(theta), theta)[0]
Array([ 2., -2.], dtype=float32)
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, bound, declare, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction._clip_by_rms import rms_of_leaves

Tree = Any


@shows_options
def scale_by_parameter_rms(
    min_scale: ScalarOrSchedule = 1e-3, max_scale: ScalarOrSchedule | None = None
) -> Stage:
    """Multiply the direction of each leaf by the root mean square of the parameter.

    Args:
      min_scale: lower bound of the factor, >= 0; 1e-3 (paper's eps2).
      max_scale: upper bound of the factor, > 0 (T5X's option); None for no bound.

    Returns:
      A stage *direction -> direction*, without state. It needs the parameters and whole leaves.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.scale_by_adam(),
      ...     aj.direction.scale_by_parameter_rms(),
      ...     aj.scale_by_learning_rate(1e-2),
      ... )
    """

    def factor_of(size: jax.Array, step: Step) -> jax.Array:
        factor = lax.max(size, step["min_scale"])
        return factor if max_scale is None else lax.min(factor, step["max_scale"])

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        factors = jax.tree.map(lambda size: factor_of(size, step), rms_of_leaves(step.params))
        step.facts.parameter_scale = factors
        return jax.tree.map(
            lambda factor, u: numerics.scaled(factor, numerics.widen(u)), factors, direction
        ), state

    return stage(
        "scale_by_parameter_rms",
        Kind.DIRECTION,
        Kind.DIRECTION,
        apply,
        hyperparams=declare(min_scale=nonnegative(min_scale), max_scale=bound.if_given(max_scale)),
        needs_params=True,
    )
