"""Build LARS, SGD with momentum on gradients that are scaled to the norm of each leaf.

    d = g + weight_decay theta
    m <- momentum m + lr trust_coefficient (|theta| / |d|) d
    theta <- theta - m

The momentum includes the learning rate. You, Gitman & Ginsburg, arXiv 1708.03888.

>>> [spec.name for spec in lars(0.1).specs][:3]
['scale_by_trust_ratio', 'scale_gradient', 'estimate_moments']
"""

from __future__ import annotations

from typing import Any, Unpack

import jax

from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax._core.masks import Mask
from adamw_jax.direction import scale_by_trust_ratio
from adamw_jax.direction._decay import l2_decay
from adamw_jax.optimizers._common import CommonOptions, Stored, finish
from adamw_jax.optimizers._registry import register
from adamw_jax.optimizers._sgdw import momentum_buffer


@register(
    title="LARS",
    equation="d = g + weight_decay theta;  m <- momentum m + lr trust_coefficient |theta| / |d| d, "
    "leaf by leaf;  theta <- theta - m",
    citation="You, Gitman & Ginsburg, Large Batch Training of Convolutional Networks, 2017",
    arxiv="1708.03888",
    direction=None,
    state_values=1,
    differs="it equals optax.lars. In the paper and in NVIDIA's LARC the ratio divides by the sum "
    "of the norms, not by the norm of the sum: sum_of_norms=True. bitsandbytes' LARS is another "
    "method: it clips the norm of the update. PyTorch has no LARS.",
    degree=None,
    scope="leaf",
    twin="lars",
    lacks="it has no second moment",
)
def lars(
    learning_rate: LearningRate,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = True,
    trust_coefficient: ScalarOrSchedule = 0.001,
    eps: ScalarOrSchedule = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: ScalarOrSchedule | None = 0.9,
    nesterov: bool = False,
    *,
    sum_of_norms: bool = False,
    schedule_inside: bool = True,
    dampening: ScalarOrSchedule | None = None,
    min_weight_norm: ScalarOrSchedule | None = None,
    max_weight_norm: ScalarOrSchedule | None = None,
    min_ratio: ScalarOrSchedule | None = None,
    max_ratio: ScalarOrSchedule | None = None,
    mask: Mask = None,
    decay: str = "learning_rate",
    **common: Unpack[Stored],
) -> Composed:
    """LARS: momentum SGD with a step of each leaf in proportion to the norm of the leaf.

    The step does not depend on the scale of the gradient. If the parameter or its gradient has norm
    0, the trust ratio is 1, without ``trust_coefficient``.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      weight_decay: coefficient of the decay, a number or schedule; None for no decay. In the form
        ``decay="learning_rate"`` it enters the gradient before the trust ratio, as in the paper;
        in the other forms it enters neither ratio nor momentum.
      weight_decay_mask: which leaves decay: tree of bools, function of the parameters, or name
        pattern; True for all. ``mask`` is another name for it.
      trust_coefficient: factor on the ratio, > 0; 0.001 (optax).
      eps: added to the norm that the ratio divides by, >= 0.
      trust_ratio_mask: which leaves the trust ratio scales, as above; the others take the plain
        step. ``kernels_only()`` excludes biases and norms, as is usual.
      momentum: factor on the buffer, in [0, 1]; None for plain gradient descent.
      nesterov: step along ``g + momentum m``.
      sum_of_norms: divide by |g| + weight_decay |theta| instead of |g + weight_decay theta|.
      schedule_inside: True multiplies the scaled gradient by the learning rate, False the momentum.
      dampening: share of each gradient left out, except of the first, in [0, 1]; None for 0.
      min_weight_norm: lower bound of a leaf's norm in the ratio, >= 0; None for no bound.
      max_weight_norm: upper bound of a leaf's norm in the ratio, > 0; None for no bound.
      min_ratio: lower bound of the trust ratio, >= 0; None for no bound.
      max_ratio: upper bound of the trust ratio, > 0; None for no bound.

    Returns:
      The transformation; its state has one value per parameter, none without momentum.
    """
    mask = _one_mask(_from_optax(weight_decay_mask), mask)
    if mask is not None and common.get("l2") is None and weight_decay is None:
        raise ValueError(
            "weight_decay_mask (mask) selects the leaves that decay, but neither weight_decay nor "
            "l2 is given: give one of them, or leave the mask out."
        )
    o = CommonOptions(common, weight_decay=weight_decay, mask=mask, decay=decay)
    rules, l2, o.l2 = o.rules, o.l2, None
    before, within = None, {}
    if decay == "learning_rate":
        o.weight_decay = None
        if weight_decay is not None and sum_of_norms:
            within = {"weight_decay": weight_decay, "weight_decay_mask": mask, "rules": rules}
        elif weight_decay is not None:
            before = l2_decay(weight_decay, mask, rules=rules, rate_name="weight_decay")
    if o.weight_decay is None:
        o.mask = None
    return compose(
        None if l2 is None else l2_decay(l2, mask, rules=rules),
        before,
        scale_by_trust_ratio(
            trust_coefficient,
            eps,
            min_weight_norm=min_weight_norm,
            max_weight_norm=max_weight_norm,
            min_ratio=min_ratio,
            max_ratio=max_ratio,
            mask=_from_optax(trust_ratio_mask),
            of="gradient",
            **within,
        ),
        finish(
            o,
            learning_rate,
            momentum_buffer(momentum, nesterov, dampening, o.state_dtype),
            schedule_inside=schedule_inside,
        ),
    )


def _from_optax(mask: Any) -> Mask:
    """Convert a mask of optax, which may be one bool for all leaves."""
    if isinstance(mask, bool):
        return None if mask else lambda tree: jax.tree.map(lambda _: False, tree)
    return mask


def _one_mask(mask: Mask, common: Mask) -> Mask:
    if mask is not None and common is not None:
        raise ValueError("mask and weight_decay_mask mean the same: give only one of them.")
    return common if mask is None else mask
