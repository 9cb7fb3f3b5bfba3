"""Extrapolate the gradient by its last change, to reduce its variance (MARS).

    c = g + gamma b1 / (1 - b1) (g - g_previous);   c <- c min(1, max_norm / |c|)       leaf by leaf

g_previous is the gradient of the step before, on its own batch: the approximate form of the paper,
which costs no second gradient. It is 0 before the first step. Yuan, Liu, Wu, Zhou & Gu 2024, arXiv
2411.10438.

>>> variance_reduction().spec.kinds
'gradient -> gradient'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import (
    ScalarOrSchedule,
    bound,
    decay_rate,
    declare,
    nonnegative,
    storage_dtype,
)
from adamw_jax._core.gradients import check_floating, check_gradient, norms_of_leaves, within
from adamw_jax._core.options import shows_options
from adamw_jax._core.sequential import after
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any


class VarianceReductionState(NamedTuple):
    """State of ``variance_reduction``.

    Attributes:
      previous: the previous gradient, params-shaped.
    """

    previous: Tree
    restarts = True


@shows_options
def variance_reduction(
    gamma: ScalarOrSchedule = 0.025,
    b1: ScalarOrSchedule = 0.95,
    max_norm: ScalarOrSchedule | None = 1.0,
    *,
    dtype: Any = None,
) -> Stage:
    """Add a share of the change of the gradient to it, and clip each leaf.

    Args:
      gamma: strength, >= 0, or a schedule of it; 0.025 (authors). 0 only clips.
      b1: decay rate of the momentum that follows, in [0, 1); 0.95 (authors). In
        ``set_hyperparams`` it is ``reduction_b1``, apart from that of the momentum.
      max_norm: largest norm of a leaf, > 0, or a schedule of it; 1 (authors). None for no clipping.
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *gradient -> gradient* with one value of state per parameter. The authors leave out
      vectors: ``only(variance_reduction(), matrices_only)``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.gradient.variance_reduction(0.025), aj.adamw(1e-3, b1=0.95))
    """
    dtype = storage_dtype("dtype", dtype)

    def init(params: Tree) -> VarianceReductionState:
        check_floating(params, "parameter")
        return VarianceReductionState(zeros(params, dtype))

    def apply(
        gradient: Tree, state: VarianceReductionState, step: Step
    ) -> tuple[Tree, VarianceReductionState]:
        check_gradient(gradient, state.previous)
        b1 = step["reduction_b1"]
        weight = step["gamma"] * b1 / (1.0 - b1)

        def leaf(g: jax.Array, old: jax.Array) -> jax.Array:
            wide = numerics.widen(g)
            return lax.add(wide, numerics.scaled(weight, lax.sub(wide, numerics.widen(old))))

        reduced = jax.tree.map(leaf, gradient, state.previous)
        if max_norm is not None:
            norms = norms_of_leaves(reduced, plain=step.in_sequence)
            reduced = jax.tree.map(
                lambda c, norm: numerics.scaled(within(norm, step["max_norm"]), c),
                reduced,
                norms,
            )
        previous = numerics.cast_like(jax.tree.map(numerics.widen, gradient), state.previous)
        return reduced, VarianceReductionState(previous)

    def write_after_read(
        state: VarianceReductionState, direction: Tree, step: Step
    ) -> VarianceReductionState:
        del step
        return VarianceReductionState(after(state.previous, direction))

    return stage(
        "variance_reduction",
        Kind.GRADIENT,
        Kind.GRADIENT,
        apply,
        init=init,
        hyperparams=declare(
            gamma=nonnegative(gamma),
            reduction_b1=decay_rate(b1),
            max_norm=bound.if_given(max_norm),
        ),
        write_after_read=write_after_read,
        reduces=max_norm is not None,
        clips=max_norm is not None,
    )
