"""PNM and AdaPNM: positive-negative momentum, alone and over the root of a second moment.

    m_t = b1^2 m_{t-2} + (1 - b1^2) g;   u = ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2)
    PNM:     theta <- theta - lr u
    AdaPNM:  theta <- theta - lr u / (1 - b1^t) / (sqrt(v_max / (1 - b2^t)) + eps)

Xie et al., ICML 2021, arXiv 2103.17182.

>>> pnm(0.1).specs[0].name
'estimate_moments'
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.checks import one_of
from adamw_jax.compose import Composed, compose
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema_of_squares,
    estimate_moments,
    no_moment,
    positive_negative,
    precondition,
    rectify_variance,
)
from adamw_jax.moments.correction import CONVENTIONS
from adamw_jax.optimizers.common import Common, finish, refuse, split, unpack
from adamw_jax.optimizers.registry import register

_CITATION = (
    "Xie, Yuan, Zhu & Sugiyama, Positive-Negative Momentum: Manipulating Stochastic Gradient Noise "
    "to Improve Generalization, ICML 2021"
)


def scale_by_pnm(
    b1: ScalarOrSchedule = 0.9,
    b0: ScalarOrSchedule = 1.0,
    *,
    amsgrad: bool = False,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    state_dtype: Any = None,
) -> Composed:
    """Positive-negative momentum as direction. Arguments as for ``pnm``; it can be jitted alone."""
    one_of("bias_correction", bias_correction, CONVENTIONS)  # either: the authors correct nothing
    refuse("pnm", "has no second moment", amsgrad=amsgrad, rectify=rectify, eps_hat=eps_hat)
    part = positive_negative(b1, b0, dtype=storage_dtype("state_dtype", state_dtype))
    return compose(estimate_moments(part, no_moment()), precondition(None))


def scale_by_adapnm(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b0: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-8,
    *,
    amsgrad: bool = True,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    state_dtype: Any = None,
) -> Composed:
    """AdaPNM's direction. Arguments as for ``adapnm``; it can be jitted alone."""
    state_dtype = storage_dtype("state_dtype", state_dtype)
    return compose(
        estimate_moments(
            positive_negative(b1, b0, dtype=state_dtype), ema_of_squares(b2, dtype=state_dtype)
        ),
        amsgrad_max(dtype=state_dtype) if amsgrad else None,
        correct_bias(bias_correction),
        rectify_variance() if rectify else None,
        precondition(eps, eps_hat=eps_hat),
    )


@register(
    title="PNM",
    equation="theta <- theta - lr ((1 + b0) m_t - b0 m_{t-1}) / sqrt((1 + b0)^2 + b0^2)",
    citation=_CITATION,
    arxiv="2103.17182",
    direction=scale_by_pnm,
    degree=1,
    state_values=2,
    differs="neither optax nor PyTorch has it.",
    refuses=("amsgrad", "rectify", "eps_hat", "bias_correction"),
)
def pnm(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b0: ScalarOrSchedule = 1.0,
    **common: Unpack[Common],
) -> Composed:
    """PNM: momentum that magnifies the gradient noise by a chosen factor.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``). On a
        quadratic of curvature L it is stable below 2 sqrt((1 + b0)^2 + b0^2) / (1 + 2 b0) / L.
      b1: decay rate of the momenta, in [0, 1).
      b0: weight of the negative momentum; 1 (code). 0 leaves two interleaved momenta.

    Returns:
      The transformation; its state has two values per parameter. First steps are small, since no
      bias is corrected.
    """
    learning_rate, b1, _, common = unpack(learning_rate, b1, None, common)
    direction, rest = split(common)
    return finish(scale_by_pnm(b1, b0, **direction), learning_rate, **rest)


@register(
    title="AdaPNM",
    equation="theta <- theta - lr u / (1 - b1^t) / (sqrt(v_max / (1 - b2^t)) + eps), u as in PNM",
    citation=_CITATION,
    arxiv="2103.17182",
    direction=scale_by_adapnm,
    state_values=4,
    differs="AMSGrad is on, as in the authors' code. Neither optax nor PyTorch has it.",
)
def adapnm(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b0: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-8,
    *,
    amsgrad: bool = True,
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: one has a place here
) -> Composed:
    """AdaPNM: positive-negative momentum over the root of the second moment.

    Args:
      learning_rate: number, schedule, or an object that carries several (``one_cycle(...)``).
      b1: decay rate of the momenta, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      b0: weight of the negative momentum; 1 (code).
      eps: added to the root; 1e-8 (code).
      amsgrad: divide by the largest second moment so far, as the authors do.

    Returns:
      The transformation; its state has four values per parameter, three without ``amsgrad``.
    """
    learning_rate, b1, b2, common = unpack(learning_rate, b1, b2, common)
    direction, rest = split({**common, "amsgrad": amsgrad})
    return finish(scale_by_adapnm(b1, b2, b0, eps, **direction), learning_rate, **rest)
