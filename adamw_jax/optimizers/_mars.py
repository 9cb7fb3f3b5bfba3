"""MARS: AdamW on a gradient whose variance is reduced by its last change.

    c = g + gamma b1 / (1 - b1) (g - g_previous), clipped to a norm of 1, leaf by leaf
    m = b1 m + (1 - b1) c;   v = b2 v + (1 - b2) c^2
    theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)

Yuan, Liu, Wu, Zhou & Gu 2024, arXiv 2411.10438, the approximate form (MARS-AdamW).

>>> [spec.name for spec in mars(3e-3).specs][:2]
['variance_reduction', 'estimate_moments']
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, decay_rate, declare
from adamw_jax.gradient import variance_reduction
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    title="MARS",
    equation="theta <- theta - lr m_hat / (sqrt(v_hat) + eps), moments of "
    "c = g + gamma b1 / (1 - b1) (g - g_previous), clipped to |c| <= 1",
    citation="Yuan, Liu, Wu, Zhou & Gu, MARS: Unleashing the Power of Variance Reduction for "
    "Training Large Models, ICML 2025",
    arxiv="2411.10438",
    state_values=3,
    degree=None,
    scope="leaf",
    differs="every leaf takes the reduced gradient; the authors' code gives vectors plain AdamW "
    "with numbers of their own (optimize_1d=False). Neither optax nor PyTorch has it.",
)
def mars(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.025,
    *,
    max_norm: ScalarOrSchedule | None = 1.0,
    **common: Unpack[Common],
) -> Composed:
    """MARS: Adam's moments of a gradient with reduced variance.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``); 3e-3
        in the authors' code.
      b1: decay rate of the first moment, in [0, 1). It also scales the reduction; a value pinned by
        ``set_hyperparams`` changes the moment only, ``reduction_b1`` the reduction.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      gamma: strength of the reduction, >= 0; 0.025 (code).
      max_norm: largest norm of a leaf of the reduced gradient, > 0; 1 (code). None for no clipping.

    Returns:
      The transformation; its state has three values per parameter, four with ``amsgrad``.
    """
    declare(b1=decay_rate(b1))
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        variance_reduction(gamma, b1, max_norm, dtype=o.state_dtype),
        estimate_moments(ema(b1, dtype=o.state_dtype), ema_of_squares(b2, dtype=o.state_dtype)),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
    )
