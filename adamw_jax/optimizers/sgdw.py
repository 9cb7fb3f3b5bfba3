"""SGD with momentum and decoupled weight decay, as a list of stages.

    m <- momentum m + g;   theta <- theta - lr (m + weight_decay theta)

Loshchilov & Hutter, arXiv 1711.05101, Algorithm 1.

>>> [spec.name for spec in sgdw(0.1).specs]
['estimate_moments', 'precondition', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.checks import one_of
from adamw_jax.compose import Composed, compose
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.moments import estimate_moments, heavy_ball, no_moment, precondition
from adamw_jax.moments.correction import CONVENTIONS
from adamw_jax.optimizers.common import Common, finish, refuse, split, unpack
from adamw_jax.optimizers.registry import register


def scale_by_sgdw(
    momentum: ScalarOrSchedule | None = 0.9,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    state_dtype: Any = None,
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
) -> Composed:
    """The momentum buffer as direction: gradient in, direction out. Arguments as for ``sgdw``."""
    state_dtype = storage_dtype("state_dtype", state_dtype)
    one_of("bias_correction", bias_correction, CONVENTIONS)  # either: there is nothing to correct
    refuse("sgdw", "has no second moment", amsgrad=amsgrad, rectify=rectify, eps_hat=eps_hat)
    if momentum is None:
        if nesterov or dampening is not None:
            raise ValueError("momentum=None leaves nothing for nesterov or dampening to act on.")
        first = no_moment()
    else:
        first = heavy_ball(momentum, dampening=dampening, nesterov=nesterov, dtype=state_dtype)
    return compose(estimate_moments(first, no_moment()), precondition(None))


@register(
    title="SGDW",
    equation="m <- momentum m + g;  theta <- theta - lr (m + weight_decay theta)",
    citation="Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019, Algorithm 1",
    arxiv="1711.05101",
    direction=scale_by_sgdw,
    state_values=1,
    differs="the learning rate multiplies the buffer, as in the authors' code, PyTorch and optax; "
    'the paper\'s Algorithm 1 puts it inside (schedule_inside=True with decay="schedule"). '
    "PyTorch's weight_decay is our l2. Momentum is 0.9 where optax has None and PyTorch 0; there "
    "is no decay unless weight_decay is given.",
    refuses=("amsgrad", "rectify", "eps_hat", "bias_correction"),
    twin="sgd",
    degree=1,
    twin_options={"momentum": 0.9},
)
def sgdw(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = 0.9,
    *,
    nesterov: bool = False,
    dampening: ScalarOrSchedule | None = None,
    schedule_inside: bool = False,
    **common: Unpack[Common],
) -> Composed:
    """SGD with momentum, and decay that does not enter the momentum.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``).
      momentum: factor on the buffer, in [0, 1]; None for plain gradient descent.
      nesterov: step along ``g + momentum m``.
      dampening: what is withheld of every gradient but the first (PyTorch); None for nothing.
      schedule_inside: multiply the gradient, not the buffer, by the learning rate.

    Returns:
      The transformation; its state has one value per parameter, none without momentum.
    """
    learning_rate, momentum, _, common = unpack(learning_rate, momentum, None, common)
    direction, rest = split(common)
    return finish(
        scale_by_sgdw(momentum, nesterov=nesterov, dampening=dampening, **direction),
        learning_rate,
        schedule_inside=schedule_inside,
        **rest,
    )
