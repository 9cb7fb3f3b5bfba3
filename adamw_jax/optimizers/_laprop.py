"""LaProp: momentum of gradients that are divided first.

    v = b2 v + (1 - b2) g^2;   m = b1 m + (1 - b1) g / (sqrt(v_hat) + eps)
    theta <- theta - lr (m_hat + weight_decay theta)

Ziyin, Wang & Ueda 2020, arXiv 2002.04839.

>>> [spec.name for spec in laprop(1e-3).specs][2:4]
['precondition', 'average_directions']
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import (
    amsgrad_max,
    average_directions,
    correct_bias,
    ema_of_squares,
    estimate_moments,
    no_moment,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    title="LaProp",
    equation="m <- b1 m + (1 - b1) g / (sqrt(v_hat) + eps), theta <- theta - lr m_hat",
    citation="Ziyin, Wang & Ueda, LaProp: Separating Momentum and Adaptivity in Adam, 2020",
    arxiv="2002.04839",
    state_values=2,
    differs="the learning rate multiplies the momentum; in the authors' code it multiplies the "
    "entries of the momentum, so a change acts with a delay. Their decay is of the parameters "
    "after the step, without the learning rate. Neither optax nor PyTorch has it.",
)
def laprop(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-15,
    **common: Unpack[Common],
) -> Composed:
    """LaProp: Adam with division and momentum exchanged, stable for every b1 and b2.

    An element of the step is at most lr / sqrt(1 - b2), also if b1 is much larger than b2.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``); 4e-4
        in the authors' code.
      b1: decay rate of the momentum, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-15 (code).

    Returns:
      The transformation; its state has two values per parameter, three with ``amsgrad``.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(no_moment(), ema_of_squares(b2, dtype=o.state_dtype)),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
        average_directions(b1, dtype=o.state_dtype),
    )
