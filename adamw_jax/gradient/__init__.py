"""Stages that change the gradient before the moments: clipping, normalization, L2."""

from adamw_jax.direction._decay import l2_decay
from adamw_jax.gradient._clipping import clip_elements, clip_gradient, clip_step, normalize
from adamw_jax.gradient._percentile_clipping import PercentileClippingState, percentile_clipping
from adamw_jax.gradient._variance_reduction import VarianceReductionState, variance_reduction

__all__ = [
    "PercentileClippingState",
    "VarianceReductionState",
    "clip_elements",
    "clip_gradient",
    "clip_step",
    "l2_decay",
    "normalize",
    "percentile_clipping",
    "variance_reduction",
]
