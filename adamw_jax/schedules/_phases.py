"""Turn a list of phases of training into schedules (fastai's ``TrainingPhase``, 2018).

Batch i (from 0) of a phase of N steps uses position i/N of its ramps, so a phase itself does not
reach the end of its ramps. N may be fractional: the next phase begins with the first batch whose
index is at least the sum of the lengths so far.

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

from adamw_jax._core.checks import number, one_of, positive_steps
from adamw_jax.schedules._ramps import SHAPES, Piecewise, Segment
from adamw_jax.schedules._view import Viewed

Ramp = float | tuple[float, float]
DECAY_FORMS = ("decoupled", "l2")


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of training.

    Attributes:
      steps: its length in updates, > 0; may be fractional.
      epochs: its length in epochs, instead of ``steps``.
      learning_rate: a number, or (start, end) of a ramp.
      momentum: the same for momentum or b1; None in all phases for no schedule of it.
      b2: the same for b2.
      weight_decay: decay coefficient of the phase; None in all phases for no schedule of it.
      decay_form: ``"decoupled"`` or ``"l2"`` (in the gradient). If all phases have ``"l2"``, use an
        optimizer that does not decay by default, such as ``adam``.
      shape: shape of the learning-rate ramp: "constant", "linear", "cosine", "exponential",
        "polynomial" or "1-sqrt".
      momentum_shape: shape of the momentum ramp.
      b2_shape: shape of the b2 ramp.
      power: exponent of the polynomial ramps, > 0.

    Example:
      >>> import adamw_jax as aj
      >>> warm_up = aj.Phase(epochs=1, learning_rate=(0.0, 1e-2))
      >>> fall = aj.Phase(epochs=9, learning_rate=(1e-2, 1e-4), shape="cosine")
      >>> tx = aj.adamw(aj.phases([warm_up, fall], steps_per_epoch=50))
    """

    steps: float | None = None
    epochs: float | None = None
    learning_rate: Ramp = 1e-3
    momentum: Ramp | None = None
    b2: Ramp | None = None
    weight_decay: float | None = None
    decay_form: str = "decoupled"
    shape: str = "linear"
    momentum_shape: str = "linear"
    b2_shape: str = "linear"
    power: float = 1.0

    def __post_init__(self) -> None:
        """Check the attributes."""
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                "a phase needs either steps or epochs, got "
                f"steps={self.steps!r} and epochs={self.epochs!r}: give one of them."
            )
        for name in ("steps", "epochs"):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), above=0)
        one_of("decay_form", self.decay_form, DECAY_FORMS)
        number("power", self.power, above=0)
        self._check_ramp("learning_rate", "shape", math.inf)
        for name in ("momentum", "b2"):
            self._check_ramp(name, f"{name}_shape", 1.0)
        if self.weight_decay is not None:
            number("weight_decay", self.weight_decay, least=0)

    def _check_ramp(self, name: str, shape_name: str, below: float) -> None:
        value, shape = getattr(self, name), getattr(self, shape_name)
        one_of(shape_name, shape, SHAPES)
        if isinstance(value, (tuple, list)):
            if len(value) != 2:
                raise ValueError(f"{name} must be a number or (start, end), got {value!r}.")
            for part in value:
                number(name, part, least=0, below=below)
        else:
            if value is not None:
                number(name, value, least=0, below=below)
            if shape not in ("constant", "linear"):
                raise ValueError(
                    f"{shape_name}={shape!r} needs both ends: {name} must be (start, end), for "
                    f"example ({value}, 0.0), got {value!r}."
                )


@dataclasses.dataclass(frozen=True)
class Phases(Viewed):
    """Schedules of a plan of phases, to pass as the ``learning_rate`` of an optimizer.

    Attributes:
      learning_rate: schedule of the learning rate.
      momentum: schedule of momentum or b1, or None.
      b2: schedule of b2, or None.
      weight_decay: schedule of the decoupled decay coefficient, or None.
      l2: schedule of the coefficient of L2 in the gradient, or None.
      total_steps: updates in all phases.
      max_learning_rate: the largest learning rate of any phase.

    Example:
      >>> import adamw_jax as aj
      >>> warm_up = aj.Phase(100, learning_rate=(0.0, 1e-2))
      >>> plan = aj.phases([warm_up, aj.Phase(900, learning_rate=1e-2)])
      >>> plan.total_steps, plan.max_learning_rate
      (1000, 0.01)
    """

    learning_rate: Piecewise
    momentum: Piecewise | None
    b2: Piecewise | None
    weight_decay: Piecewise | None
    l2: Piecewise | None
    total_steps: int
    max_learning_rate: float


