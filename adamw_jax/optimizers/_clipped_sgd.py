"""Build SGD with a bounded or a fixed length of the step over all parameters.

    clipped_sgd:     theta <- theta - min(lr, max_step / |u|) u
    normalized_sgd:  theta <- theta - lr u / |u|         u: heavy-ball momentum, |.| over all leaves

The baselines of Crawshaw et al., NeurIPS 2022, arXiv 2208.11195, for (L0, L1)-smooth losses.

>>> [spec.name for spec in clipped_sgd(0.1, max_step=1.0).specs][-2:]
['clip_step', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.gradient import clip_step, normalize
from adamw_jax.optimizers._common import CommonOptions, Plain, finish, plain
from adamw_jax.optimizers._registry import register
from adamw_jax.optimizers._sgdw import momentum_buffer

_CITATION = (
    "Crawshaw, Liu, Orabona, Zhang & Zhuang, Robustness to Unbounded Smoothness of Generalized "
    "SignSGD, NeurIPS 2022"
)


@register(
    title="Clipped SGD",
    equation="theta <- theta - min(lr, max_step / |u|) u, u <- momentum u + g",
    citation=_CITATION,
    arxiv="2208.11195",
    lacks="it has no second moment",
    direction=None,  # the direction includes the learning rate
    state_values=0,
    differs="clip_by_global_norm before SGD clips the gradient, not the step: with momentum mu a "
    "step may then be lr c / (1 - mu) long.",
    degree=None,
    scope="tree",
    example={"max_step": 0.5},
)
def clipped_sgd(
    learning_rate: LearningRate,
    max_step: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    per_leaf: bool = False,
    **common: Unpack[Plain],
) -> Composed:
    """Clipped SGD: a step of length at most ``max_step``, not counting decay and rules.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      max_step: largest length of a step, > 0: the authors' gamma (their default, 0, would freeze).
      momentum: factor on the buffer, in [0, 1]; None for no momentum, even if the learning rate has
        a schedule of it (give ``momentum=cycle.momentum``).
      nesterov: step along ``g + momentum m``.
      dampening: share of each gradient left out, except of the first; None for 0.
      per_leaf: limit the step of each leaf instead.

    Returns:
      The transformation; its state has one value per parameter with momentum, none without. Under
      ``optax.partition`` each part has its own norm.
    """
    o, rate = CommonOptions(common), plain(learning_rate)
    return finish(
        o,
        rate,
        momentum_buffer(momentum, nesterov, dampening, o.state_dtype),
        clip_step(rate, max_step, per_leaf=per_leaf),
    )


@register(
    title="Normalized SGD",
    equation="theta <- theta - lr u / |u|, u <- momentum u + g",
    citation=_CITATION,
    arxiv="2208.11195",
    lacks="it has no second moment",
    state_values=0,
    differs="optax.normalize_by_update_norm divides by the norm, this by the norm + 1e-10.",
    scope="tree",
)
def normalized_sgd(
    learning_rate: LearningRate,
    momentum: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    per_leaf: bool = False,
    **common: Unpack[Plain],
) -> Composed:
    """Normalized SGD: a step of length ``learning_rate``, not counting decay and rules.

    Under ``optax.partition`` and ``optax.masked`` the length is over the leaves of its part.

    Args:
      learning_rate: length of the step: number, schedule, or an object of several schedules.
      momentum: factor on the buffer, in [0, 1]; None for no momentum, even if the learning rate has
        a schedule of it (give ``momentum=cycle.momentum``).
      nesterov: step along ``g + momentum m``.
      dampening: share of each gradient left out, except of the first; None for 0.
      per_leaf: normalize each leaf instead.

    Returns:
      The transformation; its state has one value per parameter with momentum, none without.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        momentum_buffer(momentum, nesterov, dampening, o.state_dtype),
        normalize(per_leaf=per_leaf),
    )
