"""Build AMSGrad, in the four forms that are in use.

    v_max = max(v_max, v);   theta <- theta - lr m_hat / (sqrt(v_max / (1 - b2^t)) + eps)

Reddi, Kale & Kumar, ICLR 2018, arXiv 1904.09237.

>>> amsgrad(1e-3).specs[1].name
'amsgrad_max'
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.checks import one_of
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, storage_dtype
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register

MAXIMA = ("raw", "corrected")


@register(
    title="AMSGrad",
    equation="v_max <- max(v_max, v);  "
    "theta <- theta - lr m_hat / (sqrt(v_max / (1 - b2^t)) + eps)",
    citation="Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, ICLR 2018",
    arxiv="1904.09237",
    state_values=3,
    differs="the default is PyTorch's form, the maximum of the uncorrected second moment. optax "
    'uses the maximum of the corrected one (maximum="corrected"), which keeps early noise. The '
    "paper corrects nothing (bias_correction_mu=False, bias_correction_nu=False); Keras and "
    "fairseq have PyTorch's form with eps_hat=True.",
    twin="amsgrad",
    lacks="it always divides by the maximum; adam() does not",
    twin_options={"maximum": "corrected"},
)
def amsgrad(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum: str = "raw",
    rectify: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """AMSGrad: Adam divided by the root of the largest second moment so far.

    Args:
      learning_rate: number, schedule, or an object of several schedules.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8.
      eps_root: added under the root; None for nothing.
      mu_dtype: storage dtype of the first moment; None for float32 (float64 under x64).
      bias_correction_mu: correct the first moment.
      bias_correction_nu: correct the second moment.
      maximum: ``"raw"`` takes the maximum before the correction, ``"corrected"`` after it.

    Returns:
      The transformation; its state has three values per parameter.
    """
    one_of("maximum", maximum, MAXIMA)
    o = CommonOptions(common)
    largest = amsgrad_max(maximum == "corrected" and bias_correction_nu, dtype=o.state_dtype)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            ema(b1, dtype=storage_dtype("mu_dtype", mu_dtype) or o.state_dtype),
            ema_of_squares(b2, dtype=o.state_dtype),
        ),
        largest if maximum == "raw" else None,
        correct_bias(bias_correction, first=bias_correction_mu, second=bias_correction_nu),
        largest if maximum == "corrected" else None,
        rectify_variance() if rectify else None,
        precondition(eps, eps_root, eps_hat=eps_hat),
    )