def phases(plan: Sequence[Phase], steps_per_epoch: int | None = None) -> Phases:
    """Turn a list of phases into schedules.

    Args:
      plan: the phases in order.
      steps_per_epoch: updates in an epoch, >= 1; needed if a phase counts epochs.

    Returns:
      Schedules of the count of updates, from 0, which keep their last value after the last phase.

    Raises:
      ValueError: ``plan`` is empty, or only some of its phases set a hyperparameter.

    Example:
      >>> import adamw_jax as aj
      >>> warm_up = aj.Phase(100, learning_rate=(0.0, 1e-2))
      >>> plan = aj.phases([warm_up, aj.Phase(900, learning_rate=1e-2)])
      >>> tx = aj.adamw(plan)
    """
    plan = list(plan)
    if not plan:
        raise ValueError("plan must have at least one Phase, got an empty list.")
    for phase in plan:
        if not isinstance(phase, Phase):
            raise TypeError(f"plan must be a list of Phase, got {phase!r} in it.")
    spans, end = [], 0.0
    for phase in plan:
        length = _steps(phase, steps_per_epoch)
        spans.append((_first_at(end), length))
        end += length

    def schedule(name: str) -> Piecewise | None:
        values = [getattr(phase, name) for phase in plan]
        if not _set_in_all(name, values):
            return None
        segments = []
        shape_name = "shape" if name == "learning_rate" else f"{name}_shape"
        for phase, value, (begin, length) in zip(plan, values, spans, strict=True):
            start, stop = value if isinstance(value, (tuple, list)) else (value, value)
            shape = getattr(phase, shape_name) if start != stop else "constant"
            segments.append(Segment(begin, length, start, stop, shape, phase.power))
        return Piecewise(tuple(segments))

    def decay(form: str) -> Piecewise | None:
        values = [phase.weight_decay for phase in plan]
        forms = {phase.decay_form for phase, value in zip(plan, values, strict=True) if value}
        # If all are 0, return a decoupled decay of 0, which replaces the optimizer's default.
        if not _set_in_all("weight_decay", values) or form not in (forms or {"decoupled"}):
            return None
        return Piecewise(
            tuple(
                Segment(begin, length, value, value, "constant")
                for phase, (begin, length) in zip(plan, spans, strict=True)
                for value in [phase.weight_decay if phase.decay_form == form else 0.0]
                if value is not None
            )
        )

    rate = schedule("learning_rate")
    assert rate is not None
    return Phases(
        learning_rate=rate,
        momentum=schedule("momentum"),
        b2=schedule("b2"),
        weight_decay=decay("decoupled"),
        l2=decay("l2"),
        total_steps=_first_at(end),
        max_learning_rate=max(max(segment.start, segment.end) for segment in rate.segments),
    )


def _steps(phase: Phase, steps_per_epoch: int | None) -> float:
    if phase.steps is not None:
        return float(phase.steps)
    if steps_per_epoch is None:
        raise ValueError(f"a phase of epochs={phase.epochs} needs steps_per_epoch, got None.")
    assert phase.epochs is not None
    return float(phase.epochs) * positive_steps("steps_per_epoch", steps_per_epoch)


def _first_at(end: float) -> int:
    """Return the first whole step at or after ``end``, which may have rounding errors."""
    return math.ceil(round(end, 9))


def _set_in_all(name: str, values: list) -> bool:
    """Return whether the phases set a hyperparameter; raise an error if only some do."""
    missing = [value is None for value in values]
    if any(missing) and not all(missing):
        raise ValueError(
            f"{name} is set in some phases and not in others, got {values}: set it in all."
        )
    return not all(missing)
