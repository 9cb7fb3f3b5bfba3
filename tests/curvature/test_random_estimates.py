"""Traces and diagonals from random probes: unbiased, with the variances that theory gives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax import curvature
from tests.golden_cases import OWN_SETS, discover

pytestmark = [pytest.mark.slow, pytest.mark.quick]

(GOLDEN,) = (case for case in discover(OWN_SETS) if case.system == "hutchinson")
MATRIX = GOLDEN.arrays["in__A"].astype(np.float32)
SIZE = len(MATRIX)
RUNS = 3000


def quadratic(x: Any, matrix: Any) -> jax.Array:
    return 0.5 * jnp.dot(x, matrix @ x)


def keys(runs: int) -> jax.Array:
    return jax.random.split(jax.random.key(11), runs)


def recorded(name: str) -> Any:
    return GOLDEN.arrays[f"out__{name}"]


def test_trace() -> None:
    """Over many runs the mean is the trace, and the variance the recorded one over num."""
    num = 4
    estimates, errors = jax.vmap(
        lambda key: curvature.hessian_trace(quadratic, jnp.ones(SIZE), MATRIX, num=num, key=key)
    )(keys(RUNS))
    variance = float(recorded("variance_trace_rademacher_single")) / num
    assert abs(np.mean(estimates) - recorded("trace_exact")) < 4 * np.sqrt(variance / RUNS)
    np.testing.assert_allclose(np.var(estimates), variance, rtol=0.1)
    np.testing.assert_allclose(np.mean(np.square(errors)), variance, rtol=0.1)


def test_trace_of_gaussian_probes() -> None:
    probes = jax.random.normal(jax.random.key(3), (RUNS, SIZE))
    estimate, error = jax.jit(
        lambda probes: curvature.hutchinson_trace(lambda v: jnp.asarray(MATRIX) @ v, probes)
    )(probes)
    variance = float(recorded("variance_trace_gaussian_single")) / RUNS
    assert abs(float(estimate) - recorded("trace_exact")) < 4 * np.sqrt(variance)
    np.testing.assert_allclose(error, np.sqrt(variance), rtol=0.1)


def test_diagonal() -> None:
    num = 3  # one probe over, where the chunks are of two
    estimates = jax.vmap(
        lambda key: curvature.hessian_diag(
            quadratic, jnp.ones(SIZE), MATRIX, method="hutchinson", num=num, key=key, chunk=2
        )
    )(keys(RUNS))
    variance = recorded("variance_diag_rademacher_single") / num
    off = np.abs(np.mean(estimates, axis=0) - recorded("diag_exact"))
    assert (off < 4.5 * np.sqrt(variance / RUNS)).all()
    np.testing.assert_allclose(np.var(estimates, axis=0), variance, rtol=0.15)


def test_xdiag() -> None:
    """Exact from P / 2 probes on and on low rank; else better than as many products are worth."""

    def diagonals(matrix: Any, method: str, num: int, runs: int) -> np.ndarray:
        return np.asarray(
            jax.vmap(
                lambda key: curvature.hessian_diag(
                    quadratic, jnp.ones(len(matrix)), matrix, method=method, num=num, key=key
                )
            )(keys(runs))
        )

    np.testing.assert_allclose(
        curvature.hessian_diag(
            quadratic, jnp.ones(SIZE), MATRIX, method="xdiag", num=SIZE // 2, key=keys(1)[0]
        ),
        np.diag(MATRIX),
        rtol=1e-6,
    )
    numbers = np.random.default_rng(0)
    basis = np.linalg.qr(numbers.normal(size=(40, 40)))[0]
    falling = ((basis * 0.5 ** np.arange(40)) @ basis.T).astype(np.float32)
    exact = np.diag(falling)
    xdiag, plain = (
        np.sqrt(np.mean((diagonals(falling, method, num, 20) - exact) ** 2))
        for method, num in (("xdiag", 10), ("hutchinson", 20))
    )
    assert xdiag < 0.1 * plain


def test_exact_diagonal_in_chunks() -> None:
    params = {"a": jnp.ones(5), "b": jnp.ones((1, 7))}

    def loss_fn(params: Any, matrix: Any) -> jax.Array:
        return quadratic(jnp.concatenate([params["a"], params["b"][0]]), matrix)

    for chunk in (1, 5, 64):
        found = curvature.hessian_diag(loss_fn, params, MATRIX, chunk=chunk)
        assert jax.tree.map(jnp.shape, found) == {"a": (5,), "b": (1, 7)}
        whole = np.concatenate([found["a"], found["b"][0]])
        np.testing.assert_allclose(whole, np.diag(MATRIX), rtol=1e-6)


def test_ratio_of_the_largest_to_the_median() -> None:
    diag = {"w": jnp.array([[-6.0, 1.0], [2.0, 3.0]]), "b": jnp.array([1.0, 4.0, 5.0])}
    blocks: Any = curvature.r_med(diag)
    assert {name: round(float(ratio), 5) for name, ratio in blocks.items()} == {"b": 1.25, "w": 2.4}
    signed: Any = curvature.r_med(diag, absolute=False)
    assert float(signed["w"]) == 2.0
    half: Any = curvature.r_med(jax.tree.map(lambda x: x.astype(jnp.bfloat16), diag))
    assert half["w"].dtype == jnp.float32
    assert np.isnan(jax.jit(lambda x: curvature.r_med(x, per_block=False))(jnp.zeros(3)))
    assert np.isinf(jax.jit(lambda x: curvature.r_med(x, per_block=False))(jnp.eye(3)))


def test_errors() -> None:
    at = (quadratic, jnp.ones(SIZE), MATRIX)
    key = jax.random.key(0)
    for options, message in (
        ({"method": "power"}, "method must be one of"),
        ({"num": 3}, r'"exact" takes no num and key, got num=3.*method="hutchinson"'),
        ({"method": "hutchinson", "num": 3}, "needs num and key"),
        ({"method": "xdiag", "num": 13, "key": key}, "num must be at most 12, the number"),
        ({"chunk": 0}, "chunk must be a whole number >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            curvature.hessian_diag(*at, **options)
    with pytest.raises(ValueError, match="num must be a whole number >= 2, got 1"):
        curvature.hessian_trace(*at, num=1, key=key)
    with pytest.raises(TypeError, match="'w' has dtype int32"):
        curvature.r_med({"w": jnp.ones(2, jnp.int32)})
    with pytest.raises(ValueError, match="per_block must be True or False"):
        curvature.r_med(jnp.ones(2), per_block=1)  # type: ignore[arg-type]
