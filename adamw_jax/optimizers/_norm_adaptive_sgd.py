"""SGD whose step is divided by an online estimate of the gradient's norm.

    theta <- theta - lr g_t / (m_t + floor)

>>> norm_adaptive_sgd(0.1).specs[0].name
'scale_by_norm_estimate'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import scale_by_norm_estimate
from adamw_jax.optimizers._common import CommonOptions, Unstored, finish
from adamw_jax.optimizers._registry import register


@register(
    title="Norm-adaptive SGD",
    equation="theta <- theta - lr g / (m + floor), m^2 the average of |g|^2 before this step",
    citation="in the spirit of Zhang, Lin, Das, Sra & Jadbabaie, Moment Estimation Improves "
    "Instance Complexity, ICML 2022",
    arxiv="2006.04429",
    state_values=0,
    lacks="it has one scalar of state and no second moment",
    differs="built from the idea and its bound, not from the authors' pseudo-code. RMSProp has a "
    "norm per element and puts the present gradient into it.",
    degree=None,  # the floor stands beside the norm
    scope="tree",
)
def norm_adaptive_sgd(
    learning_rate: LearningRate,
    beta: ScalarOrSchedule = 0.9,
    floor: ScalarOrSchedule = 1e-3,
    *,
    use_previous: bool = True,
    **common: Unpack[Unstored],
) -> Composed:
    """SGD with short steps while the gradients are large, for noise that changes during a run.

    It pays where loud phases last longer than the average, 1 / (1 - beta) steps. Single outbursts
    are not foreseen: there a constant learning rate does as well, or clipping.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``). About
        the length of a step over all parameters: the theory takes R / sqrt(T) for a start at
        distance R and T steps, and the average of the iterates weighted by lr / (m + floor), the
        tail ``average_iterates(kind="weighted", weights="step_size")``.
      beta: decay rate of the average of squared norms, in [0, 1).
      floor: added to the estimate, >= 0; well below the norm of a typical gradient.
      use_previous: the estimate without the present gradient; the first step has |g_1|.

    Returns:
      The transformation; its state is one scalar. Under ``optax.partition`` every part has its own
      norm.
    """
    stage = scale_by_norm_estimate(beta, floor, use_previous)
    return finish(CommonOptions(common), learning_rate, stage)
