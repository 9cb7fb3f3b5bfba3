"""Build diffGrad, Adam with shorter steps for elements whose gradient hardly changes.

    xi = sigmoid(|g_previous - g|)
    theta <- theta - lr xi m_hat / (sqrt(v_hat) + eps / sqrt(1 - b2^t))

Dubey et al., TNNLS 2020, arXiv 1909.11015.

>>> diffgrad(1e-3).specs[1].name
'friction'
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
    friction,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register


@register(
    title="diffGrad",
    equation="theta <- theta - lr xi m_hat / (sqrt(v_hat) + eps / sqrt(1 - b2^t)), "
    "xi = sigmoid(|g_previous - g|)",
    citation="Dubey, Chakraborty, Roy, Mukherjee, Singh & Chaudhuri, diffGrad: An Optimization "
    "Method for Convolutional Neural Networks, TNNLS 2020",
    arxiv="1909.11015",
    degree=None,
    state_values=3,
    differs="neither optax nor PyTorch has it. The authors' first version kept a reference to the "
    "current gradient instead of a copy of the previous one, so it was Adam at half the learning "
    "rate.",
)
def diffgrad(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    variant: str = "abs",
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = True,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """diffGrad: Adam with shorter steps for elements whose gradient hardly changes.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      variant: ``"abs"`` (paper), ``"signed"`` or ``"wide"``, as for ``friction``.
      eps_hat: add eps to the uncorrected root (authors' code); False is the paper's form.

    Returns:
      The transformation; its state has three values per parameter, one of them the previous
      gradient (after L2 decay).
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(ema(b1, dtype=o.state_dtype), ema_of_squares(b2, dtype=o.state_dtype)),
        friction(variant, dtype=o.state_dtype),
        amsgrad_max(dtype=o.state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        rectify_variance() if rectify else None,
        precondition(eps, eps_hat=eps_hat),
    )
