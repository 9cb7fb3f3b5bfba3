"""Parameters narrower than float32 that still learn: rounding at random, or kept remainders."""

from adamw_jax.rounding.compensated import CompensatedRoundingState, compensated_rounding
from adamw_jax.rounding.stochastic import StochasticRoundingState, stochastic_rounding

__all__ = [
    "CompensatedRoundingState",
    "StochasticRoundingState",
    "compensated_rounding",
    "stochastic_rounding",
]
