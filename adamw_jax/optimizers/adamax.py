"""AdaMax: Adam with the infinity norm in place of the second moment, as a list of stages.

    u = max(b2 u, |g| + eps);   theta <- theta - lr m_hat / u

Kingma & Ba 2014, arXiv 1412.6980, Algorithm 2.

>>> adamax(1e-3).specs[-1].name
'scale_by_learning_rate'
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.compose import Composed, compose
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    estimate_moments,
    infinity_norm,
    precondition,
)
from adamw_jax.optimizers.common import Common, finish, split, unpack
from adamw_jax.optimizers.registry import register


def scale_by_adamax(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_inside_max: bool = True,
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    state_dtype: Any = None,
) -> Composed:
    """AdaMax's direction ``m_hat / u``: gradient in, direction out. Arguments as for ``adamax``."""
    state_dtype = storage_dtype("state_dtype", state_dtype)
    if rectify or eps_hat:
        raise ValueError(
            "adamax has no variance to rectify and no corrected root: rectify and eps_hat must be "
            f"False, got rectify={rectify}, eps_hat={eps_hat}."
        )
    inside, outside = (eps, None) if eps_inside_max else (0.0, eps)
    return compose(
        estimate_moments(ema(b1, dtype=state_dtype), infinity_norm(b2, inside, dtype=state_dtype)),
        amsgrad_max(dtype=state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        precondition(outside),
    )


@register(
    title="AdaMax",
    equation="u <- max(b2 u, |g| + eps);  theta <- theta - lr m_hat / u",
    citation="Kingma & Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, Algorithm 2",
    arxiv="1412.6980",
    direction=scale_by_adamax,
    state_values=2,
    differs="the paper has no eps; with 0 an element that never had a gradient stays still here. "
    "Keras and fairseq add eps outside the maximum (eps_inside_max=False). weight_decay makes it "
    "optax's adamaxw.",
    refuses=("rectify", "eps_hat"),
    twin="adamax",
)
def adamax(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    eps_inside_max: bool = True,
    **common: Unpack[Common],
) -> Composed:
    """AdaMax: Adam divided by the decaying maximum of |g|.

    Args:
      learning_rate: number, schedule, or an object that carries several; the paper takes 2e-3.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the infinity norm, in [0, 1).
      eps: added to |g| inside the maximum.
      eps_inside_max: False adds eps to the maximum instead.

    Returns:
      The transformation; its state has two values per parameter.
    """
    learning_rate, b1, b2, common = unpack(learning_rate, b1, b2, common)
    direction, rest = split(common)
    return finish(
        scale_by_adamax(b1, b2, eps, eps_inside_max=eps_inside_max, **direction),
        learning_rate,
        **rest,
    )
