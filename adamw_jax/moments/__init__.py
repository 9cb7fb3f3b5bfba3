"""Parts and stages that turn gradients into moments and moments into a direction."""

from adamw_jax._core.record import Clock, Moments, Reading
from adamw_jax.moments._amsgrad_max import CorrectedMaximumState, MaximumState, amsgrad_max
from adamw_jax.moments._average_directions import AverageDirectionsState, average_directions
from adamw_jax.moments._averages import (
    CenteredSquaresState,
    FlooredSquaresState,
    SquaresState,
    ema,
    ema_of_centered_squares,
    ema_of_squared_momentum,
    ema_of_squares,
)
from adamw_jax.moments._correct_bias import correct_bias
from adamw_jax.moments._delay_second import delay_second
from adamw_jax.moments._estimate_moments import MomentsState, estimate_moments, restart_moments
from adamw_jax.moments._factored_squares import factored_squares
from adamw_jax.moments._friction import FrictionState, friction
from adamw_jax.moments._gradient_differences import DifferencesState, gradient_differences
from adamw_jax.moments._heavy_ball import HeavyBallState, heavy_ball
from adamw_jax.moments._infinity_norm import InfinityNormState, infinity_norm
from adamw_jax.moments._loss_filter import LossFilterState, loss_filter
from adamw_jax.moments._momentum_filter import MomentumFilterState, momentum_filter
from adamw_jax.moments._nesterov import NesterovState, nesterov
from adamw_jax.moments._norm_estimate import NormEstimateState, scale_by_norm_estimate
from adamw_jax.moments._parts import AverageState, Part, no_moment
from adamw_jax.moments._positive_negative import PositiveNegativeState, positive_negative
from adamw_jax.moments._precondition import precondition
from adamw_jax.moments._precondition_partially import precondition_partially
from adamw_jax.moments._rectify_variance import rectify_variance
from adamw_jax.moments._sign_momentum import SignMomentumState, sign_momentum
from adamw_jax.moments._two_averages import TwoAveragesState, two_averages

__all__ = [
    "AverageDirectionsState",
    "AverageState",
    "CenteredSquaresState",
    "Clock",
    "CorrectedMaximumState",
    "DifferencesState",
    "FlooredSquaresState",
    "FrictionState",
    "HeavyBallState",
    "InfinityNormState",
    "LossFilterState",
    "MaximumState",
    "Moments",
    "MomentsState",
    "MomentumFilterState",
    "NesterovState",
    "NormEstimateState",
    "Part",
    "PositiveNegativeState",
    "Reading",
    "SignMomentumState",
    "SquaresState",
    "TwoAveragesState",
    "amsgrad_max",
    "average_directions",
    "correct_bias",
    "delay_second",
    "ema",
    "ema_of_centered_squares",
    "ema_of_squared_momentum",
    "ema_of_squares",
    "estimate_moments",
    "factored_squares",
    "friction",
    "gradient_differences",
    "heavy_ball",
    "infinity_norm",
    "loss_filter",
    "momentum_filter",
    "nesterov",
    "no_moment",
    "positive_negative",
    "precondition",
    "precondition_partially",
    "rectify_variance",
    "restart_moments",
    "sign_momentum",
    "scale_by_norm_estimate",
    "two_averages",
]
