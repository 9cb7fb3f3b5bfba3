"""Averages of weights: Lookahead, and one way to read the weights to evaluate on."""

from adamw_jax.averaging.evaluation import eval_params
from adamw_jax.averaging.lookahead import LookaheadState, lookahead

__all__ = ["LookaheadState", "eval_params", "lookahead"]
