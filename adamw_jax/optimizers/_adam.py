"""Build Adam, and AdamW, which is Adam with decoupled weight decay.

    m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
    theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)

Kingma & Ba 2014, arXiv 1412.6980; Loshchilov & Hutter, arXiv 1711.05101.

>>> [spec.name for spec in adamw(1e-3).specs][3:]
['decoupled_decay', 'scale_by_learning_rate']
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule, storage_dtype
from adamw_jax._core.masks import Mask
from adamw_jax.direction import cautious as cautious_updates
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
from adamw_jax.optimizers._common import Common, CommonOptions, OwnDecay, finish
from adamw_jax.optimizers._registry import register


@register(
    title="Adam",
    equation="theta <- theta - lr m_hat / (sqrt(v_hat + eps_root) + eps)",
    citation="Kingma & Ba, Adam: A Method for Stochastic Optimization, ICLR 2015",
    arxiv="1412.6980",
    state_values=2,
    differs="moments are float32 at least; optax keeps them in the parameters' dtype. PyTorch's "
    "weight_decay is l2 here.",
    twin="adam",
)
def adam(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    cautious: bool = False,
    **common: Unpack[Common],
) -> Composed:
    """Adam: the bias-corrected first moment divided by the root of the second.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (paper).
      eps_root: added under the root, to smooth it (optax's option); None for nothing.
      mu_dtype: storage dtype of the first moment; None for float32 (float64 under x64).
      nesterov: look one step ahead in the first moment, as ``optax.nadam``; ``nadam`` is PyTorch's.
      cautious: move only elements whose direction has the sign of the gradient (C-Adam).

    Returns:
      The transformation; its state has two values per parameter, three with ``amsgrad``.
    """
    o = CommonOptions(common)
    return finish(
        o,
        learning_rate,
        estimate_moments(
            ema(b1, dtype=storage_dtype("mu_dtype", mu_dtype) or o.state_dtype),
            ema_of_squares(b2, dtype=o.state_dtype),
        ),
        amsgrad_max(dtype=o.state_dtype) if o.amsgrad else None,
        nesterov_ahead() if nesterov else None,
        correct_bias(o.bias_correction),
        rectify_variance() if o.rectify else None,
        precondition(eps, eps_root, eps_hat=o.eps_hat),
        cautious_updates() if cautious else None,
    )


@register(
    title="AdamW",
    equation="theta <- theta - lr (m_hat / (sqrt(v_hat + eps_root) + eps) + weight_decay theta)",
    citation="Loshchilov & Hutter, Decoupled Weight Decay Regularization, ICLR 2019",
    arxiv="1711.05101",
    direction="adam",
    state_values=2,
    differs="weight_decay is 1e-4 as in optax; PyTorch and fastai have 1e-2. As there, it is "
    'multiplied by the learning rate; the paper multiplies by lr_t/lr_0: decay="schedule".',
    twin="adamw",
)
def adamw(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule | None = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    cautious: bool = False,
    decay: str = "learning_rate",
    **common: Unpack[OwnDecay],
) -> Composed:
    """AdamW: Adam with weight decay that does not pass through the moments.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``).
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (paper).
      eps_root: added under the root, to smooth it (optax's option); None for nothing.
      mu_dtype: storage dtype of the first moment; None for float32 (float64 under x64).
      weight_decay: decay coefficient, a number or schedule; 1e-4 (optax). Tune it.
      mask: which leaves decay: tree of bools, function of the parameters, or name pattern.
      nesterov: look one step ahead in the first moment (NAdamW).
      cautious: move only elements whose direction has the sign of the gradient (C-AdamW). Decay
        acts on all.

    Returns:
      The transformation; its state has two values per parameter, three with ``amsgrad``.
    """
    return adam(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nesterov=nesterov,
        cautious=cautious,
        weight_decay=weight_decay,
        mask=mask,
        decay=decay,
        **common,
    )
