"""SGD whose step has a bounded, or a fixed, length over all parameters.

    clipped_sgd:     theta <- theta - min(lr, max_step / |u|) u
    normalized_sgd:  theta <- theta - lr u / |u|         u: heavy-ball momentum, |.| over all leaves

The baselines of Crawshaw et al., NeurIPS 2022, arXiv 2208.11195, for (L0, L1)-smooth losses.

>>> [spec.name for spec in clipped_sgd(0.1, max_step=1.0).specs][-2:]
['clip_step', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.compose import Composed, compose
from adamw_jax.hyperparameters import ScalarOrSchedule
from adamw_jax.optimizers.common import Common, finish, split, unpack
from adamw_jax.optimizers.registry import register
from adamw_jax.optimizers.sgdw import scale_by_sgdw
from adamw_jax.scaling.clipping import clip_step, normalize

_CITATION = (
    "Crawshaw, Liu, Orabona, Zhang & Zhuang, Robustness to Unbounded Smoothness of Generalized "
    "SignSGD, NeurIPS 2022"
)
_REFUSES = ("amsgrad", "rectify", "eps_hat", "bias_correction")


def scale_by_normalized_sgd(
    momentum: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    per_leaf: bool = False,
    state_dtype: Any = None,
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
) -> Composed:
    """The momentum buffer, 1 long over all parameters. Arguments as for ``normalized_sgd``."""
    buffer = scale_by_sgdw(
        momentum,
        nesterov=nesterov,
        dampening=dampening,
        state_dtype=state_dtype,
        amsgrad=amsgrad,
        rectify=rectify,
        eps_hat=eps_hat,
        bias_correction=bias_correction,
    )
    return compose(buffer, normalize(per_leaf=per_leaf))


@register(
    title="Clipped SGD",
    equation="theta <- theta - min(lr, max_step / |u|) u, u <- momentum u + g",
    citation=_CITATION,
    arxiv="2208.11195",
    direction=None,  # the learning rate is in it
    state_values=0,
    differs="clip_by_global_norm before SGD clips the gradient, not the step: with momentum mu a "
    "step may then be lr c / (1 - mu) long.",
    refuses=_REFUSES,
    degree=None,
    scope="tree",
    example={"max_step": 0.5},
)
def clipped_sgd(
    learning_rate: ScalarOrSchedule,
    max_step: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    per_leaf: bool = False,
    **common: Unpack[Common],
) -> Composed:
    """SGD whose step over all parameters is at most ``max_step`` long, without decay and rules.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``).
      max_step: largest length of a step, > 0: the authors' gamma (their default, 0, would freeze).
      momentum: factor on the buffer, in [0, 1]; None for none, also where the learning rate carries
        one: ``momentum=cycle.momentum`` takes it.
      nesterov: step along ``g + momentum m``.
      dampening: what is withheld of every gradient but the first; None for nothing.
      per_leaf: a length of its own for every leaf.

    Returns:
      The transformation; its state has one value per parameter with momentum, none without. Under
      ``optax.partition`` every part has its own norm.
    """
    learning_rate, momentum, _, common = unpack(learning_rate, momentum, None, common)
    direction, rest = split(common)
    return finish(
        compose(
            scale_by_sgdw(momentum, nesterov=nesterov, dampening=dampening, **direction),
            clip_step(learning_rate, max_step, per_leaf=per_leaf),
        ),
        learning_rate,
        **rest,
    )


@register(
    title="Normalized SGD",
    equation="theta <- theta - lr u / |u|, u <- momentum u + g",
    citation=_CITATION,
    arxiv="2208.11195",
    direction=scale_by_normalized_sgd,
    state_values=0,
    differs="optax.normalize_by_update_norm divides by the norm alone, ours by the norm + 1e-10.",
    refuses=_REFUSES,
    scope="tree",
)
def normalized_sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    per_leaf: bool = False,
    **common: Unpack[Common],
) -> Composed:
    """SGD whose step over all parameters is ``learning_rate`` long, without decay and rules.

    Under ``optax.partition`` and ``optax.masked`` the length is of the leaves that the part sees.

    Args:
      learning_rate: length of the step: number, schedule, or an object that carries several.
      momentum: factor on the buffer, in [0, 1]; None for none, also where the learning rate carries
        one: ``momentum=cycle.momentum`` takes it.
      nesterov: step along ``g + momentum m``.
      dampening: what is withheld of every gradient but the first; None for nothing.
      per_leaf: a length of its own for every leaf.

    Returns:
      The transformation; its state has one value per parameter with momentum, none without.
    """
    learning_rate, momentum, _, common = unpack(learning_rate, momentum, None, common)
    direction, rest = split(common)
    return finish(
        scale_by_normalized_sgd(
            momentum, nesterov=nesterov, dampening=dampening, per_leaf=per_leaf, **direction
        ),
        learning_rate,
        **rest,
    )
