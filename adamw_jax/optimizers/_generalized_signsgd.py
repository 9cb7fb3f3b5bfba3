"""Build Generalized SignSGD, which divides the momentum by the root of its averaged square.

    m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) m^2;   theta <- theta - lr m / (sqrt(v) + eps)

Crawshaw et al., NeurIPS 2022, arXiv 2208.11195.

>>> generalized_signsgd(1e-3).specs[0].name
'estimate_moments'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squared_momentum,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    corrects=lambda given: given.get("corrected", False),
    title="Generalized SignSGD",
    equation="theta <- theta - lr m / (sqrt(v) + eps), v the average of m^2",
    citation="Crawshaw, Liu, Orabona, Zhang & Zhuang, Robustness to Unbounded Smoothness of "
    "Generalized SignSGD, NeurIPS 2022",
    arxiv="2208.11195",
    state_values=2,
    differs="neither optax nor PyTorch has it; with b2 = 0 it is optax.signum, except for eps.",
)
def generalized_signsgd(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    corrected: bool = False,
    **common: Unpack[Common],
) -> Composed:
    """Generalized SignSGD: between sign descent with momentum (b2 = 0) and RMSProp (b1 = 0).

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``). The
        uncorrected first step is lr / sqrt(1 - b2), by default 32 lr: warm up, or give
        ``corrected=True``.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the average of squared momenta, in [0, 1).
      eps: added to the root; 1e-8 (code).
      corrected: correct the bias of both moments; the authors do not.

    Returns:
      The transformation; its state has two values per parameter. The authors' decay is ``l2``.
    """
    o = CommonOptions(common)
    correction = correct_bias(o.bias_correction)
    if o.bias_correction != "exact" and not corrected:
        raise ValueError(
            f"bias_correction={o.bias_correction!r} has no effect, because generalized_signsgd "
            "does not correct its moments by default: give corrected=True, too."
        )
    return finish(
        o,
        learning_rate,
        estimate_moments(
            ema(b1, dtype=o.state_dtype),
            ema_of_squared_momentum(b2, dtype=o.state_dtype),
        ),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correction if corrected else None,
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
    )
