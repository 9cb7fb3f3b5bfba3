"""Build AdaMax, Adam with the infinity norm instead of the second moment.

    u = max(b2 u, |g| + eps);   theta <- theta - lr m_hat / u

Kingma & Ba 2014, arXiv 1412.6980, Algorithm 2.

>>> adamax(1e-3).specs[-1].name
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
    estimate_moments,
    infinity_norm,
    precondition,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register


@register(
    title="AdaMax",
    equation="u <- max(b2 u, |g| + eps);  theta <- theta - lr m_hat / u",
    citation="Kingma & Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, Algorithm 2",
    arxiv="1412.6980",
    state_values=2,
    differs="the paper has no eps; with 0 an element without gradients does not move here. Keras "
    "and fairseq add eps outside the maximum (eps_inside_max=False). With weight_decay it is "
    "optax's adamaxw.",
    twin="adamax",
    lacks="it has no variance to rectify, and its norm needs no bias correction",
)
def adamax(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_inside_max: bool = True,
    amsgrad: bool = False,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """AdaMax: Adam divided by the decaying maximum of |g|.

    Args:
      learning_rate: number, schedule, or an object of several schedules; the paper uses 2e-3.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the infinity norm, in [0, 1).
      eps: added to |g| inside the maximum.
      eps_inside_max: False adds eps to the maximum instead.

    Returns:
      The transformation; its state has two values per parameter.
    """
    inside, outside = (eps, None) if eps_inside_max else (0.0, eps)
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            ema(b1, dtype=o.state_dtype),
            infinity_norm(b2, inside, dtype=o.state_dtype),
        ),
        amsgrad_max(dtype=o.state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        precondition(outside),
    )
