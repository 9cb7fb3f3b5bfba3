"""NAdam: Adam that looks one step ahead, with a weight of the momentum that grows.

    mu_t = b1 (1 - 0.96^(t momentum_decay) / 2)
    m_hat = mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / (1 - mu_1 ... mu_t)
    theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)

Dozat 2016, in PyTorch's form. ``adam(nesterov=True)`` is optax's, with a constant weight.

>>> [spec.name for spec in nadam(2e-3).specs][:2]
['estimate_moments', 'nesterov']
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    nesterov,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    title="NAdam",
    equation="theta <- theta - lr (mu_{t+1} m / (1 - mu_1 ... mu_{t+1}) + (1 - mu_t) g / "
    "(1 - mu_1 ... mu_t)) / (sqrt(v_hat) + eps)",
    citation="Dozat, Incorporating Nesterov Momentum into Adam, ICLR 2016 workshop",
    state_values=2,
    differs="the form is PyTorch's, whose weight_decay is l2 here. optax.nadam has mu_t = b1: "
    "adam(nesterov=True).",
)
def nadam(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    momentum_decay: ScalarOrSchedule | None = 4e-3,
    **common: Unpack[Common],
) -> Composed:
    """NAdam: Adam with Nesterov's look-ahead, in PyTorch's form.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``); 2e-3
        in PyTorch.
      b1: decay rate of the first moment, and the limit of its weight mu, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (PyTorch).
      momentum_decay: how fast mu grows from about b1 / 2 to b1, >= 0; 4e-3 (PyTorch), which closes
        half of the gap in 4200 steps. None for the constant weight b1, which is optax's form and
        ``adam(nesterov=True)``.

    Returns:
      The transformation; its state has two values per parameter, three with ``amsgrad``.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(ema(b1, dtype=o.state_dtype), ema_of_squares(b2, dtype=o.state_dtype)),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        nesterov(momentum_decay),
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
    )
