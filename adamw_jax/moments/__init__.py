"""The pipe: gradients to moments to a direction, one stage per file."""

from adamw_jax.moments.amsgrad import MaximumState, amsgrad_max
from adamw_jax.moments.averages import ema, ema_of_centered_squares, ema_of_squares
from adamw_jax.moments.correction import correct_bias
from adamw_jax.moments.estimate import MomentsState, estimate_moments
from adamw_jax.moments.heavy_ball import HeavyBallState, heavy_ball
from adamw_jax.moments.infinity import InfinityNormState, infinity_norm
from adamw_jax.moments.nesterov import nesterov
from adamw_jax.moments.parts import AverageState, Part, no_moment
from adamw_jax.moments.precondition import precondition
from adamw_jax.moments.record import Clock, Moments, Reading
from adamw_jax.moments.rectification import rectify_variance

__all__ = [
    "AverageState",
    "Clock",
    "HeavyBallState",
    "InfinityNormState",
    "MaximumState",
    "Moments",
    "MomentsState",
    "Part",
    "Reading",
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
    "precondition",
    "rectify_variance",
]
