"""Build RAdam, Adam with a rectified variance of its early steps.

    theta <- theta - lr r_t m_hat / (sqrt(v_hat) + eps)        (r_t as for ``rectify_variance``)

Liu et al., ICLR 2020, arXiv 1908.03265.

>>> [spec.name for spec in radam(1e-3).specs][2]
'rectify_variance'
"""

from __future__ import annotations

from typing import Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax.moments import (
    amsgrad_max,
    correct_bias,
    ema,
    ema_of_squares,
    estimate_moments,
    nesterov as nesterov_ahead,
    precondition,
    rectify_variance,
)
from adamw_jax.optimizers._common import CommonOptions, Plain, finish
from adamw_jax.optimizers._registry import register


@register(
    title="RAdam",
    equation="theta <- theta - lr r_t m_hat / (sqrt(v_hat) + eps) if rho_t >= threshold, "
    "else no step",
    citation="Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020",
    arxiv="1908.03265",
    state_values=2,
    differs="the first five steps and their decay are skipped, as in the authors' code since 2021; "
    'the paper, PyTorch and optax make unscaled momentum steps there (below="momentum"). A skipped '
    "step is exactly 0, which looks like convergence to a solver that stops on small updates. In "
    "float32 the rectifier is exact; optax's is off by up to 110 %.",
    twin="radam",
    lacks="it always rectifies the variance; adam() does not",
    twin_options={"below": "momentum"},
)
def radam(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    threshold: ScalarOrSchedule = 5.0,
    *,
    nesterov: bool = False,
    below: str = "skip",
    amsgrad: bool = False,
    eps_hat: bool = False,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """RAdam: Adam with shorter early steps, while the second moment is uncertain.

    Args:
      learning_rate: number, schedule, or an object of several schedules.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1). Up to 0.6 every step is as ``below`` says.
      eps: added to the root; 1e-8. The authors and PyTorch use ``eps_hat``.
      eps_root: added under the root; None for nothing.
      threshold: least length rho_t of the average; 5 (authors' code), 4 (paper).
      nesterov: look one step ahead in the first moment.
      below: the step below the threshold: ``"skip"`` makes no step and no decay (authors' code
        since 2021), ``"decay"`` only decays, ``"momentum"`` steps along the unscaled momentum
        (paper, PyTorch, optax). A skipped step is exactly 0, so a solver that stops on small
        updates (optimistix) returns its start: use ``"momentum"`` there.

    Returns:
      The transformation; its state has two values per parameter.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(ema(b1, dtype=o.state_dtype), ema_of_squares(b2, dtype=o.state_dtype)),
        amsgrad_max(dtype=o.state_dtype) if amsgrad else None,
        nesterov_ahead() if nesterov else None,
        correct_bias(bias_correction),
        rectify_variance(threshold, below=below),
        precondition(eps, eps_root, eps_hat=eps_hat),
    )
