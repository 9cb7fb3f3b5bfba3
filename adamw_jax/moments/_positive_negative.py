"""Combine two momenta of alternate gradients, one with a negative weight.

    m_t  = b1^2 m_{t-2} + (1 - b1^2) g
    read: ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2)

Each buffer sees every second gradient. The difference increases the gradient noise but not its
mean; the root normalises the result. Xie et al., ICML 2021, arXiv 2103.17182, in the form of the
authors' code: the buffers have no bias correction, so the first steps are small.

>>> positive_negative(0.9, 1.0).name
'positive_negative'
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, real
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Clock, Reading
from adamw_jax._core.stage import Step
from adamw_jax.moments._parts import Part, zeros

Tree = Any


class PositiveNegativeState(NamedTuple):
    """State of ``positive_negative``.

    Attributes:
      average: the buffer of the odd steps, params-shaped.
      other: the buffer of the even steps, params-shaped.
      odd: whether ``average`` was written last, a bool.
      clock: the weights of an average with rate b1.
    """

    average: Tree
    other: Tree
    odd: jax.Array
    clock: Clock
    moment = property(operator.itemgetter(0))
    momenta = ("average", "other", "clock")


@shows_options
def positive_negative(
    b1: ScalarOrSchedule = 0.9,
    b0: ScalarOrSchedule = 1.0,
    *,
    dtype: Any = None,
    storage: Any = None,
) -> Part:
    """Track positive-negative momentum with decay rate ``b1`` and weight ``b0``.

    Args:
      b1: decay rate in [0, 1), or a schedule of it; each buffer decays by its square.
      b0: weight of the negative momentum, any finite number; 1 (code). 0 gives two interleaved
        momenta; -b1/(1 + b1) gives ``ema(b1)`` divided by sqrt((1 + b0)^2 + b0^2).
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the first moment, with two values of state per parameter. Its state keeps which
      buffer is written next, so skipped updates do not count. A ``correct_bias`` after it divides
      by 1 - b1^t, as AdaPNM does, not by 1 - b1^(2t).

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.positive_negative(0.9), aj.moments.no_moment()),
      ...     aj.precondition(None),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def init(params: Tree) -> PositiveNegativeState:
        odd = jnp.zeros([], jnp.bool_)
        return PositiveNegativeState(zeros(params, dtype), zeros(params, dtype), odd, Clock.start())

    def update(gradient: Tree, state: PositiveNegativeState, step: Step, first: Reading | None):
        del first
        odd = lax.bitwise_not(state.odd)
        b = step["b1"] * step["b1"]
        rest = jnp.ones([], b.dtype) - b

        def written(now: jax.Array, buffer: Tree) -> Tree:
            def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
                new = numerics.mixed(b, m, rest, g)
                return lax.select(now, numerics.cast(new, m.dtype), m)

            return jax.tree.map(leaf, buffer, gradient)

        value, other = written(odd, state.moment), written(lax.bitwise_not(odd), state.other)
        return PositiveNegativeState(value, other, odd, state.clock.tick(step["b1"]))

    def read(state: PositiveNegativeState, gradient: Tree, step: Step) -> Reading:
        del gradient
        b0 = step["b0"]
        ahead = 1.0 + b0
        inverse = lax.rsqrt(ahead * ahead + b0 * b0)
        positive, negative = ahead * inverse, -b0 * inverse
        of_value = lax.select(state.odd, positive, negative)
        of_other = lax.select(state.odd, negative, positive)
        value = jax.tree.map(
            lambda m, n: lax.add(
                numerics.scaled(of_value, numerics.widen(m)),
                numerics.scaled(of_other, numerics.widen(n)),
            ),
            state.moment,
            state.other,
        )
        return Reading(value, state.clock, step["b1"])

    return Part(
        "positive_negative",
        declare(b1=decay_rate(b1), b0=real._replace(reshapes_step=True)(b0)),
        init,
        update,
        read,
        kind=PositiveNegativeState,
        storage=storage,
        elementwise=True,
    )
