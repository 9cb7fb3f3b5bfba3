"""ADOPT: momentum of gradients that the second moment of the step before divides.

    m <- b1 m + (1 - b1) clip(g / max(sqrt(v), eps), t^(1/4));   theta <- theta - lr m
    v <- b2 v + (1 - b2) g^2

The first step only starts v, at g^2. Taniguchi et al. 2024, arXiv 2411.02853.

>>> [spec.name for spec in adopt(1e-3).specs][2:5]
['precondition', 'clip_elements', 'average_directions']
"""

from __future__ import annotations

from typing import Any, Unpack

import jax

from adamw_jax._core import numerics
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.gradient import clip_elements
from adamw_jax.moments import (
    average_directions,
    delay_second,
    ema_of_squares,
    estimate_moments,
    no_moment,
    precondition,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register


def fourth_root(count: Any) -> jax.Array:
    """Return the fourth root of the count, the limit of ADOPT's elements."""
    return numerics.scalar(count) ** 0.25


@register(
    title="ADOPT",
    equation="m <- b1 m + (1 - b1) clip(g / max(sqrt(v), eps), limit), theta <- theta - lr m, "
    "then v <- b2 v + (1 - b2) g^2",
    citation="Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa & "
    "Matsuo, ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate, NeurIPS 2024",
    arxiv="2411.02853",
    state_values=2,
    differs="limit is t^(1/4) as in the authors' code, with t = 0 at the first update; their paper "
    "also runs without a limit. optax.contrib.adopt has no decay. PyTorch has none. The authors' "
    "weight_decay is l2 here.",
    lacks="it divides by the second moment of the step before, which starts without bias",
)
def adopt(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    *,
    clip: bool = True,
    limit: ScalarOrSchedule | None = None,
    **common: Unpack[Plain],
) -> Composed:
    """ADOPT: converges for every b2, because numerator and denominator share no gradient.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the momentum, in [0, 1).
      b2: decay rate of the second moment, in [0, 1); 0.9999 (code).
      eps: lower bound of the root; 1e-6 (code).
      clip: bound the elements of the divided gradient.
      limit: their largest magnitude, >= 0, a number or schedule; None for the fourth root of the
        number of updates before (code).

    Returns:
      The transformation; its state has two values per parameter. The first step does not move or
      decay the parameters.
    """
    if limit is not None and not clip:
        raise ValueError(
            f"limit={limit!r} bounds the elements, which clip=False does not: leave one out."
        )
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(no_moment(), ema_of_squares(b2, dtype=o.state_dtype, from_first=True)),
        delay_second(first="skip"),
        precondition(eps, eps_form="clamped"),
        clip_elements(fourth_root if limit is None else limit) if clip else None,
        average_directions(b1, correct=False, dtype=o.state_dtype),
    )
