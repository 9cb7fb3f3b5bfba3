"""LAMB: Adam's direction with decay, scaled leaf by leaf to the norm of the parameters.

    u = m_hat / (sqrt(v_hat) + eps) + weight_decay theta
    theta <- theta - lr (|theta| / |u|) u

You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer & Hsieh, arXiv 1904.00962.

>>> [spec.name for spec in lamb(1e-3, weight_decay=0.01).specs][2:]
['precondition', 'decoupled_decay', 'scale_by_trust_ratio', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.checks import switch
from adamw_jax.compose import Composed, compose
from adamw_jax.decay import decoupled_decay
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.large_batch.trust_ratio import scale_by_trust_ratio
from adamw_jax.masks import Mask
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers.common import Common, finish, moving_rules, split, unpack
from adamw_jax.optimizers.registry import register
from adamw_jax.rules import ParameterRules


def scale_by_lamb(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule | None = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    *,
    correct: bool = True,
    trust_ratio_mask: Mask = None,
    min_weight_norm: ScalarOrSchedule | None = None,
    max_weight_norm: ScalarOrSchedule | None = None,
    min_ratio: ScalarOrSchedule | None = None,
    max_ratio: ScalarOrSchedule | None = None,
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    state_dtype: Any = None,
    rules: ParameterRules | None = None,
) -> Composed:
    """Adam's direction with decay, times the trust ratio: gradient in, direction out.

    Arguments as for ``lamb``; it needs the parameters.
    """
    switch("correct", correct)
    if not correct and (rectify or bias_correction != "exact"):
        raise ValueError(
            "correct=False leaves the moments as they are, so rectify and bias_correction have "
            "nothing to act on: leave them out, or leave correct=True."
        )
    state_dtype = storage_dtype("state_dtype", state_dtype)
    rules = moving_rules(rules)
    return compose(
        estimate_moments(ema(b1, dtype=state_dtype), ema_of_squares(b2, dtype=state_dtype)),
        amsgrad_max(dtype=state_dtype) if amsgrad else None,
        correct_bias(bias_correction) if correct else None,
        rectify_variance() if rectify else None,
        precondition(eps, eps_root, eps_hat=eps_hat),
        None if weight_decay is None else decoupled_decay(weight_decay, mask, rules=rules),
        scale_by_trust_ratio(
            None,
            None,
            min_weight_norm=min_weight_norm,
            max_weight_norm=max_weight_norm,
            min_ratio=min_ratio,
            max_ratio=max_ratio,
            mask=trust_ratio_mask,
        ),
    )


@register(
    title="LAMB",
    equation="u = m_hat / (sqrt(v_hat) + eps) + weight_decay theta;  "
    "theta <- theta - lr |theta| / |u| u, leaf by leaf",
    citation="You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, "
    "ICLR 2020",
    arxiv="1904.00962",
    direction=scale_by_lamb,
    state_values=2,
    differs="as optax.lamb. The paper's phi is max_weight_norm (10 in public PyTorch code, which "
    "also omits the bias correction: correct=False); many leave vectors out, which optax.lamb "
    "cannot: trust_ratio_mask=matrices_only. bitsandbytes' LAMB is another method: it clips the "
    "norm of the update. PyTorch has none.",
    scope="leaf",
    twin="lamb",
)
def lamb(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule | None = None,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Mask = None,
    *,
    correct: bool = True,
    trust_ratio_mask: Mask = None,
    min_weight_norm: ScalarOrSchedule | None = None,
    max_weight_norm: ScalarOrSchedule | None = None,
    min_ratio: ScalarOrSchedule | None = None,
    max_ratio: ScalarOrSchedule | None = None,
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: two have a place here
) -> Composed:
    """LAMB: Adam whose step in every leaf is as long as the learning rate's share of the leaf.

    Where the parameter or its direction has norm 0 the trust ratio is 1.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``): the
        length of a leaf's step over the length of the leaf.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-6 (optax).
      eps_root: added under the root; None for nothing.
      weight_decay: decay coefficient, a number or schedule; None for no decay. In the form
        ``decay="learning_rate"`` the decay is scaled by the trust ratio, in the others it is not.
      mask: which leaves decay: tree of bools, function of the parameters, or name pattern.
      correct: correct the moments' bias; False in the spirit of an earlier version of the paper.
      trust_ratio_mask: which leaves the trust ratio scales; the others take the plain step.
        ``matrices_only`` leaves biases and norms out.
      min_weight_norm: what the norm of a leaf is at least in the ratio, >= 0; None for no bound.
      max_weight_norm: what the norm of a leaf is at most in the ratio, > 0; None for no bound.
      min_ratio: what the trust ratio is at least, >= 0; None for no bound.
      max_ratio: what the trust ratio is at most, > 0; None for no bound.

    Returns:
      The transformation; its state has two values per parameter, three with ``amsgrad``.
    """
    common = {"weight_decay": weight_decay, "mask": mask, **common}
    learning_rate, b1, b2, common = unpack(learning_rate, b1, b2, common)
    direction, rest = split(common)
    if rest.get("decay", "learning_rate") == "learning_rate":
        direction["weight_decay"] = rest.pop("weight_decay")
        direction["mask"] = rest["mask"]
        direction["rules"] = rest.get("rules")
        if direction["weight_decay"] is not None and rest.get("l2") is None:
            rest.pop("mask")
    return finish(
        scale_by_lamb(
            b1,
            b2,
            eps,
            eps_root,
            correct=correct,
            trust_ratio_mask=trust_ratio_mask,
            min_weight_norm=min_weight_norm,
            max_weight_norm=max_weight_norm,
            min_ratio=min_ratio,
            max_ratio=max_ratio,
            **direction,
        ),
        learning_rate,
        **rest,
    )
