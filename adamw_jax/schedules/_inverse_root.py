"""Warm up, then fall with the inverse square root of the step.

    lr_t = max / div (1 - t / W) + max t / W       for t < W
    lr_t = max sqrt(W / t)                         for t >= W

W is the length of the warm-up. The run has no planned end. Vaswani et al. 2017, arXiv 1706.03762;
Raffel et al. 2020, arXiv 1910.10683 (T5).

>>> plan = inverse_root(1e-3, warmup_steps=100)
>>> [f"{float(plan.learning_rate(t)):.2g}" for t in (0, 50, 100, 400, 10_000)]
['1e-05', '0.00051', '0.001', '0.0005', '0.0001']
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, positive_steps
from adamw_jax.schedules._ramps import Segment
from adamw_jax.schedules._view import Viewed


@dataclasses.dataclass(frozen=True)
class _Curve:
    """The schedule itself.

    Attributes:
      warmup: the ramp of the warm-up.
    """

    warmup: Segment

    def __call__(self, count: Any) -> jax.Array:
        """Return the value after ``count`` updates, in the default float dtype."""
        steps = numerics.cast(jnp.asarray(count), numerics.default_float())
        long = self.warmup.length / lax.max(steps, jnp.full_like(steps, self.warmup.length))
        return jnp.where(
            steps < self.warmup.length, self.warmup.at(steps), self.warmup.end * long**0.5
        )


@dataclasses.dataclass(frozen=True)
class InverseRoot(Viewed):
    """The schedule of ``inverse_root``, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      warmup_steps: updates in the warm-up.
      max_learning_rate: the peak, after the warm-up.

    Example:
      >>> import adamw_jax as aj
      >>> schedule = aj.schedules.inverse_root(1e-3, warmup_steps=100)
      >>> schedule.warmup_steps, round(float(schedule.learning_rate(400)), 4)
      (100, 0.0005)
    """

    learning_rate: _Curve
    warmup_steps: int
    max_learning_rate: float


def inverse_root(max_learning_rate: float, warmup_steps: int, *, div: float = 100.0) -> InverseRoot:
    """Make a schedule of warm-up and decay with 1 / sqrt(t).

    Args:
      max_learning_rate: the peak, > 0. T5 has 1 / sqrt(warmup_steps), the Transformer
        1 / sqrt(warmup_steps times its width).
      warmup_steps: number of updates in the warm-up, >= 1; 4000 in the Transformer, 10,000 in T5.
      div: the warm-up starts at max/``div``, >= 1; 100. 1 for a constant rate, as in T5.

    Returns:
      The schedule, to pass to an optimizer as its learning rate. It takes the count of updates,
      from 0.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(aj.schedules.inverse_root(1e-3, warmup_steps=100))
    """
    top = number("max_learning_rate", max_learning_rate, above=0)
    steps = positive_steps("warmup_steps", warmup_steps)
    start = top / number("div", div, least=1)
    return InverseRoot(_Curve(Segment(0, steps, start, top)), steps, top)
