"""Add a slow average of the gradients to the usual one, for AdEMAMix's first moment.

    m1' = b1 m1 + (1 - b1) g        m2' = b3 m2 + (1 - b3) g
    read: m1' / W + alpha m2'

W is the sum of the weights of m1. The slow average starts at 0 and is not corrected, so old
gradients gain weight slowly. Pagliardini, Ablin & Grangier 2024, arXiv 2409.03137.

>>> two_averages().name
'two_averages'
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Clock, Reading
from adamw_jax._core.stage import Step
from adamw_jax.moments._parts import Part, zeros

Tree = Any


class TwoAveragesState(NamedTuple):
    """State of ``two_averages``.

    Attributes:
      fast: the average with b1, params-shaped.
      slow: the average with b3, params-shaped.
      clock: the weights of ``fast``.
    """

    fast: Tree
    slow: Tree
    clock: Clock
    moment = property(operator.itemgetter(0))
    momenta = ("fast", "slow", "clock")


@shows_options
def two_averages(
    b1: ScalarOrSchedule = 0.9,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    *,
    dtype: Any = None,
    storage: Any = None,
) -> Part:
    """Average gradients twice, and add ``alpha`` times the slow average to the fast one.

    Args:
      b1: decay rate of the fast average, in [0, 1), or a schedule of it; 0.9.
      b3: decay rate of the slow average, in [0, 1), or a schedule of it; 0.9999 (paper).
      alpha: weight of the slow average, >= 0, or a schedule of it; 5 (paper: 4 to 10).
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the first moment, with two values of state per parameter.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.two_averages(0.9, 0.9999), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def init(params: Tree) -> TwoAveragesState:
        return TwoAveragesState(zeros(params, dtype), zeros(params, dtype), Clock.start())

    def mixed(rate: jax.Array, old: Tree, new: Tree) -> Tree:
        rest = jnp.ones([], rate.dtype) - rate

        def leaf(a: jax.Array, x: jax.Array) -> jax.Array:
            a_part = numerics.scaled(rate, numerics.widen(a))
            return numerics.cast(lax.add(a_part, numerics.scaled(rest, numerics.widen(x))), a.dtype)

        return jax.tree.map(leaf, old, new)

    def update(
        gradient: Tree, state: TwoAveragesState, step: Step, first: Reading | None
    ) -> TwoAveragesState:
        del first
        b1, b3 = step["b1"], step["b3"]
        return TwoAveragesState(
            mixed(b1, state.fast, gradient), mixed(b3, state.slow, gradient), state.clock.tick(b1)
        )

    def read(state: TwoAveragesState, gradient: Tree, step: Step) -> Reading:
        del gradient
        share = 1.0 / numerics.nonzero(state.clock.weight_sum)
        value = jax.tree.map(
            lambda m, slow: lax.add(
                numerics.scaled(share, numerics.widen(m)),
                numerics.scaled(step["alpha"], numerics.widen(slow)),
            ),
            state.fast,
            state.slow,
        )
        one = jnp.ones([], numerics.default_float())
        return Reading(value, state.clock, step["b1"], divisor=one)

    return Part(
        "two_averages",
        declare(b1=decay_rate(b1), b3=decay_rate(b3), alpha=nonnegative(alpha)),
        init,
        update,
        read,
        kind=TwoAveragesState,
        elementwise=True,
        storage=storage,
    )
