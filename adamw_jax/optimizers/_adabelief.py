"""Build AdaBelief, Adam divided by the deviation of the gradient from its average.

    s = b2 s + (1 - b2) (g - m)^2 + eps_root;   theta <- theta - lr m_hat / (sqrt(s_hat) + eps)

Zhuang et al., NeurIPS 2020, arXiv 2010.07468.

>>> adabelief(1e-3).specs[-1].name
'scale_by_learning_rate'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_centered_squares,
    estimate_moments,
    nesterov as nesterov_ahead,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    title="AdaBelief",
    equation="s <- b2 s + (1 - b2)(g - m)^2 + eps_root;  "
    "theta <- theta - lr m_hat / (sqrt(s_hat) + eps)",
    citation="Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed "
    "Gradients, NeurIPS 2020",
    arxiv="2010.07468",
    state_values=2,
    differs="eps_root enters the accumulator at every step, as in the paper and optax.",
    twin="adabelief",
)
def adabelief(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    nesterov: bool = False,
    **common: Unpack[Common],
) -> Composed:
    """AdaBelief: Adam with long steps if the gradient is near its average, else short ones.

    Args:
      learning_rate: number, schedule, or an object of several schedules.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-16.
      eps_root: added to the second moment at every step; 1e-16.
      nesterov: look one step ahead in the first moment.

    Returns:
      The transformation; its state has two values per parameter.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            ema(b1, dtype=o.state_dtype),
            ema_of_centered_squares(b2, eps_root, dtype=o.state_dtype),
        ),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        nesterov_ahead() if nesterov else None,
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
    )
