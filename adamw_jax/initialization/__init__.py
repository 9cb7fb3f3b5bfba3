"""Initialisations that look at the loss: GradInit."""

from adamw_jax.initialization.driver import GradInitInfo, gradinit
from adamw_jax.initialization.pairs import overlapping_pair
from adamw_jax.initialization.scale_optimizer import ScaleMoments
from adamw_jax.initialization.search import GradInit, GradInitRecord, GradInitState
from adamw_jax.initialization.target import first_step, gradient_norm

__all__ = [
    "GradInit",
    "GradInitInfo",
    "GradInitRecord",
    "GradInitState",
    "ScaleMoments",
    "first_step",
    "gradient_norm",
    "gradinit",
    "overlapping_pair",
]
