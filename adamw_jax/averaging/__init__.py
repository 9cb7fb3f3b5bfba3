"""Averages of weights, and one way to read the weights to evaluate on."""

from adamw_jax.averaging.batch_stats import refresh_batch_stats
from adamw_jax.averaging.evaluation import eval_params
from adamw_jax.averaging.iterates import IterateAverageState, average_iterates
from adamw_jax.averaging.lookahead import LookaheadState, lookahead

__all__ = [
    "IterateAverageState",
    "LookaheadState",
    "average_iterates",
    "eval_params",
    "lookahead",
    "refresh_batch_stats",
]
