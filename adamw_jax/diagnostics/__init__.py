"""Measurements during training: probes, noise scales, stationarity, learning rates."""

from adamw_jax.diagnostics._batch_hessian import batch_hessian_extreme, minimal_damping
from adamw_jax.diagnostics._gradient_norms import layer_gradient_norms
from adamw_jax.diagnostics._hessian_noise import HessianNoise, hessian_noise
from adamw_jax.diagnostics._learn_rates import learn_rates
from adamw_jax.diagnostics._noise_meter import (
    NoiseMeterState,
    measure_noise_scale,
    read_noise_scale,
    with_micro_norms,
)
from adamw_jax.diagnostics._noise_scale import (
    CurvatureNoise,
    NoiseScale,
    curvature_noise_scale,
    gradient_noise_scale,
    micro_square_norms,
)
from adamw_jax.diagnostics._probe import probe, read_probe
from adamw_jax.diagnostics._radam_variance import radam_rectifier, radam_rho, radam_variance
from adamw_jax.diagnostics._running_measure import Measured, RunningMeasure, RunningMeasureState
from adamw_jax.diagnostics._stationarity import StationarityReport, stationarity_report

__all__ = [
    "CurvatureNoise",
    "HessianNoise",
    "Measured",
    "NoiseMeterState",
    "NoiseScale",
    "RunningMeasure",
    "RunningMeasureState",
    "StationarityReport",
    "batch_hessian_extreme",
    "curvature_noise_scale",
    "gradient_noise_scale",
    "hessian_noise",
    "layer_gradient_norms",
    "learn_rates",
    "measure_noise_scale",
    "micro_square_norms",
    "minimal_damping",
    "probe",
    "radam_rectifier",
    "radam_rho",
    "radam_variance",
    "read_noise_scale",
    "read_probe",
    "stationarity_report",
    "with_micro_norms",
]
