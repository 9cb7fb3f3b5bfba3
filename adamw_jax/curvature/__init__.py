"""Curvature and noise of a loss at a point: products, spectra, sharpness, diagnostics."""

from adamw_jax.curvature.batch_hessian import batch_hessian_extreme, minimal_damping
from adamw_jax.curvature.batches import Batches
from adamw_jax.curvature.density import SpectralDensity, quadrature, smoothed, spectral_density
from adamw_jax.curvature.diagonal import hessian_diag, hutchinson_diag
from adamw_jax.curvature.eigenvalues import top_eigenvalues
from adamw_jax.curvature.gradient_norms import layer_gradient_norms
from adamw_jax.curvature.hessian_noise import HessianNoise, hessian_noise
from adamw_jax.curvature.lanczos import LanczosResult, lanczos
from adamw_jax.curvature.learner import learn_rates
from adamw_jax.curvature.noise_meter import (
    NoiseMeterState,
    measure_noise_scale,
    read_noise_scale,
    with_micro_norms,
)
from adamw_jax.curvature.noise_scale import (
    CurvatureNoise,
    NoiseScale,
    curvature_noise_scale,
    gradient_noise_scale,
    micro_square_norms,
)
from adamw_jax.curvature.preconditioner import preconditioner
from adamw_jax.curvature.products import (
    CompositeLoss,
    gauss_newton_fn,
    gauss_newton_product,
    hvp,
    hvp_fn,
)
from adamw_jax.curvature.r_med import r_med
from adamw_jax.curvature.radam import radam_rectifier, radam_rho, radam_variance
from adamw_jax.curvature.running_measure import Measured, RunningMeasure, RunningMeasureState
from adamw_jax.curvature.sharpness import (
    preconditioned_sharpness,
    sharpness,
    stability_threshold,
)
from adamw_jax.curvature.spectrum_rates import Rates, lr_momentum_from_spectrum
from adamw_jax.curvature.stationarity import StationarityReport, stationarity_report
from adamw_jax.curvature.trace import hessian_trace, hutchinson_trace

__all__ = [
    # Products, spectra, diagonals and sharpness
    "hvp",
    "hvp_fn",
    "gauss_newton_product",
    "gauss_newton_fn",
    "CompositeLoss",
    "Batches",
    "lanczos",
    "LanczosResult",
    "top_eigenvalues",
    "spectral_density",
    "quadrature",
    "smoothed",
    "SpectralDensity",
    "hessian_trace",
    "hutchinson_trace",
    "hessian_diag",
    "hutchinson_diag",
    "r_med",
    "sharpness",
    "preconditioner",
    "preconditioned_sharpness",
    "stability_threshold",
    # Noise of the gradient and of the Hessian, and what follows for steps and batches
    "gradient_noise_scale",
    "micro_square_norms",
    "curvature_noise_scale",
    "measure_noise_scale",
    "read_noise_scale",
    "with_micro_norms",
    "NoiseScale",
    "CurvatureNoise",
    "NoiseMeterState",
    "hessian_noise",
    "HessianNoise",
    "batch_hessian_extreme",
    "minimal_damping",
    "lr_momentum_from_spectrum",
    "learn_rates",
    "Rates",
    # Where training stands
    "stationarity_report",
    "StationarityReport",
    "RunningMeasure",
    "RunningMeasureState",
    "Measured",
    "layer_gradient_norms",
    # RAdam's theory
    "radam_rho",
    "radam_variance",
    "radam_rectifier",
]
