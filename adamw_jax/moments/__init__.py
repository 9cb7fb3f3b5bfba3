"""The pipe: gradients to moments to a direction, one stage per file."""

from adamw_jax.moments.amsgrad import CorrectedMaximumState, MaximumState, amsgrad_max
from adamw_jax.moments.averages import (
    CenteredSquaresState,
    SquaresState,
    ema,
    ema_of_centered_squares,
    ema_of_squared_momentum,
    ema_of_squares,
)
from adamw_jax.moments.correction import correct_bias
from adamw_jax.moments.delayed import delay_second
from adamw_jax.moments.differences import DifferencesState, gradient_differences
from adamw_jax.moments.estimate import MomentsState, estimate_moments, restart_moments
from adamw_jax.moments.factored import factored_squares
from adamw_jax.moments.friction import FrictionState, friction
from adamw_jax.moments.heavy_ball import HeavyBallState, heavy_ball
from adamw_jax.moments.infinity import InfinityNormState, infinity_norm
from adamw_jax.moments.nesterov import nesterov
from adamw_jax.moments.partial import precondition_partially
from adamw_jax.moments.parts import AverageState, Part, no_moment
from adamw_jax.moments.positive_negative import PositiveNegativeState, positive_negative
from adamw_jax.moments.precondition import precondition
from adamw_jax.moments.record import Clock, Moments, Reading
from adamw_jax.moments.rectification import rectify_variance

__all__ = [
    "AverageState",
    "CenteredSquaresState",
    "Clock",
    "HeavyBallState",
    "InfinityNormState",
    "CorrectedMaximumState",
    "MaximumState",
    "Moments",
    "MomentsState",
    "Part",
    "Reading",
    "SquaresState",
    "amsgrad_max",
    "correct_bias",
    "ema",
    "ema_of_centered_squares",
    "ema_of_squares",
    "estimate_moments",
    "heavy_ball",
    "infinity_norm",
    "nesterov",
    "no_moment",
    "restart_moments",
    "ema_of_squared_momentum",
    "precondition_partially",
    "factored_squares",
    "friction",
    "FrictionState",
    "delay_second",
    "positive_negative",
    "PositiveNegativeState",
    "gradient_differences",
    "DifferencesState",
    "precondition",
    "rectify_variance",
]
