"""LARS: SGD with momentum on gradients scaled leaf by leaf to the norm of the parameters.

    d = g + weight_decay theta
    m <- momentum m + lr trust_coefficient (|theta| / |d|) d
    theta <- theta - m

The learning rate stands inside the momentum. You, Gitman & Ginsburg, arXiv 1708.03888.

>>> [spec.name for spec in lars(0.1).specs][:3]
['scale_by_trust_ratio', 'scale_gradient', 'estimate_moments']
"""

from __future__ import annotations

from typing import Any, Unpack

import jax

from adamw_jax.checks import switch
from adamw_jax.compose import Composed, compose
from adamw_jax.decay import l2_decay
from adamw_jax.hyperparameters import ScalarOrSchedule
from adamw_jax.large_batch.trust_ratio import scale_by_trust_ratio
from adamw_jax.masks import Mask
from adamw_jax.optimizers.common import Common, finish, moving_rules, split, unpack
from adamw_jax.optimizers.registry import register
from adamw_jax.optimizers.sgdw import scale_by_sgdw


@register(
    title="LARS",
    equation="d = g + weight_decay theta;  m <- momentum m + lr trust_coefficient |theta| / |d| d, "
    "leaf by leaf;  theta <- theta - m",
    citation="You, Gitman & Ginsburg, Large Batch Training of Convolutional Networks, 2017",
    arxiv="1708.03888",
    direction=None,
    state_values=1,
    differs="as optax.lars. In the spirit of the paper, and in NVIDIA's LARC, the ratio has the "
    "sum of the norms in place of the norm of the sum: sum_of_norms=True. bitsandbytes' LARS is "
    "another method: it clips the norm of the update. PyTorch has none.",
    degree=None,
    scope="leaf",
    twin="lars",
    refuses=("amsgrad", "rectify", "eps_hat", "bias_correction"),
)
def lars(
    learning_rate: ScalarOrSchedule,
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
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: one has a place here
) -> Composed:
    """LARS: momentum SGD whose step in every leaf is in proportion to the norm of the leaf.

    The step does not see the scale of the gradient. Where the parameter or its gradient has norm 0
    the trust ratio is 1, without ``trust_coefficient``.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``).
      weight_decay: coefficient of the decay, a number or schedule; None for no decay. In the form
        ``decay="learning_rate"`` it enters the gradient before the trust ratio, as in the paper;
        the other forms stay outside ratio and momentum.
      weight_decay_mask: which leaves decay: tree of bools, function of the parameters, or name
        pattern; True for all. ``mask`` is another word for it.
      trust_coefficient: factor on the ratio, > 0; 0.001 (optax).
      eps: added to the norm that the ratio divides by, >= 0.
      trust_ratio_mask: which leaves the trust ratio scales, as above; the others take the plain
        step, which is usual for biases and norms: ``matrices_only``.
      momentum: factor on the buffer, in [0, 1]; None for plain gradient descent.
      nesterov: step along ``g + momentum m``.
      sum_of_norms: divide by |g| + weight_decay |theta| instead of |g + weight_decay theta|.
      schedule_inside: the learning rate multiplies what enters the momentum; False: the momentum.
      dampening: what is withheld of every gradient but the first, in [0, 1]; None for nothing.
      min_weight_norm: what the norm of a leaf is at least in the ratio, >= 0; None for no bound.
      max_weight_norm: what the norm of a leaf is at most in the ratio, > 0; None for no bound.
      min_ratio: what the trust ratio is at least, >= 0; None for no bound.
      max_ratio: what the trust ratio is at most, > 0; None for no bound.

    Returns:
      The transformation; its state has one value per parameter, none without momentum.
    """
    switch("sum_of_norms", sum_of_norms)
    switch("schedule_inside", schedule_inside)
    mask = _one_mask(_from_optax(weight_decay_mask), common.get("mask"))
    common = {"weight_decay": weight_decay, **common, "mask": mask}
    learning_rate, momentum, _, common = unpack(learning_rate, momentum, None, common)
    direction, rest = split(common)
    rules, l2 = moving_rules(rest.get("rules")), rest.pop("l2", None)
    if mask is not None and l2 is None and rest["weight_decay"] is None:
        raise ValueError(
            "weight_decay_mask (mask) says which leaves decay, but neither weight_decay nor l2 is "
            "given: give one of them, or leave the mask out."
        )
    decay = None
    if rest.get("decay", "learning_rate") == "learning_rate":
        decay = rest.pop("weight_decay")
    if rest.get("weight_decay") is None:
        rest.pop("mask")
    before, within = None, {}
    if decay is not None and sum_of_norms:
        within = {"weight_decay": decay, "weight_decay_mask": mask, "rules": rules}
    elif decay is not None:
        before = l2_decay(decay, mask, rules=rules, rate_name="weight_decay")
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
            scale_by_sgdw(momentum, nesterov=nesterov, dampening=dampening, **direction),
            learning_rate,
            schedule_inside=schedule_inside,
            **rest,
        ),
    )


def _from_optax(mask: Any) -> Mask:
    """A mask of optax may be one bool for all leaves."""
    if isinstance(mask, bool):
        return None if mask else lambda tree: jax.tree.map(lambda _: False, tree)
    return mask


def _one_mask(mask: Mask, common: Mask) -> Mask:
    if mask is not None and common is not None:
        raise ValueError("mask and weight_decay_mask are one thing: give one of them.")
    return common if mask is None else mask
