"""Build LAMB, which scales Adam's direction with decay to the norm of each leaf.

    u = m_hat / (sqrt(v_hat) + eps) + weight_decay theta
    theta <- theta - lr (|theta| / |u|) u

You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer & Hsieh, arXiv 1904.00962.

>>> [spec.name for spec in lamb(1e-3, weight_decay=0.01).specs][2:]
['precondition', 'decoupled_decay', 'scale_by_trust_ratio', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax._core.masks import Mask
from adamw_jax.direction import decoupled_decay, scale_by_trust_ratio
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, OwnDecay, finish
from adamw_jax.optimizers._registry import register


@register(
    corrects=lambda given: given.get("correct", True),
    title="LAMB",
    equation="u = m_hat / (sqrt(v_hat) + eps) + weight_decay theta;  "
    "theta <- theta - lr |theta| / |u| u, leaf by leaf",
    citation="You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, "
    "ICLR 2020",
    arxiv="1904.00962",
    state_values=2,
    differs="it equals optax.lamb. The paper's phi is max_weight_norm (10 in public PyTorch code, "
    "which also omits the bias correction: correct=False). Many exclude vectors from the ratio, "
    "which optax.lamb cannot: trust_ratio_mask=kernels_only(). bitsandbytes' LAMB is another "
    "method: it clips the norm of the update. PyTorch has no LAMB.",
    scope="leaf",
    twin="lamb",
    in_direction=("weight_decay", "mask", "rules"),
)
def lamb(
    learning_rate: LearningRate,
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
    decay: str = "learning_rate",
    **common: Unpack[OwnDecay],
) -> Composed:
    """LAMB: Adam with a step of each leaf in proportion to the norm of the leaf.

    If the parameter or its direction has norm 0, the trust ratio is 1.

    Args:
      learning_rate: norm of a leaf's step divided by the norm of the leaf: number, schedule, or an
        object of several schedules (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-6 (optax).
      eps_root: added under the root; None for nothing.
      weight_decay: decay coefficient, a number or schedule; None for no decay. In the form
        ``decay="learning_rate"`` the trust ratio scales the decay, in the other forms it does not.
      mask: which leaves decay: tree of bools, function of the parameters, or name pattern.
      correct: correct the bias of the moments; False as in an earlier version of the paper.
      trust_ratio_mask: which leaves the trust ratio scales; the others take the plain step.
        ``kernels_only()`` excludes biases and norms.
      min_weight_norm: lower bound of a leaf's norm in the ratio, >= 0; None for no bound.
      max_weight_norm: upper bound of a leaf's norm in the ratio, > 0; None for no bound.
      min_ratio: lower bound of the trust ratio, >= 0; None for no bound.
      max_ratio: upper bound of the trust ratio, > 0; None for no bound.

    Returns:
      The transformation; its state has two values per parameter, three with ``amsgrad``.
    """
    if not correct and (common.get("rectify") or common.get("bias_correction", "exact") != "exact"):
        raise ValueError(
            "correct=False does not correct the moments, so rectify and bias_correction have no "
            "effect: leave them out, or leave correct out."
        )
    o = CommonOptions(common, weight_decay=weight_decay, mask=mask, decay=decay)
    scaled = None
    if decay == "learning_rate" and weight_decay is not None:
        scaled = decoupled_decay(weight_decay, mask, rules=o.rules)
        o.weight_decay, o.mask = None, None if o.l2 is None else mask
    return finish(
        o,
        learning_rate,
        estimate_moments(ema(b1, dtype=o.state_dtype), ema_of_squares(b2, dtype=o.state_dtype)),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        correct_bias(o.bias_correction) if correct else None,
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_root, eps_hat=o.eps_hat),
        scaled,
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
