"""Average directions that are already divided by the second moment (LaProp, ADOPT).

    m' = b1 m + (1 - b1) u;   u <- m'             with bias correction u <- m' / W

W is the sum of the weights. A step that ``rectify_variance`` skips does not count. In Adam the
momentum of the gradients is divided; here the momentum is of divided gradients, so one huge
gradient has no more weight than any other.

>>> average_directions(0.9).spec.kinds
'direction -> direction'
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, storage_dtype
from adamw_jax._core.gradients import check_floating, check_gradient
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Clock, divided, leafwise
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any


class AverageDirectionsState(NamedTuple):
    """State of ``average_directions``.

    Attributes:
      average: the moving average, params-shaped.
      clock: its weights; None without correction.
    """

    average: Tree
    clock: Clock | None
    momenta = ("average", "clock")
    restarts = True


@shows_options
def average_directions(
    b1: ScalarOrSchedule = 0.9, *, correct: bool = True, dtype: Any = None
) -> Stage:
    """Replace the direction by a moving average of the directions.

    Args:
      b1: decay rate in [0, 1), or a schedule of it; 0.9.
      correct: divide by the sum of the weights, as LaProp does. ADOPT does not.
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *direction -> direction* with one value of state per parameter.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.no_moment(), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.moments.average_directions(0.9),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    switch("correct", correct)
    dtype = storage_dtype("dtype", dtype)

    def init(params: Tree) -> AverageDirectionsState:
        check_floating(params, "parameter")
        return AverageDirectionsState(zeros(params, dtype), Clock.start() if correct else None)

    def apply(
        direction: Tree, state: AverageDirectionsState, step: Step
    ) -> tuple[Tree, AverageDirectionsState]:
        check_gradient(direction, state.average)
        b1 = step["b1"]
        skips = leafwise(step.facts.skip_step, direction)
        rates = leafwise(b1, direction)
        if skips is not None:  # a skipped step keeps the average, and does not move
            rates = jax.tree.map(lambda skip: lax.select(skip, jnp.ones_like(b1), b1), skips)
        moved = jax.tree.map(
            lambda b, m, u: numerics.mixed(b, m, 1 - b, u), rates, state.average, direction
        )
        clock = None if state.clock is None else _ticked(state.clock, b1, skips)
        new = AverageDirectionsState(numerics.cast_like(moved, state.average), clock)
        if clock is not None:
            moved = divided(moved, numerics.nonzero(clock.weight_sum))  # 0 if all were skipped
        if step.facts.rectifier is not None and skips is not None:
            # Not after delay_second: it skips only the first step, in which the average is 0.
            used = jax.tree.map(lambda skip: numerics.scalar(lax.bitwise_not(skip)), skips)
            moved = jax.tree.map(numerics.scaled, used, moved)
        return moved, new

    return stage(
        "average_directions",
        Kind.DIRECTION,
        Kind.DIRECTION,
        apply,
        init=init,
        hyperparams=declare(b1=decay_rate(b1)),
    )


def _ticked(clock: Clock, b1: jax.Array, skips: Tree | None) -> Clock:
    """Return the clock after a step, which a step that skips all leaves keeps as it is."""
    after = clock.tick(b1)
    if skips is None:
        return after
    every = functools.reduce(lax.bitwise_and, jax.tree.leaves(skips))
    return jax.tree.map(lambda old, new: lax.select(every, old, new), clock, after)
