"""Look ahead with the first moment, as NAdam does (Dozat 2016).

    m_hat = b m / W' + (1 - b) g / W        W' = b W + (1 - b)

In optax's form b is b1, and W the sum of the weights of the average m. In PyTorch's form (and
Dozat's) b grows from b1 / 2 to b1, and W is the sum of the weights of an average with these rates,
W_t = 1 - mu_1 ... mu_t:

    mu_t = b1 (1 - 0.96^(t momentum_decay) / 2)
    m_hat = mu_{t+1} m / W_{t+1} + (1 - mu_t) g / W_t

>>> nesterov().spec.name
'nesterov'
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments, divided, emptied
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any


class NesterovState(NamedTuple):
    """State of ``nesterov`` in PyTorch's form.

    Attributes:
      weight_sum: 1 minus the product of the rates so far, a scalar.
    """

    weight_sum: jax.Array
    restarts = True


@shows_options
def nesterov(momentum_decay: ScalarOrSchedule | None = None) -> Stage:
    """Replace the first moment by its bias-corrected value one step ahead.

    Args:
      momentum_decay: how fast the weight of the momentum grows in PyTorch's form, >= 0, or a
        schedule of it; PyTorch has 4e-3. None for optax's form, which with a constant b1 equals
        ``optax.adam(nesterov=True)``.

    Returns:
      A stage *moments -> moments*. Put it before ``correct_bias``, which then corrects only the
      second moment.

    Raises:
      ValueError: (in ``update``) the first moment is not a moving average, or is already corrected.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.moments.nesterov(),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def init(params: Tree) -> NesterovState:
        del params
        return NesterovState(jnp.zeros([], numerics.default_float()))

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        reading = record.first
        if reading.clock is None or reading.rate is None:
            raise ValueError(
                "nesterov() needs a moving average as first moment, such as ema(0.9); "
                "heavy_ball has its own nesterov=True."
            )
        if reading.divisor is not None:
            raise ValueError("nesterov() must come before correct_bias(): exchange them.")
        b = b_next = reading.rate
        weight_sum = reading.clock.weight_sum
        one = jnp.ones([], b.dtype)
        if momentum_decay is not None:
            decay = math.log(0.96) * step["momentum_decay"]
            t = numerics.scalar(record.count)
            b, b_next = (reading.rate * (1.0 - 0.5 * jnp.exp(x * decay)) for x in (t, t + 1.0))
            before = emptied(state, record.restarted).weight_sum
            weight_sum = b * before + (one - b)
            state = NesterovState(weight_sum)
        ahead = divided(reading.value, b_next * weight_sum + (one - b_next))
        now = divided(jax.tree.map(numerics.widen, record.gradient), weight_sum)
        value = jax.tree.map(
            lambda m, g: lax.add(numerics.scaled(b_next, m), numerics.scaled(one - b, g)),
            ahead,
            now,
        )
        return record.with_first(value, divisor=weight_sum), state

    return stage(
        "nesterov",
        Kind.MOMENTS,
        Kind.MOMENTS,
        apply,
        init=None if momentum_decay is None else init,
        hyperparams=declare(momentum_decay=nonnegative.if_given(momentum_decay)),
        elementwise=True,
        reads="gradient",
    )
