"""ACProp: the gradient over the root of the *previous* step's variance, as a list of stages.

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
    differs="optax.contrib.acprop centres with the momentum of the step before, which makes every "
    "step about 0.9 of the authors', and its eps = 1e-16 lets a coordinate jump by millions of "
    "learning rates after a silence; with ours, the 1e-8 of the authors' experiments, by hundreds.",
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
    """ACProp: asynchronous, centred second moment.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1), which centres the second and, unless
        ``numerator="momentum"``, does nothing else.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the second moment at every step, and to the root; 1e-8 (authors' experiments;
        their constructor's 1e-16 is unsafe). Unlike Adam's, a step is not bounded by the learning
        rate: an element that is silent and then speaks takes a step of lr |g| sqrt((1 - b2) / eps),
        316 lr |g| by default; clip by the global norm.
      numerator: ``"gradient"`` (paper), or ``"momentum"``, bias corrected.
      below: with ``rectify``, what happens after the first step, which is lr g always, while the
        average is short: ``"momentum"`` makes the momentum step (the authors'
        ``degenerated_to_sgd=True``, their default), ``"decay"`` no step but the decay's (their
        ``degenerated_to_sgd=False``), ``"skip"`` neither.

    Returns:
      The transformation; its state has two values per parameter. With ``rectify`` it is the form
      of the authors' constructor, but that ``amsgrad`` divides by the maximum there, too. The
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
