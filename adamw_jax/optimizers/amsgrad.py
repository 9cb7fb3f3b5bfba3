"""AMSGrad, in the four forms that are in use, as lists of stages.

    v_max = max(v_max, v);   theta <- theta - lr m_hat / (sqrt(v_max / (1 - b2^t)) + eps)

Reddi, Kale & Kumar, ICLR 2018, arXiv 1904.09237.

>>> amsgrad(1e-3).specs[1].name
'amsgrad_max'
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax.checks import one_of
from adamw_jax.compose import Composed, compose
from adamw_jax.hyperparameters import ScalarOrSchedule, storage_dtype
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers.common import Common, finish, split, unpack
from adamw_jax.optimizers.registry import register

MAXIMA = ("raw", "corrected")


def scale_by_amsgrad(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum: str = "raw",
    amsgrad: bool = True,
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    state_dtype: Any = None,
) -> Composed:
    """AMSGrad's direction: gradient in, direction out. Arguments as for ``amsgrad``."""
    state_dtype = storage_dtype("state_dtype", state_dtype)
    one_of("maximum", maximum, MAXIMA)
    if not amsgrad:
        raise ValueError("amsgrad=False makes it Adam: use adam(...).")
    largest = amsgrad_max(maximum == "corrected" and bias_correction_nu, dtype=state_dtype)
    return compose(
        estimate_moments(
            ema(b1, dtype=storage_dtype("mu_dtype", mu_dtype) or state_dtype),
            ema_of_squares(b2, dtype=state_dtype),
        ),
        largest if maximum == "raw" else None,
        correct_bias(bias_correction, first=bias_correction_mu, second=bias_correction_nu),
        largest if maximum == "corrected" else None,
        rectify_variance() if rectify else None,
        precondition(eps, eps_root, eps_hat=eps_hat),
    )


@register(
    title="AMSGrad",
    equation="v_max <- max(v_max, v);  "
    "theta <- theta - lr m_hat / (sqrt(v_max / (1 - b2^t)) + eps)",
    citation="Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, ICLR 2018",
    arxiv="1904.09237",
    direction=scale_by_amsgrad,
    state_values=3,
    differs="the default is PyTorch's form, the maximum of the raw second moment. optax takes the "
    'maximum of the corrected one (maximum="corrected"), which locks in early noise. The paper '
    "corrects nothing (bias_correction_mu=False, bias_correction_nu=False); Keras and fairseq are "
    "PyTorch's form with eps_hat=True.",
    twin="amsgrad",
    twin_options={"maximum": "corrected"},
)
def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum: str = "raw",
    amsgrad: bool = True,
    **common: Unpack[Common],  # pyright: ignore[reportGeneralTypeIssues]: one has a place here
) -> Composed:
    """AMSGrad: Adam divided by the root of the largest second moment so far.

    Args:
      learning_rate: number, schedule, or an object that carries several.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8.
      eps_root: added under the root; None for nothing.
      mu_dtype: storage dtype of the first moment; None for float32 (float64 under x64).
      bias_correction_mu: correct the first moment.
      bias_correction_nu: correct the second moment.
      amsgrad: must be True; ``adam`` is the optimizer without the maximum.
      maximum: ``"raw"`` takes the maximum before the correction, ``"corrected"`` after it.

    Returns:
      The transformation; its state has three values per parameter.
    """
    learning_rate, b1, b2, common = unpack(learning_rate, b1, b2, common)
    direction, rest = split(common)
    return finish(
        scale_by_amsgrad(
            b1,
            b2,
            eps,
            eps_root,
            mu_dtype,
            bias_correction_mu,
            bias_correction_nu,
            maximum=maximum,
            amsgrad=amsgrad,
            **direction,
        ),
        learning_rate,
        **rest,
    )
