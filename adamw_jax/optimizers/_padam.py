"""Build Padam, Adam with a smaller power of the second moment.

    theta <- theta - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v_max) + eps)^(2p)

Chen et al., arXiv 1806.06763, in the form of the authors of Gadam (2003.01247).

>>> padam(0.1).specs[-2].name
'precondition_partially'
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
    precondition_partially,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register


@register(
    title="Padam",
    equation="theta <- theta - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v_max) + eps)^(2 partial)",
    citation="Chen, Zhou, Tang, Yang, Cao & Gu, Closing the Generalization Gap of Adaptive "
    "Gradient Methods in Training Deep Neural Networks, IJCAI 2020",
    arxiv="1806.06763",
    degree=0.5,
    state_values=3,
    lacks="it always adds eps to the uncorrected root",
    differs="AMSGrad is on. Neither optax nor PyTorch has it.",
)
def padam(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    partial: ScalarOrSchedule = 0.25,
    *,
    amsgrad: bool = True,
    rectify: bool = False,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """Padam: Adam with a smaller power of the second moment, between SGD and Adam.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``). For
        p = 1/8 to 1/4 it is nearer to SGD's than to Adam's, for example 0.1.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root, inside the power; 1e-8 (code).
      partial: p in [0, 0.5]; 1/4 (the class's default; the vision runs have 1/8). 0.5 is Adam in
        the eps-hat form, 0 is momentum times sqrt(1 - b2^t) / (1 - b1^t).
      amsgrad: divide by the largest second moment so far, as the authors do.

    Returns:
      The transformation; its state has three values per parameter, two without ``amsgrad``.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(ema(b1, dtype=o.state_dtype), ema_of_squares(b2, dtype=o.state_dtype)),
        amsgrad_max(dtype=o.state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        rectify_variance() if rectify else None,
        precondition_partially(partial, eps),
    )
