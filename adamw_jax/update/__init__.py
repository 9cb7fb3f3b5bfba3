"""Stages that make or change the update: learning rate, averages of weights, rounding."""

from adamw_jax.update._accumulate import AccumulateState, accumulate
from adamw_jax.update._average_iterates import IterateAverageState, average_iterates
from adamw_jax.update._average_updates import AverageUpdatesState, average_updates
from adamw_jax.update._batch_stats import refresh_batch_stats
from adamw_jax.update._compensated_rounding import CompensatedRoundingState, compensated_rounding
from adamw_jax.update._dynamic_loss_scale import (
    DynamicLossScaleState,
    dynamic_loss_scale,
    loss_scale,
    scaled_value_and_grad,
)
from adamw_jax.update._eval_params import eval_params
from adamw_jax.update._learning_rate import scale_by_learning_rate
from adamw_jax.update._lookahead import LookaheadState, lookahead
from adamw_jax.update._relative_step import scale_by_relative_step
from adamw_jax.update._restart_averages import restart_averages
from adamw_jax.update._schedule_free import ScheduleFreeState, schedule_free
from adamw_jax.update._skip_bad_steps import SkipBadStepsState, read_skips, skip_bad_steps
from adamw_jax.update._stochastic_rounding import StochasticRoundingState, stochastic_rounding

__all__ = [
    "AccumulateState",
    "AverageUpdatesState",
    "CompensatedRoundingState",
    "DynamicLossScaleState",
    "IterateAverageState",
    "LookaheadState",
    "ScheduleFreeState",
    "SkipBadStepsState",
    "StochasticRoundingState",
    "accumulate",
    "average_iterates",
    "average_updates",
    "compensated_rounding",
    "dynamic_loss_scale",
    "eval_params",
    "lookahead",
    "loss_scale",
    "read_skips",
    "refresh_batch_stats",
    "restart_averages",
    "scale_by_learning_rate",
    "scale_by_relative_step",
    "scaled_value_and_grad",
    "schedule_free",
    "skip_bad_steps",
    "stochastic_rounding",
]
