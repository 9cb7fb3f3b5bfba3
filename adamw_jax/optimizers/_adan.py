"""Build Adan, Adam with a Nesterov momentum from gradient differences.

    d = g - g_previous;   m, v, n: averages of g, d, (g + b2 d)^2 with rates b1, b2, b3
    theta <- (theta - lr (m_hat + b2 v_hat) / (sqrt(n_hat) + eps)) / (1 + lr weight_decay)

Xie et al. 2022, arXiv 2208.06677.

>>> adan(1e-3).specs[0].name
'estimate_moments'
"""

from __future__ import annotations

from typing import Any, Unpack

from jax.core import Tracer

from adamw_jax._core.checks import one_of
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, decay_rate, declare
from adamw_jax._core.masks import Mask
from adamw_jax.gradient import clip_gradient
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema_of_squares,
    estimate_moments,
    gradient_differences,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, OwnDecay, finish
from adamw_jax.optimizers._registry import register

STARTS = ("zero", "first_gradient")


@register(
    corrects=lambda given: given.get("start") != "first_gradient",
    title="Adan",
    equation="theta <- (theta - lr (m_hat + b2 v_hat) / (sqrt(n_hat) + eps)) / (1 + lr wd)",
    citation="Xie, Zhou, Li, Lin & Yan, Adan: Adaptive Nesterov Momentum Algorithm for Faster "
    "Optimizing Deep Models, TPAMI 2024",
    arxiv="2208.06677",
    second_rate="b3",
    state_values=4,
    differs="optax.adan weighs the differences by 1 - b2 = 0.08 instead of b2 = 0.92, adds "
    "eps_root = 1e-8 under the root and decays as AdamW does; after 40 recorded steps it is off by "
    "two thirds of the movement. b1, b2 and b3 are 1 minus the paper's betas.",
)
def adan(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    *,
    max_grad_norm: ScalarOrSchedule | None = None,
    restart_period: int | None = None,
    start: str = "zero",
    paper_betas: bool = False,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    decay: str = "proximal",
    **common: Unpack[OwnDecay],
) -> Composed:
    """Adan: adaptive Nesterov momentum from gradient differences.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``). The
        authors advise 5 to 10 times that of Adam.
      b1: decay rate of the average of gradients, in [0, 1).
      b2: decay rate of the average of differences, and its weight, in [0, 1); 0 is Adam with
        (b1, b3).
      b3: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      max_grad_norm: clip the gradient to this norm over all leaves (of its part, under
        ``optax.partition``); None for no clipping.
      restart_period: number of steps after which the moments start again from 0; None for never.
        To restart by hand use ``restart_moments(state)``.
      start: first value of the averages: ``"zero"``, with bias correction (the code behind the
        published numbers), or ``"first_gradient"``, without (the paper's Algorithm 1). The average
        of differences then starts at the first difference, in the second step.
      paper_betas: whether b1, b2 and b3 are the paper's betas, 1 minus decay rates, such as
        (0.02, 0.08, 0.01).
      decay: ``"proximal"`` (the code's default), ``"learning_rate"`` (its ``no_prox``), or another
        form of ``decoupled_decay``.

    Returns:
      The transformation; its state has four values per parameter (one is the previous gradient).
    """
    one_of("start", start, STARTS)
    if paper_betas:
        b1, b2, b3 = _kept("b1", b1), _kept("b2", b2), _kept("b3", b3)
    o = CommonOptions(common, weight_decay=weight_decay, mask=mask, decay=decay)
    from_first = start == "first_gradient"
    if from_first and o.bias_correction != "exact":
        raise ValueError(
            'start="first_gradient" leaves no bias to correct: leave bias_correction out, got '
            f"{o.bias_correction!r}."
        )
    return finish(
        o,
        learning_rate,
        None if max_grad_norm is None else clip_gradient(max_grad_norm, eps),
        estimate_moments(
            gradient_differences(b1, b2, from_first=from_first, dtype=o.state_dtype),
            ema_of_squares(b3, dtype=o.state_dtype, rate_name="b3", from_first=from_first),
            restart_period=restart_period,
        ),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_hat=o.eps_hat),
    )


def _kept(name: str, beta: Any) -> Any:
    """Return the decay rate, 1 minus a beta of the paper."""
    declare(**{name: decay_rate(beta)})
    if callable(beta):
        schedule: Any = beta
        return lambda count: 1 - schedule(count)
    if not isinstance(beta, Tracer) and not 0 < float(beta) <= 0.5:
        raise ValueError(
            f"{name} must be in (0, 0.5] with paper_betas=True, got {beta!r}: the paper's betas "
            "are 0.02, 0.08 and 0.01. To give decay rates, 1 minus these, leave paper_betas out."
        )
    return 1 - beta
