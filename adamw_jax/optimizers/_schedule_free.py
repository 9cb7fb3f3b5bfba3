"""Build schedule-free AdamW and RAdam: a constant learning rate, evaluated at an average.

    z <- z - lr (g / (sqrt(v_hat) + eps) + weight_decay y);  x <- mean of z;  y = (1 - b) z + b x

Gradients g are taken at the parameters y; b is ``interpolation``. Defazio et al., arXiv 2405.15682;
code: facebookresearch/schedule_free.

>>> schedule_free_adamw(1e-3).specs[-1].name
'schedule_free'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax._core.stage import Stage
from adamw_jax.moments import (
    correct_bias,
    ema_of_squares,
    estimate_moments,
    no_moment,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish, plain
from adamw_jax.optimizers._registry import register
from adamw_jax.update import schedule_free

_CITATION = "Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky, The Road Less Scheduled, 2024"


@register(
    title="Schedule-free AdamW",
    equation="z <- z - lr (g / (sqrt(v_hat) + eps) + weight_decay y);  x <- (1 - c) x + c z;  "
    "y = (1 - b) z + b x",
    citation=_CITATION,
    arxiv="2405.15682",
    state_values=2,
    direction=None,
    no_momentum="has interpolation in place of a momentum",
    lacks="its moments are the authors'; compose(adam(..., b1=0.0), schedule_free(...)) takes it",
    differs="as optax.contrib.schedule_free_adamw, but z and the average are float32 at least, "
    "warm-up is a schedule of the learning rate, and evaluation is eval_params.",
)
def schedule_free_adamw(
    learning_rate: LearningRate,
    interpolation: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    rate_power: ScalarOrSchedule = 2.0,
    step_power: ScalarOrSchedule = 0.0,
    **common: Unpack[Plain],
) -> Composed:
    """Schedule-free AdamW: no decay of the learning rate, and no length of the run to know.

    Args:
      learning_rate: number, or a schedule that warms up and stays; 0.0025 (code). Use one to ten
        times that of AdamW with a schedule.
      interpolation: how far the parameters are from z towards the average x, in (0, 1]; 0.9 (code,
        where it is beta1; ``b1`` in optax). Long runs may need 0.95 or 0.98.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      rate_power: power of the largest learning rate so far in the weights of the average; 2 (code).
      step_power: power of the step number in these weights; 0 (code).

    Returns:
      The transformation; its state has two values per parameter. ``eval_params(state, params)``
      gives the weights to evaluate and to keep.
    """
    tail = schedule_free(
        plain(learning_rate), interpolation, rate_power=rate_power, step_power=step_power
    )
    return _averaged(learning_rate, b2, eps, None, tail, CommonOptions(common))


@register(
    title="Schedule-free RAdam",
    equation="as schedule_free_adamw, with lr r_t in place of lr; r_t is RAdam's rectifier",
    citation=_CITATION,
    arxiv="2405.15682",
    state_values=2,
    direction=None,
    no_momentum="has interpolation in place of a momentum",
    lacks="its moments are the authors'; compose(adam(..., b1=0.0), schedule_free(...)) takes it",
    differs="optax does not have it. In the authors' code the rectifier multiplies the decay, too.",
)
def schedule_free_radam(
    learning_rate: LearningRate,
    interpolation: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    below: str = "skip",
    rate_power: ScalarOrSchedule = 2.0,
    step_power: ScalarOrSchedule = 0.0,
    **common: Unpack[Plain],
) -> Composed:
    """Schedule-free RAdam: neither a warm-up nor a decay of the learning rate.

    Args:
      learning_rate: number or schedule; 0.0025 (code).
      interpolation: how far the parameters are from z towards the average x, in (0, 1]; 0.9.
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      below: the first steps, as for ``radam``: ``"skip"`` (code), ``"decay"`` or ``"momentum"``,
        which is plain SGD here.
      rate_power: power of the largest rectified learning rate in the weights of the average; 2.
      step_power: power of the step number in these weights; 0.

    Returns:
      The transformation; its state has two values per parameter. ``eval_params(state, params)``
      gives the weights to evaluate and to keep.
    """
    tail = schedule_free(
        plain(learning_rate), interpolation, rate_power=rate_power, step_power=step_power
    )
    rectified = rectify_variance(4.0, below=below)
    return _averaged(learning_rate, b2, eps, rectified, tail, CommonOptions(common))


def _averaged(
    learning_rate: LearningRate,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    rectified: Stage | None,
    tail: Stage,
    options: CommonOptions,
) -> Composed:
    """Build the recipe without momentum, with the tail at its end."""
    made = finish(
        options,
        learning_rate,
        estimate_moments(no_moment(), ema_of_squares(b2, dtype=options.state_dtype)),
        correct_bias(),
        rectified,
        precondition(eps),
    )
    return compose(made, tail)
