"""The interface for stages of your own; see the page "A stage of your own"."""

from adamw_jax._core.declare import (
    Domain,
    Hyperparameter,
    ScalarOrSchedule,
    at_least_one,
    bound,
    decay_rate,
    declare,
    exponent,
    fraction,
    length,
    nonnegative,
    positive,
    real,
    storage_dtype,
    up_to_half,
)
from adamw_jax._core.numerics import abs_square, scaled, widen
from adamw_jax._core.record import Clock, Moments, Reading
from adamw_jax._core.stage import Facts, Kind, Slopes, Stage, Step, stage, tail
from adamw_jax.moments._parts import Part, average, zeros

__all__ = [
    "Clock",
    "Domain",
    "Facts",
    "Hyperparameter",
    "Kind",
    "Moments",
    "Part",
    "Reading",
    "ScalarOrSchedule",
    "Slopes",
    "Stage",
    "Step",
    "abs_square",
    "at_least_one",
    "average",
    "bound",
    "decay_rate",
    "declare",
    "exponent",
    "fraction",
    "length",
    "nonnegative",
    "positive",
    "real",
    "scaled",
    "stage",
    "storage_dtype",
    "tail",
    "up_to_half",
    "widen",
    "zeros",
]
