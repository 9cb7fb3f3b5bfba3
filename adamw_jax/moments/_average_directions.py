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
from adamw_jax._core.record import Clock, divided, leafwise
from adamw_jax._core.stage import Kind, Stage, Step, shows_options, stage
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
        clock = None if state.clock is None else state.clock.tick(b1)
        rest = jnp.ones([], b1.dtype) - b1
        moved = jax.tree.map(lambda m, u: numerics.mixed(b1, m, rest, u), state.average, direction)
        new = AverageDirectionsState(numerics.cast_like(moved, state.average), clock)
        moved = moved if clock is None else divided(moved, clock.weight_sum)
        if step.facts.skip_step is None:
            return moved, new
        return _unless_skipped(step.facts.skip_step, moved, new, state)

    return stage(
        "average_directions",
        Kind.DIRECTION,
        Kind.DIRECTION,
        apply,
        init=init,
        hyperparams=declare(b1=decay_rate(b1)),
    )


def _unless_skipped(
    skip: Tree, moved: Tree, new: AverageDirectionsState, old: AverageDirectionsState
) -> tuple[Tree, AverageDirectionsState]:
    """Leave a skipped step out of the average, and do not move in it."""
    skips = leafwise(skip, moved)
    every = functools.reduce(lax.bitwise_and, jax.tree.leaves(skips), jnp.asarray(True))

    def kept(skip: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        which = jnp.broadcast_to(skip, jnp.shape(after)) if jnp.ndim(skip) else skip
        return lax.select(which, before, after)

    clock = jax.tree.map(functools.partial(kept, every), old.clock, new.clock)
    average = jax.tree.map(kept, skips, old.average, new.average)
    zeros = jax.tree.map(jnp.zeros_like, moved)
    return jax.tree.map(kept, skips, zeros, moved), AverageDirectionsState(average, clock)
