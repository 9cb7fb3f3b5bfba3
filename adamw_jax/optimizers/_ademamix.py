"""AdEMAMix: Adam with a second, very slow average of the gradients.

    m1 = b1 m1 + (1 - b1) g;   m2 = b3 m2 + (1 - b3) g;   v = b2 v + (1 - b2) g^2
    theta <- theta - lr ((m1_hat + alpha m2) / (sqrt(v_hat) + eps) + weight_decay theta)

Pagliardini, Ablin & Grangier 2024, arXiv 2409.03137. In the first ``alpha_warmup`` steps alpha
grows linearly from 0. In the first ``b3_warmup`` steps the half-life of b3 grows linearly from that
of b1:

    h(b) = log(1/2) / log(b) - 1;    b3_t = h^-1((1 - q) h(b1) + q h(b3)),    q = t / b3_warmup

>>> [spec.name for spec in ademamix(1e-3).specs][:3]
['estimate_moments', 'correct_bias', 'precondition']
"""

from __future__ import annotations

import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from adamw_jax._core import numerics
from adamw_jax._core.checks import whole_number
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import (
    LearningRate,
    ScalarOrSchedule,
    decay_rate,
    declare,
    nonnegative,
)
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema_of_squares,
    estimate_moments,
    precondition,
    rectify_variance,
    two_averages,
)
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    title="AdEMAMix",
    equation="theta <- theta - lr (m1_hat + alpha m2) / (sqrt(v_hat) + eps), "
    "m2 <- b3 m2 + (1 - b3) g",
    citation="Pagliardini, Ablin & Grangier, The AdEMAMix Optimizer: Better, Faster, Older, "
    "ICLR 2025",
    arxiv="2409.03137",
    state_values=3,
    differs="alpha is 5 as in optax.contrib and the authors' JAX code; their PyTorch code has 2. "
    "There steps of the schedules count from 1, as here; in their JAX code from 0.",
)
def ademamix(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: ScalarOrSchedule = 1e-8,
    *,
    alpha_warmup: int | None = None,
    b3_warmup: int | None = None,
    **common: Unpack[Common],
) -> Composed:
    """AdEMAMix: the average of Adam plus a slow one that remembers thousands of gradients.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the fast average, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b3: decay rate of the slow average, in [0, 1); 0.9999 (paper). 0.999 for short runs.
      alpha: weight of the slow average, >= 0; 5. The paper uses 4 to 10.
      eps: added to the root; 1e-8 (paper).
      alpha_warmup: number of steps in which alpha grows from 0; the paper takes the length of the
        run. None for no warm-up.
      b3_warmup: number of steps in which the half-life of b3 grows from that of b1; as
        ``alpha_warmup``. Without it early steps are long.

    Returns:
      The transformation; its state has three values per parameter, four with ``amsgrad``.
    """
    declare(alpha=nonnegative(alpha), b3=decay_rate(b3))  # before schedules take their places
    if alpha_warmup is not None:
        alpha = _growing(alpha, whole_number("alpha_warmup", alpha_warmup))
    if b3_warmup is not None:
        b3 = _aging(b1, b3, whole_number("b3_warmup", b3_warmup))
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            two_averages(b1, b3, alpha, dtype=o.state_dtype),
            ema_of_squares(b2, dtype=o.state_dtype),
        ),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
    )


def _at(value: ScalarOrSchedule, count: Any) -> jax.Array:
    return numerics.scalar(value(count) if callable(value) else value)


def _share(count: Any, steps: int) -> jax.Array:
    return jnp.minimum((numerics.scalar(count) + 1.0) / steps, 1.0)


def _growing(end: ScalarOrSchedule, steps: int) -> ScalarOrSchedule:
    return lambda count: _share(count, steps) * _at(end, count)


def _aging(start: ScalarOrSchedule, end: ScalarOrSchedule, steps: int) -> ScalarOrSchedule:
    def half_life(b: jax.Array) -> jax.Array:
        return math.log(0.5) / jnp.log(b) - 1.0

    def b3(count: Any) -> jax.Array:
        share, last = _share(count, steps), _at(end, count)
        mixed = (1.0 - share) * half_life(_at(start, count)) + share * half_life(last)
        return jnp.where(share < 1.0, jnp.exp(math.log(0.5) / (mixed + 1.0)), last)

    return b3
