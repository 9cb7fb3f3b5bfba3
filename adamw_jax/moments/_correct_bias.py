"""Correct the bias of averages, dividing them by the sum of their weights.

    exact:    m / W,     W' = b W + (1 - b)      (also right if b changes)
    current:  m / (1 - b_t^t)                             (PyTorch, fastai)

b is the decay rate, b_t that of step t; W is the sum of the weights. For a constant b both
divide by 1 - b^t, as Adam does (Kingma & Ba 2014, arXiv 1412.6980).

>>> correct_bias().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments, Reading
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

CONVENTIONS = ("exact", "current")


@shows_options
def correct_bias(convention: str = "exact", *, first: bool = True, second: bool = True) -> Stage:
    """Divide the moments by the sum of their weights.

    Args:
      convention: ``"exact"`` divides by the sum of the weights. ``"current"`` divides by
        1 - b_t^t, as PyTorch and fastai do, which leaves a bias if a schedule changes b.
      first: whether the first moment is corrected.
      second: whether the second moment is corrected.

    Returns:
      A stage *moments -> moments*. It does not change moments that need no correction (infinity
      norm, heavy ball) or are already corrected.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    one_of("convention", convention, CONVENTIONS)

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        del step
        if first:
            record = dataclasses.replace(record, first=_corrected(record.first, record))
        if second and record.second is not None:
            record = dataclasses.replace(record, second=_corrected(record.second, record))
        return record, state

    def _corrected(reading: Reading, record: Moments) -> Reading:
        if reading.clock is None or reading.divisor is not None:
            return reading
        if convention == "exact":
            divisor = reading.clock.weight_sum
        else:
            assert reading.rate is not None
            divisor = one_minus_power(
                reading.rate, record.count if reading.count is None else reading.count
            )
        return reading._replace(divisor=divisor, pending=True)

    return stage("correct_bias", Kind.MOMENTS, Kind.MOMENTS, apply, elementwise=True)


def one_minus_power(b: jax.Array, count: jax.Array) -> jax.Array:
    """Return ``1 - b**count`` without cancellation, for b in [0, 1)."""
    positive = b > 0
    one = jnp.ones([], b.dtype)
    exponent = numerics.scalar(count) * lax.log(lax.select(positive, b, one))
    return lax.select(positive, -lax.expm1(exponent), one)
