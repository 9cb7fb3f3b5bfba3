"""Build ACProp, which divides the gradient by the root of the *previous* step's variance.

    m = b1 m + (1 - b1) g;   s_t = b2 (s_{t-1} + eps) + (1 - b2) (g - m)^2
    theta <- theta - lr g / (sqrt((s_{t-1} + eps) / (1 - b2^(t-1))) + eps)        (lr g at t = 1)

Zhuang et al., NeurIPS 2021, arXiv 2110.05454.

>>> acprop(1e-3).specs[1].name
'delay_second'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.checks import one_of
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, declare, nonnegative
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    delay_second,
    ema,
    ema_of_centered_squares,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.moments._rectify_variance import FALLBACKS
from adamw_jax.optimizers._common import Common, CommonOptions, finish
from adamw_jax.optimizers._registry import register


@register(
    title="ACProp",
    equation="theta <- theta - lr g / (sqrt(s_{t-1} / (1 - b2^(t-1))) + eps)",
    citation="Zhuang, Ding, Tang, Dvornek, Tatikonda & Duncan, Momentum Centering and Asynchronous "
    "Update for Adaptive Gradient Methods, NeurIPS 2021",
    arxiv="2110.05454",
    degree=None,
    state_values=2,
    differs="optax.contrib.acprop centres with the momentum of the previous step, which makes "
    "every step about 0.9 of the authors'. If a large gradient follows small ones, its eps = 1e-16 "
    "allows a step of millions of learning rates; 1e-8 here (authors' experiments), of hundreds.",
)
def acprop(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    numerator: str = "gradient",
    below: str = "momentum",
    **common: Unpack[Common],
) -> Composed:
    """ACProp: the gradient divided by the root of the previous, centred second moment.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1). It centres the second moment; only with
        ``numerator="momentum"`` is it also the numerator.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the second moment at every step, and to the root; 1e-8 (authors' experiments;
        their constructor's 1e-16 is unsafe). Unlike in Adam, the learning rate does not bound the
        step: after many zero gradients, an element steps by lr |g| sqrt((1 - b2) / eps), by default
        316 lr |g|. Clip by the global norm.
      numerator: ``"gradient"`` (paper), or ``"momentum"``, bias corrected.
      below: with ``rectify``, the step while the average is short (the first step is always lr g):
        along the ``"momentum"`` (the authors' ``degenerated_to_sgd=True``, their default), only
        ``"decay"`` (their ``degenerated_to_sgd=False``), or ``"skip"``, neither.

    Returns:
      The transformation; its state has two values per parameter. With ``rectify`` it is the form
      of the authors' constructor, except that ``amsgrad`` also divides by the maximum. The
      authors' CIFAR runs use ``l2``.
    """
    one_of("below", below, FALLBACKS)
    declare(eps=nonnegative(eps))
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            ema(b1, dtype=o.state_dtype),
            ema_of_centered_squares(b2, eps, from_floor=o.amsgrad, dtype=o.state_dtype),
        ),
        delay_second(numerator, corrected_by="current" if o.rectify else "prior"),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correct_bias(o.bias_correction),
        rectify_variance(below=below) if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat or o.rectify),
    )
