"""The golden cases of training diagnostics, compared through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from adamw_jax import curvature, diagnostics
from tests.golden_cases import Case, assert_recorded


def check_noise_scale(case: Case) -> None:
    examples = jnp.asarray(case.arrays["in__per_example_gradients"])
    hessian = jnp.asarray(case.arrays["in__H"])
    number, small = len(examples), int(case.arrays["in__b_small"])
    micro = examples.reshape(number // small, small, -1).mean(1)
    small_square, big_square = diagnostics.micro_square_norms(micro)
    found = diagnostics.gradient_noise_scale(small_square, big_square, small, number)
    sample = diagnostics.gradient_noise_scale(*diagnostics.micro_square_norms(examples), 1, number)
    weighed = diagnostics.curvature_noise_scale(examples, lambda v: hessian @ v)
    got = {
        "g_sq_big": big_square,
        "g_sq_small_mean": small_square,
        "g_sq_unbiased": found.gradient_square,
        "trace_sigma_estimate": found.noise_trace,
        "b_simple": found.scale,
        "trace_sigma_sample": sample.noise_trace,
        "b_simple_plain": sample.noise_trace / big_square,
        "b_noise": weighed.scale,
        "eps_max": weighed.max_learning_rate,
    }
    assert_recorded(case, got)


def check_radam_variance(case: Case) -> None:
    t, b2 = case.arrays["in__t"], case.arrays["in__beta2"]
    got = {
        "rho_inf": diagnostics.radam_rho(np.inf, b2),
        "rho_t": diagnostics.radam_rho(t, b2),
        "var_psi_exact": diagnostics.radam_variance(t, b2),
        "var_psi_first_order": diagnostics.radam_variance(t, b2, exact=False),
        "rectifier": diagnostics.radam_rectifier(t, b2),
    }
    assert_recorded(case, got)


def learned(case: Case) -> dict[str, Any]:
    """What the rules read off the recorded spectrum."""
    values, weights = case.arrays["in__ritz_values"], case.arrays["in__ritz_weights"]

    def rates(method: str, mu: str) -> curvature.Rates:
        return curvature.lr_momentum_from_spectrum(values, weights, method=method, mu=mu)

    median, least = "median", "non_bulk_min"
    # L and mu themselves come back as what the rules make of them: 1 / lr and 2 / lr - L.
    largest = 1.0 / rates("nesterov", median).learning_rate
    return {
        "lambda_max": largest,
        "mu_median": 2.0 / rates("sgd", median).learning_rate - largest,
        "mu_min_non_bulk": 2.0 / rates("sgd", least).learning_rate - largest,
        "sgd_lr_median": rates("sgd", median).learning_rate,
        "heavy_ball_lr_median": rates("heavy_ball", median).learning_rate,
        "heavy_ball_momentum_median": rates("heavy_ball", median).momentum,
        "heavy_ball_lr_min": rates("heavy_ball", least).learning_rate,
        "heavy_ball_momentum_min": rates("heavy_ball", least).momentum,
        "nesterov_momentum_min": rates("nesterov", least).momentum,
    }


def check_learner(case: Case) -> None:
    # The published scripts lack a root, which is a mistake that nothing here repeats.
    mistakes = (f"out__published_code_momentum_{mu}" for mu in ("median", "min"))
    assert_recorded(case, learned(case), *mistakes)


def check_batch_hessian(case: Case) -> None:
    values = case.arrays
    extreme = diagnostics.batch_hessian_extreme(
        values["in__lambda_full"],
        values["in__sigma"],
        values["in__P"],
        values["in__batch_sizes"][:, None],
        values["in__N"],
    )
    assert_recorded(case, {"lambda_batch": extreme, "lr_max": 2.0 / extreme})


CHECKS: dict[str, Callable[[Case], None]] = {
    "gradient_noise_scale": check_noise_scale,
    "radam_variance": check_radam_variance,
    "lr_learner": check_learner,
    "batch_hessian_extremes": check_batch_hessian,
}
