"""diffGrad: Adam with friction where the gradient hardly changes, as a list of stages.

    xi = sigmoid(|g_previous - g|)
    theta <- theta - lr xi m_hat / (sqrt(v_hat) + eps / sqrt(1 - b2^t))

Dubey et al., TNNLS 2020, arXiv 1909.11015.

>>> diffgrad(1e-3).specs[1].name
'friction'
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.compose import Composed, compose
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    friction,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers.common import Common, finish, split, unpack
from adamw_jax.optimizers.registry import register


def scale_by_diffgrad(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    variant: str = "abs",
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = True,
    bias_correction: str = "exact",
    state_dtype: Any = None,
) -> Composed:
    """DiffGrad's direction: gradient in, direction out. Arguments as for ``diffgrad``."""
    state_dtype = storage_dtype("state_dtype", state_dtype)
    return compose(
        estimate_moments(ema(b1, dtype=state_dtype), ema_of_squares(b2, dtype=state_dtype)),
        friction(variant, dtype=state_dtype),
        amsgrad_max(dtype=state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        rectify_variance() if rectify else None,
        precondition(eps, eps_hat=eps_hat),
    )


@register(
    title="diffGrad",
    equation="theta <- theta - lr xi m_hat / (sqrt(v_hat) + eps / sqrt(1 - b2^t)), "
    "xi = sigmoid(|g_previous - g|)",
    citation="Dubey, Chakraborty, Roy, Mukherjee, Singh & Chaudhuri, diffGrad: An Optimization "
    "Method for Convolutional Neural Networks, TNNLS 2020",
    arxiv="1909.11015",
    direction=scale_by_diffgrad,
    degree=None,
    state_values=3,
    differs="neither optax nor PyTorch has it. The previous gradient is a copy: the authors' first "
    "version kept a reference to the live buffer, which made it Adam at half the learning rate.",
)
def diffgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    variant: str = "abs",
    eps_hat: bool = True,
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: one has a place here
) -> Composed:
    """diffGrad: Adam slowed down where the gradient hardly changes.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      variant: form of the friction, ``"abs"`` (paper), ``"signed"`` or ``"wide"``; see
        ``friction``.
      eps_hat: add eps to the uncorrected root, as the authors' code does; False is the paper's
        form.

    Returns:
      The transformation; its state has three values per parameter, the previous gradient (with L2
      decay, if there is any) among them.
    """
    learning_rate, b1, b2, common = unpack(learning_rate, b1, b2, common)
    direction, rest = split({**common, "eps_hat": eps_hat})
    return finish(
        scale_by_diffgrad(b1, b2, eps, variant=variant, **direction), learning_rate, **rest
    )
