"""The size of a step: clipping, norms, Adafactor's relative step and parameter scale."""

from adamw_jax.scaling.clipping import clip_gradient, clip_step, normalize
from adamw_jax.scaling.norm_estimate import NormEstimateState, scale_by_norm_estimate
from adamw_jax.scaling.parameter_scale import scale_by_parameter_rms
from adamw_jax.scaling.percentile_clipping import PercentileClippingState, percentile_clipping
from adamw_jax.scaling.relative_step import scale_by_relative_step
from adamw_jax.scaling.update_clipping import clip_by_rms
from adamw_jax.scaling.update_momentum import AverageUpdatesState, average_updates

__all__ = [
    "AverageUpdatesState",
    "NormEstimateState",
    "PercentileClippingState",
    "average_updates",
    "clip_by_rms",
    "clip_gradient",
    "clip_step",
    "normalize",
    "percentile_clipping",
    "scale_by_norm_estimate",
    "scale_by_parameter_rms",
    "scale_by_relative_step",
]
