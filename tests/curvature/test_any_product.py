"""Whatever takes products with the Hessian takes those with another matrix, over batches too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamw_jax as aj
from adamw_jax import curvature, diagnostics
from adamw_jax.curvature import Batches, gauss_newton_fn, hvp_fn

pytestmark = [pytest.mark.slow, pytest.mark.quick]

KEY = jax.random.key(3)
NUMBERS = np.random.default_rng(0)
X = NUMBERS.normal(size=(12, 4)).astype(np.float32)
WHOLE = (X, X[:, 0] ** 2)
PARTS = [(X[:6], X[:6, 0] ** 2), (X[6:], X[6:, 0] ** 2)]
BATCHES = Batches(PARTS)
PARAMS = {"w": jnp.asarray(NUMBERS.normal(size=4), jnp.float32)}


def output_loss(outputs: Any, batch: Any) -> jax.Array:
    return jnp.mean((outputs - batch[1]) ** 2)


LINEAR = curvature.CompositeLoss(lambda params, batch: batch[0] @ params["w"], output_loss)
CURVED = curvature.CompositeLoss(lambda params, batch: jnp.sin(batch[0] @ params["w"]), output_loss)


def trained(tx: Any) -> Any:
    return tx.update(jax.tree.map(jnp.ones_like, PARAMS), tx.init(PARAMS), PARAMS)[1]


ADAM, SGD = aj.adam(0.1), aj.sgdw(0.1)
ADAM_STATE = trained(ADAM)


def learned(loss_fn: Any, params: Any, batch: Any, **options: Any) -> Any:
    state = SGD.init(params)
    return tuple(diagnostics.learn_rates(state, loss_fn, params, batch, key=KEY, **options)[1])


def preconditioned(loss_fn: Any, params: Any, batch: Any, **options: Any) -> Any:
    return curvature.preconditioned_sharpness(
        loss_fn, params, batch, ADAM, ADAM_STATE, key=KEY, steps=4, **options
    )


def density(loss_fn: Any, params: Any, batch: Any, **options: Any) -> Any:
    found = curvature.spectral_density(loss_fn, params, batch, k=4, key=KEY, **options)
    return found.trace(jnp.square)[0]


def noise(loss_fn: Any, params: Any, batch: Any, **options: Any) -> Any:
    parts = batch if isinstance(batch, Batches) else PARTS
    return tuple(diagnostics.hessian_noise(loss_fn, params, parts, KEY, **options))


def report(loss_fn: Any, params: Any, batch: Any, **options: Any) -> Any:
    parts = batch if isinstance(batch, Batches) else PARTS
    found = diagnostics.stationarity_report(loss_fn, params, parts, 0.1, **options)
    return found.rayleigh_g, found.bend


def noise_scale(loss_fn: Any, params: Any, batch: Any, product: Any = hvp_fn) -> Any:
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), params)
    linear = product(loss_fn, params, batch)
    return tuple(diagnostics.curvature_noise_scale(stacked, linear))


def top(**more: Any) -> Callable[..., Any]:
    return lambda *at, **options: curvature.top_eigenvalues(*at, k=2, key=KEY, **more, **options)[0]


def diagonal(**more: Any) -> Callable[..., Any]:
    return lambda *at, **options: curvature.hessian_diag(*at, **more, **options)


def keyed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *at, **options: function(*at, key=KEY, **options)


TABLE = {
    "top_eigenvalues": top(),
    "top_eigenvalues by scipy": top(backend="scipy"),
    "spectral_density": density,
    "hessian_trace": keyed(curvature.hessian_trace),
    "hessian_diag": diagonal(),
    "hessian_diag by hutchinson": diagonal(method="hutchinson", num=3, key=KEY),
    "hessian_diag by xdiag": diagonal(method="xdiag", num=1, key=KEY),
    "sharpness": keyed(curvature.sharpness),
    "preconditioned_sharpness": preconditioned,
    "learn_rates": learned,
    "hessian_noise": noise,
    "stationarity_report": report,
    "curvature_noise_scale": noise_scale,
}
"""``(loss_fn, params, batch, product=...) -> numbers`` by what is called."""


def assert_agree(got: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", TABLE)
def test_any_product(name: str) -> None:
    """Of a linear model the Gauss-Newton matrix is the Hessian; of another it is not."""
    call = TABLE[name]
    hessian = call(LINEAR, PARAMS, WHOLE)
    for batch in (WHOLE, BATCHES):
        assert_agree(call(LINEAR, PARAMS, batch, product=hvp_fn), hessian)
        assert_agree(call(LINEAR, PARAMS, batch, product=gauss_newton_fn), hessian)
    with pytest.raises(AssertionError):
        assert_agree(
            call(CURVED, PARAMS, WHOLE, product=gauss_newton_fn), call(CURVED, PARAMS, WHOLE)
        )


def test_nothing_is_left_out() -> None:
    """What takes a loss takes a product, but for the products themselves."""
    own = {"hvp", "hvp_fn", "gauss_newton_product", "gauss_newton_fn"}
    for name in set(curvature.__all__) - own:
        function = getattr(curvature, name)
        if inspect.isfunction(function) and "loss_fn" in inspect.signature(function).parameters:
            assert "product" in inspect.signature(function).parameters, name
            assert name in TABLE
