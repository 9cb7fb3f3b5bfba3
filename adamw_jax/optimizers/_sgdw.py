"""Build SGD with momentum and decoupled weight decay.

    m <- momentum m + g;   theta <- theta - lr (m + weight_decay theta)

Loshchilov & Hutter, arXiv 1711.05101, Algorithm 1.

>>> [spec.name for spec in sgdw(0.1).specs]
['estimate_moments', 'precondition', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import estimate_moments, heavy_ball, no_moment, precondition
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register


@register(
    title="SGDW",
    equation="m <- momentum m + g;  theta <- theta - lr (m + weight_decay theta)",
    citation="Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019, Algorithm 1",
    arxiv="1711.05101",
    state_values=1,
    differs="the learning rate multiplies the buffer, as in the authors' code, PyTorch and optax; "
    "in the paper's Algorithm 1 it multiplies the gradient (schedule_inside=True with "
    'decay="schedule"). PyTorch\'s weight_decay is l2 here. The default momentum is 0.9 (optax: '
    "None, PyTorch: 0). Without weight_decay there is no decay.",
    twin="sgd",
    lacks="it has no second moment",
    after_direction=("schedule_inside",),
    degree=1,
    twin_options={"momentum": 0.9},
)
def sgdw(
    learning_rate: LearningRate,
    momentum: ScalarOrSchedule | None = 0.9,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    schedule_inside: bool = False,
    **common: Unpack[Plain],
) -> Composed:
    """SGDW: SGD with momentum, and decay that does not enter the momentum.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      momentum: factor on the buffer, in [0, 1]; None for plain gradient descent.
      nesterov: step along ``g + momentum m``.
      dampening: share of each gradient left out, except of the first (PyTorch); None for 0.
      schedule_inside: multiply the gradient, not the buffer, by the learning rate.

    Returns:
      The transformation; its state has one value per parameter, none without momentum.
    """
    o = CommonOptions(common)
    direction = momentum_buffer(momentum, nesterov, dampening, o.state_dtype)
    return finish(o, learning_rate, direction, schedule_inside=schedule_inside)


def momentum_buffer(
    momentum: ScalarOrSchedule | None,
    nesterov: bool,
    dampening: ScalarOrSchedule | None,
    dtype: Any,
) -> Composed:
    """Build the direction of SGD with momentum."""
    if momentum is not None:
        first = heavy_ball(momentum, dampening=dampening, nesterov=nesterov, dtype=dtype)
    elif nesterov or dampening is not None:
        raise ValueError("nesterov and dampening need a momentum: give momentum=0.9, for example.")
    else:
        first = no_moment()
    return compose(estimate_moments(first, no_moment()), precondition(None))
