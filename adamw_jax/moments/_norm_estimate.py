"""Divide the gradient by a running estimate of its norm.

    direction = g_t / (m_t + floor)
    m_1 = |g_1|;    m_{t+1}^2 = beta m_t^2 + (1 - beta) |g_t|^2

After Zhang, Lin, Das, Sra & Jadbabaie, ICML 2022, arXiv 2006.04429, for noise whose size changes
slowly during the run; a single large gradient cannot be predicted. Unlike RMSProp it uses one norm
over all leaves, and m_t does not include g_t, so the length of a step does not depend on the noise
in its direction.

>>> scale_by_norm_estimate().spec.kinds
'gradient -> direction'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, nonnegative
from adamw_jax._core.gradients import (
    check_floating,
    check_gradient,
    norm_of_tree,
    square_norm_of_tree,
)
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Slopes, Stage, Step, stage

Tree = Any


class NormEstimateState(NamedTuple):
    """State of ``scale_by_norm_estimate``.

    Attributes:
      square: the average of |g|^2, a scalar; 0 before the first gradient. Norms that are not finite
        are left out.
    """

    square: jax.Array


@shows_options
def scale_by_norm_estimate(
    beta: ScalarOrSchedule = 0.9, floor: ScalarOrSchedule = 1e-3, use_previous: bool = True
) -> Stage:
    """Divide the gradient by an estimate of its norm over all leaves.

    Args:
      beta: decay rate of the average of squared norms, in [0, 1); 0.9. The theory uses
        1 - O(T^(-2/3)) for T steps.
      floor: added to the estimate, >= 0, in the units of the gradient's norm; 1e-3.
      use_previous: estimate from the gradients before this one (the first step uses |g_1|). False
        includes the current gradient, as RMSProp does.

    Returns:
      A stage *gradient -> direction* with one scalar of state. Under ``optax.partition`` and
      ``optax.masked`` the norm is over the leaves of its part.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.moments.scale_by_norm_estimate(0.9), aj.scale_by_learning_rate(0.1))
    """
    switch("use_previous", use_previous)

    def init(params: Tree) -> NormEstimateState:
        check_floating(params, "parameter")
        return NormEstimateState(jnp.zeros([], numerics.default_float()))

    def apply(
        gradient: Tree, state: NormEstimateState, step: Step
    ) -> tuple[Tree, NormEstimateState]:
        check_gradient(gradient, step.params)
        now, norm, beta = square_norm_of_tree(gradient), norm_of_tree(gradient), step["beta"]
        empty = state.square == 0  # at the start or after a restart
        before = lax.select(empty, now, state.square)
        after = beta * before + (1.0 - beta) * now
        length = lax.select(empty, norm, numerics.root(state.square))
        if not use_previous:
            # Unlike the root of the sum of squares, hypot does not overflow.
            length = jnp.hypot(jnp.sqrt(beta) * length, jnp.sqrt(1.0 - beta) * norm)
        factor = 1.0 / numerics.nonzero(length + step["floor"])
        step.facts.step_size = lax.select(length > 0, factor, jnp.zeros_like(factor))
        direction = jax.tree.map(lambda g: numerics.scaled(factor, numerics.widen(g)), gradient)
        return direction, NormEstimateState(lax.select(lax.is_finite(now), after, state.square))

    def slopes(gradient: Tree | None, state: NormEstimateState, step: Step) -> Tree:
        del gradient  # the state divides the next step or, without use_previous, the last one
        empty = state.square == 0
        if not isinstance(empty, jax.core.Tracer) and empty:
            raise ValueError(
                "the norm estimate has seen only zero gradients since it started: make a step "
                "with another gradient first."
            )
        slope = 1.0 / (numerics.root(state.square) + step["floor"])
        slope = lax.select(empty, lax.full_like(slope, jnp.nan), slope)
        return jax.tree.map(lambda _: slope, step.params)

    return stage(
        "scale_by_norm_estimate",
        Kind.GRADIENT,
        Kind.DIRECTION,
        apply,
        init=init,
        hyperparams=declare(beta=decay_rate(beta), floor=nonnegative(floor)),
        slopes=Slopes(slopes, needs_loss=False),
    )
