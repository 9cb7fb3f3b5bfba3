"""Initialisation by the loss: GradInit."""

from adamw_jax.initialization._gradinit import GradInitInfo, gradinit
from adamw_jax.initialization._pairs import overlapping_pair
from adamw_jax.initialization._scale_optimizer import ScaleMoments
from adamw_jax.initialization._search import GradInit, GradInitRecord, GradInitState
from adamw_jax.initialization._target import first_step, gradient_norm

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
