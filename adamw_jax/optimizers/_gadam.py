"""Build Gadam and GadamX, Adam and Padam with decoupled decay and averaged parameters.

    theta <- theta - lr direction - lr weight_decay theta;    eval_params: mean of theta after start

Granziol, Wan, Albanie & Roberts, arXiv 2003.01247.

>>> gadam(1e-3, start=100).specs[-1].name
'average_iterates'
"""

from __future__ import annotations

from typing import Any, Unpack

from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.declare import LearningRate, ScalarOrSchedule
from adamw_jax._core.stage import Stage
from adamw_jax.optimizers._adam import adam
from adamw_jax.optimizers._common import Common, Plain
from adamw_jax.optimizers._padam import padam
from adamw_jax.optimizers._registry import register
from adamw_jax.update import average_iterates
from adamw_jax.update._average_iterates import KINDS

_CITATION = (
    "Granziol, Wan, Albanie & Roberts, Iterate Averaging in the Quest for Best Test Error, "
    "JMLR 2024"
)


@register(
    title="Gadam",
    equation="AdamW;  mean <- mean + (theta - mean) / (n + 1) every period steps after start",
    citation=_CITATION,
    arxiv="2003.01247",
    state_values=3,
    direction="adam",
    differs="optax does not have it; torch.optim.swa_utils averages outside the optimizer.",
)
def gadam(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    start: int = 0,
    period: int = 1,
    kind: str = "equal",
    average_decay: ScalarOrSchedule | None = None,
    window: int | None = None,
    average_weight: ScalarOrSchedule | None = None,
    **common: Unpack[Common],
) -> Composed:
    """Gadam: AdamW, evaluated at the average of its parameters over the run.

    Args:
      learning_rate: number, schedule, or an object of several schedules (``one_cycle(...)``). High
        and constant while averaging; the authors use half of the initial rate.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root; 1e-8 (code).
      start: steps before averaging begins; about half of the run (161 of 300 epochs).
      period: steps between collections for the average; once per epoch is often enough.
      kind: ``"equal"`` weights (paper), ``"weighted"``, ``"ema"`` or ``"last"``, as for
        ``average_iterates``.
      average_decay: decay rate of ``"ema"``, in [0, 1); None for 0.999.
      window: number of collections in ``"last"``, each one value per parameter; None for 5.
      average_weight: weights of ``"weighted"``, >= 0, a schedule; None for t after step t.

    Returns:
      The transformation; its state has three values per parameter. ``eval_params(state, params)``
      gives the average; the parameters are those of AdamW. The authors' ``weight_decay`` is 0.25 at
      lr 5e-4.
    """
    return compose(
        adam(learning_rate, b1, b2, eps, **common),
        _average(start, period, kind, average_decay, window, average_weight),
    )


@register(
    title="GadamX",
    equation="Padam;  mean <- mean + (theta - mean) / (n + 1) every period steps after start",
    citation=_CITATION,
    arxiv="2003.01247",
    degree=0.5,
    state_values=4,
    direction="padam",
    lacks="it always adds eps to the uncorrected root",
    differs="neither optax nor PyTorch has it.",
)
def gadamx(
    learning_rate: LearningRate,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    partial: ScalarOrSchedule = 0.25,
    *,
    start: int = 0,
    period: int = 1,
    kind: str = "equal",
    average_decay: ScalarOrSchedule | None = None,
    window: int | None = None,
    average_weight: ScalarOrSchedule | None = None,
    amsgrad: bool = True,
    rectify: bool = False,
    bias_correction: str = "exact",
    **common: Unpack[Plain],
) -> Composed:
    """GadamX: Padam with decoupled decay, evaluated at the average of its parameters.

    Args:
      learning_rate: number, schedule, or an object of several schedules; 0.1 (authors).
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: added to the root, inside the power; 1e-8 (code).
      partial: Padam's p in [0, 0.5]; 1/4 (the class's default; the vision runs have 1/8).
      start: steps before averaging begins; about half of the run.
      period: steps between collections for the average.
      kind: kind of the average. It and the next three are as for ``gadam``.
      average_decay: decay rate of ``"ema"``.
      window: number of collections that ``"last"`` keeps.
      average_weight: weights of ``"weighted"``.
      amsgrad: divide by the largest second moment so far, as the authors do.

    Returns:
      The transformation; its state has four values per parameter, three without ``amsgrad``.
    """
    moments: Any = {"amsgrad": amsgrad, "rectify": rectify, "bias_correction": bias_correction}
    return compose(
        padam(learning_rate, b1, b2, eps, partial, **moments, **common),
        _average(start, period, kind, average_decay, window, average_weight),
    )


def _average(
    start: int, period: int, kind: str, decay: Any, window: int | None, weight: Any
) -> Stage:
    """Make ``average_iterates``, with errors in the argument names of ``gadam``."""
    for name, value, its in (
        ("average_decay", decay, "ema"),
        ("average_weight", weight, "weighted"),
    ):
        if value is not None and kind in KINDS and kind != its:
            raise ValueError(
                f'{name} is for kind="{its}", but kind is "{kind}": leave {name} out, '
                f'got {value!r}, or give kind="{its}".'
            )
    return average_iterates(start, period, kind, decay=decay, window=window, weights=weight)
