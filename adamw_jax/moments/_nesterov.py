"""Look ahead with the first moment, as NAdam does (Dozat 2016, in optax's form).

    m_hat = b1 m / W' + (1 - b1) g / W        W' = b1 W + (1 - b1)

W is the sum of the weights of the average m.

>>> nesterov().spec.name
'nesterov'
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.record import Moments, divided
from adamw_jax._core.stage import Kind, Stage, Step, stage


def nesterov() -> Stage:
    """Replace the first moment by its bias-corrected value one step ahead.

    With a constant b1 this equals ``optax.adam(nesterov=True)``.

    Returns:
      A stage *moments -> moments*. Put it before ``correct_bias``, which then corrects only the
      second moment.

    Raises:
      ValueError: (in ``update``) the first moment is not a moving average, or is already corrected.
    """

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        del step
        reading = record.first
        if reading.clock is None or reading.rate is None:
            raise ValueError(
                "nesterov() needs a moving average as first moment, such as ema(0.9); "
                "heavy_ball has its own nesterov=True."
            )
        if reading.divisor is not None:
            raise ValueError("nesterov() must come before correct_bias(): exchange them.")
        b, weight_sum = reading.rate, reading.clock.weight_sum
        rest = jnp.ones([], b.dtype) - b
        ahead = divided(reading.value, b * weight_sum + rest)
        now = divided(jax.tree.map(numerics.widen, record.gradient), weight_sum)
        value = jax.tree.map(
            lambda m, g: lax.add(numerics.scaled(b, m), numerics.scaled(rest, g)), ahead, now
        )
        return record.with_first(value, divisor=weight_sum), state

    return stage("nesterov", Kind.MOMENTS, Kind.MOMENTS, apply, elementwise=True, reads="gradient")
