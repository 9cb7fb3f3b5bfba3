"""Training in phases: a list of phases becomes schedules (fastai's ``TrainingPhase``, 2018).

Batch i (from 0) of a phase of N steps uses position i/N of its ramps; N may be fractional, and a
phase ends with the first batch at which the running count reaches the sum of the lengths so far.

>>> plan = phases([
...     Phase(epochs=1, learning_rate=(1e-3, 1e-2), momentum=(0.95, 0.85)),
...     Phase(epochs=2, learning_rate=(1e-2, 1e-4), momentum=(0.85, 0.95), shape="cosine"),
... ], steps_per_epoch=50)
>>> plan.total_steps, round(float(plan.learning_rate(50)), 4)
(150, 0.01)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from adamw_jax.schedules.ramps import Piecewise, Segment

Ramp = float | tuple[float, float] | None
DECAY_FORMS = ("decoupled", "l2")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
      steps: its length in updates, > 0; may be fractional.
      epochs: its length in epochs instead.
      learning_rate: a number, or (start, end) of a ramp.
      momentum: the same for momentum or b1; None where the plan leaves it alone.
      b2: the same for b2; None where the plan leaves it alone.
      weight_decay: decay coefficient of the phase; None where the plan leaves it alone.
      decay_form: ``"decoupled"`` or ``"l2"`` (in the gradient).
      shape: of the learning-rate ramp: "constant", "linear", "cosine", "exponential", "polynomial".
      momentum_shape: of the momentum ramp.
      power: exponent of a polynomial ramp.
    """

    steps: float | None = None
    epochs: float | None = None
    learning_rate: float | tuple[float, float] = 1e-3
    momentum: Ramp = None
    b2: Ramp = None
    weight_decay: float | None = None
    decay_form: str = "decoupled"
    shape: str = "linear"
    momentum_shape: str = "linear"
    power: float = 1.0

    def __post_init__(self) -> None:
        """Checks what can go wrong."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"give a phase either steps or epochs, got {self.steps} and {self.epochs}."
            )
        length = self.epochs if self.steps is None else self.steps
        if not (length is not None and length > 0):
            raise ValueError(f"a phase must last longer than 0, got {length}.")
        if self.decay_form not in DECAY_FORMS:
            raise ValueError(f"decay_form must be one of {DECAY_FORMS}, got {self.decay_form!r}.")
        for name in ("learning_rate", "momentum", "b2", "weight_decay"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and not number >= 0:
                    raise ValueError(f"{name} must be a number >= 0, got {value!r}.")


@dataclasses.dataclass(frozen=True)
class Phases:
    """Schedules of a plan of phases, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      momentum: schedule of momentum or b1, or None.
      b2: schedule of b2, or None.
      weight_decay: schedule of the decoupled coefficient, or None where no phase has one.
      l2: schedule of the coefficient of L2 in the gradient, or None.
      total_steps: updates in all phases.
      max_learning_rate: the largest learning rate of any phase.
    """

    learning_rate: Piecewise
    momentum: Piecewise | None
    b2: Piecewise | None
    weight_decay: Piecewise | None
    l2: Piecewise | None
    total_steps: int
    max_learning_rate: float


def phases(plan: Sequence[Phase], steps_per_epoch: int | None = None) -> Phases:
    """Compiles a list of phases to schedules.

    Args:
      plan: the phases in order.
      steps_per_epoch: updates in an epoch; needed where a phase counts epochs.

    Raises:
      ValueError: no phases; epochs without ``steps_per_epoch``; a hyperparameter that some phases
        set and others leave alone.
    """
    if not plan:
        raise ValueError("plan must hold at least one phase.")
    lengths = [_steps(phase, steps_per_epoch) for phase in plan]
    begins, end = [], 0.0
    for length in lengths:
        begins.append(math.ceil(round(end, 9)))
        end += length

    def schedule(name: str, shape_name: str) -> Piecewise | None:
        values = [getattr(phase, name) for phase in plan]
        if all(value is None for value in values):
            return None
        if any(value is None for value in values):
            raise ValueError(f"{name} is set in some phases and not in others: set it in all.")
        segments = []
        for phase, value, begin, length in zip(plan, values, begins, lengths, strict=True):
            start, stop = value if isinstance(value, tuple) else (value, value)
            shape = getattr(phase, shape_name) if start != stop else "constant"
            segments.append(Segment(begin, length, start, stop, shape, phase.power))
        return Piecewise(tuple(segments))

    rate = schedule("learning_rate", "shape")
    assert rate is not None
    return Phases(
        learning_rate=rate,
        momentum=schedule("momentum", "momentum_shape"),
        b2=schedule("b2", "momentum_shape"),
        weight_decay=_decay(plan, "decoupled", begins, lengths),
        l2=_decay(plan, "l2", begins, lengths),
        total_steps=math.ceil(round(end, 9)),
        max_learning_rate=max(max(s.start, s.end) for s in rate.segments),
    )


def _steps(phase: Phase, steps_per_epoch: int | None) -> float:
    if phase.steps is not None:
        return float(phase.steps)
    if steps_per_epoch is None or not steps_per_epoch > 0:
        raise ValueError(
            f"phases in epochs need steps_per_epoch, a number > 0, got {steps_per_epoch!r}."
        )
    assert phase.epochs is not None
    return float(phase.epochs) * steps_per_epoch


def _decay(plan: Sequence[Phase], form: str, begins: Any, lengths: Any) -> Piecewise | None:
    values = [
        phase.weight_decay if phase.decay_form == form and phase.weight_decay is not None else 0.0
        for phase in plan
    ]
    used = any(phase.decay_form == form and phase.weight_decay is not None for phase in plan)
    if not used:
        return None
    rows = zip(begins, lengths, values, strict=True)
    return Piecewise(tuple(Segment(b, n, value, value, "constant") for b, n, value in rows))
