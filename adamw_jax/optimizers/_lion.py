"""Lion: steps of one size, along the sign of a momentum.

    theta <- theta - lr (sign(b1 m + (1 - b1) g) + weight_decay theta);   m <- b2 m + (1 - b2) g

Chen et al. 2023, arXiv 2302.06675.

>>> [spec.name for spec in lion(1e-4).specs]
['sign_momentum', 'decoupled_decay', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, storage_dtype
from adamw_jax._core.masks import Mask
from adamw_jax.direction import cautious as cautious_updates
from adamw_jax.moments import sign_momentum
from adamw_jax.optimizers._common import CommonOptions, Stored, finish
from adamw_jax.optimizers._registry import register


@register(
    title="Lion",
    equation="theta <- theta - lr (sign(b1 m + (1 - b1) g) + weight_decay theta), "
    "then m <- b2 m + (1 - b2) g",
    citation="Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu & Le, Symbolic "
    "Discovery of Optimization Algorithms, NeurIPS 2023",
    arxiv="2302.06675",
    state_values=1,
    differs="weight_decay is 1e-3 as in optax; the authors' code has 0. The momentum is float32 or "
    "wider; optax keeps it in the parameters' dtype. PyTorch has none.",
    twin="lion",
    lacks="it has no second moment",
)
def lion(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule | None = 1e-3,
    mask: Mask = None,
    *,
    cautious: bool = False,
    decay: str = "learning_rate",
    **common: Unpack[Stored],
) -> Composed:
    """Lion: every element moves by the learning rate, along the sign of a momentum.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``). The
        paper takes a third to a tenth of AdamW's, with 3 to 10 times its weight decay.
      b1: weight of the momentum in the step, in [0, 1).
      b2: decay rate of the momentum, in (0, 1).
      mu_dtype: storage dtype of the momentum; None for float32 (float64 under x64).
      weight_decay: decay coefficient, a number or schedule; default 1e-3 (optax). Pass your own.
      mask: which leaves decay: tree of bools, function of the parameters, or name pattern.
      cautious: move only elements whose direction has the sign of the gradient (C-Lion). Decay
        acts on all.

    Returns:
      The transformation; its state has one value per parameter.
    """
    o = CommonOptions(common, weight_decay=weight_decay, mask=mask, decay=decay)
    dtype = storage_dtype("mu_dtype", mu_dtype) or o.state_dtype
    stages = sign_momentum(b1, b2, dtype=dtype), cautious_updates() if cautious else None
    return finish(o, learning_rate, *stages)
