"""Curvature of a loss at a point: products, spectra, traces, sharpness.

Lanczos' iteration and all that uses it, the trace and XDiag need the package matfree; install it
with ``pip install adamw-jax[curvature]``.
"""

from adamw_jax.curvature._batches import Batches
from adamw_jax.curvature._density import SpectralDensity, quadrature, smoothed, spectral_density
from adamw_jax.curvature._diagonal import hessian_diag, hutchinson_diag
from adamw_jax.curvature._eigenvalues import top_eigenvalues
from adamw_jax.curvature._lanczos import LanczosResult, lanczos
from adamw_jax.curvature._preconditioner import preconditioner
from adamw_jax.curvature._products import (
    CompositeLoss,
    gauss_newton_fn,
    gauss_newton_product,
    hvp,
    hvp_fn,
)
from adamw_jax.curvature._r_med import r_med
from adamw_jax.curvature._sharpness import preconditioned_sharpness, sharpness, stability_threshold
from adamw_jax.curvature._spectrum_rates import Rates, lr_momentum_from_spectrum
from adamw_jax.curvature._trace import hessian_trace, hutchinson_trace

__all__ = [
    "Batches",
    "CompositeLoss",
    "LanczosResult",
    "Rates",
    "SpectralDensity",
    "gauss_newton_fn",
    "gauss_newton_product",
    "hessian_diag",
    "hessian_trace",
    "hutchinson_diag",
    "hutchinson_trace",
    "hvp",
    "hvp_fn",
    "lanczos",
    "lr_momentum_from_spectrum",
    "preconditioned_sharpness",
    "preconditioner",
    "quadrature",
    "r_med",
    "sharpness",
    "smoothed",
    "spectral_density",
    "stability_threshold",
    "top_eigenvalues",
]
