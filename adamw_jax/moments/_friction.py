"""Shorten steps of elements whose gradient hardly changes (diffGrad's friction).

    xi = 1 / (1 + exp(-|g_previous - g|))            in [1/2, 1); g_previous = 0 at the first step
    direction <- xi direction

Dubey et al., TNNLS 2020, arXiv 1909.11015. xi depends on the scale of the gradient: if |g| << 1, as
in most networks, xi is about 1/2 and the optimizer is Adam at half the learning rate.

>>> friction().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments, emptied
from adamw_jax._core.sequential import after
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any

VARIANTS = ("abs", "signed", "wide")


class FrictionState(NamedTuple):
    """State of ``friction``.

    Attributes:
      previous: the previous gradient, params-shaped.
    """

    previous: Tree

    restarts = True


@shows_options
def friction(variant: str = "abs", *, dtype: Any = None) -> Stage:
    """Multiply the direction by a sigmoid of the gradient's change, element by element.

    Args:
      variant: ``"abs"``, sigmoid(|d|) in [1/2, 1) with d = g_previous - g (paper); ``"signed"``,
        sigmoid(d) in (0, 1), for real gradients (the paper's DFC1); ``"wide"``,
        9 sigmoid(|d|/2) - 4 in [1/2, 5) (DFC2).
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *moments -> moments* with one value of state per parameter. It may come before or
      after other such stages, and works with rectification.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.moments.friction(),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    one_of("variant", variant, VARIANTS)

    def init(params: Tree) -> FrictionState:
        return FrictionState(zeros(params, dtype))

    def apply(record: Moments, state: FrictionState, step: Step) -> tuple[Moments, FrictionState]:
        del step

        def leaf(old: jax.Array, g: jax.Array) -> jax.Array:
            change = lax.sub(numerics.widen(old), numerics.widen(g))
            if variant == "signed":
                if jax.numpy.iscomplexobj(change):
                    raise TypeError(
                        f'variant="signed" needs real gradients, got {change.dtype}: give '
                        'variant="abs" or "wide".'
                    )
                return lax.logistic(change)
            size = lax.abs(change)
            if variant == "abs":
                return lax.logistic(size)
            half, nine, four = (lax.full_like(size, x) for x in (0.5, 9.0, 4.0))
            return lax.sub(lax.mul(nine, lax.logistic(lax.mul(half, size))), four)

        factor = jax.tree.map(leaf, emptied(state.previous, record.restarted), record.gradient)
        previous = jax.tree.map(
            lambda g, old: numerics.cast(g, old.dtype), record.gradient, state.previous
        )
        return record.scaled(factor), FrictionState(previous)

    def write_after_read(state: FrictionState, direction: Tree, step: Step) -> FrictionState:
        return FrictionState(after(state.previous, direction))

    return stage(
        "friction",
        Kind.MOMENTS,
        Kind.MOMENTS,
        apply,
        init=init,
        write_after_read=write_after_read,
        elementwise=True,
        reads="gradient",
    )
