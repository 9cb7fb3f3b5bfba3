"""Build PNM and AdaPNM, positive-negative momentum without and with a second moment.

    m_t = b1^2 m_{t-2} + (1 - b1^2) g;   u = ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2)
    PNM:     theta <- theta - lr u
    AdaPNM:  theta <- theta - lr u / (1 - b1^t) / (sqrt(v_max / (1 - b2^t)) + eps)

Xie et al., ICML 2021, arXiv 2103.17182.

>>> pnm(0.1).specs[0].name
'estimate_moments'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema_of_squares,
    estimate_moments,
    no_moment,
    positive_negative,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register

_CITATION = (
    "Xie, Yuan, Zhu & Sugiyama, Positive-Negative Momentum: Manipulating Stochastic Gradient Noise "
    "to Improve Generalization, ICML 2021"
)


@register(
    title="PNM",
    equation="theta <- theta - lr ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2)",
    citation=_CITATION,
    arxiv="2103.17182",
    degree=1,
    lacks="it has no second moment",
    state_values=2,
    differs="neither optax nor PyTorch has it.",
)
def pnm(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b0: ScalarOrSchedule = 1.0,
    **common: Unpack[Plain],
) -> Composed:
    """PNM: momentum that increases the gradient noise by a chosen factor.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``). On a
        quadratic of curvature L it must be below 2 sqrt((1 + b0)^2 + b0^2) / (1 + 2 b0) / L.
      b1: decay rate of the momenta, in [0, 1).
      b0: weight of the negative momentum; 1 (code). 0 gives two interleaved momenta.

    Returns:
      The transformation; its state has two values per parameter. The first steps are small, because
      there is no bias correction.
    """
    o = CommonOptions(common)
    part = positive_negative(b1, b0, dtype=o.state_dtype)
    return finish(o, learning_rate, estimate_moments(part, no_moment()), precondition(None))


@register(
    title="AdaPNM",
    equation="theta <- theta - lr u / (1 - b1^t) / (sqrt(v_max / (1 - b2^t)) + eps), u as in PNM",
    citation=_CITATION,
    arxiv="2103.17182",
    state_values=4,
    differs="AMSGrad is on, as in the authors' code. Neither optax nor PyTorch has it.",
)
def adapnm(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b0: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-8,
    *,
    amsgrad: bool = True,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """AdaPNM: positive-negative momentum divided by the root of the second moment.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the momenta, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b0: weight of the negative momentum; 1 (code).
      eps: added to the root; 1e-8 (code).
      amsgrad: divide by the largest second moment so far, as the authors do.

    Returns:
      The transformation; its state has four values per parameter, three without ``amsgrad``.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            positive_negative(b1, b0, dtype=o.state_dtype),
            ema_of_squares(b2, dtype=o.state_dtype),
        ),
        amsgrad_max(dtype=o.state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        rectify_variance() if rectify else None,
        precondition(eps, eps_hat=eps_hat),
    )
