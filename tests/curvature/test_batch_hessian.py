"""The Hessian of a batch: the model against sampled matrices, its limits, and measured noise."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from adamw_jax.curvature import Batches
from adamw_jax.diagnostics import batch_hessian_extreme, hessian_noise, minimal_damping

pytestmark = pytest.mark.quick

SIZE, KEY, EXTREME = 300, jax.random.key(0), jax.jit(batch_hessian_extreme)


def symmetric_noise(rng: np.random.Generator, sigma: float) -> np.ndarray:
    upper = np.triu(rng.normal(size=(SIZE, SIZE)) * sigma)
    return upper + np.triu(upper, 1).T


def test_against_sampled_matrices() -> None:
    """Outliers above and below the edge, at two batch sizes; the edge is 1.73 and 0.87."""
    rng = np.random.default_rng(0)
    for batch, top in ((1, 3.0), (1, 1.0), (4, 1.5), (4, 0.5)):
        hessian = np.diag([top] + [0.0] * (SIZE - 1))
        noisy = hessian + symmetric_noise(rng, 0.1 / np.sqrt(batch))
        found = EXTREME(top, 0.1, SIZE, batch)
        np.testing.assert_allclose(found, np.linalg.eigvalsh(noisy)[-1], rtol=0.06)


@given(st.floats(0.01, 100), st.floats(0.01, 2), st.integers(1, 10**6), st.floats(1, 1e5))
def test_properties(top: float, sigma: float, params: int, batch: float) -> None:
    """Never below the full Hessian's, no jump at the edge, less noise in larger batches."""
    edge = sigma * np.sqrt(params / batch)
    tops = np.array([top, 0.999 * edge, 1.001 * edge])
    found = np.asarray(EXTREME(tops, sigma, params, batch))
    assert np.all(found >= np.maximum(tops, 2 * edge) * (1 - 1e-5))
    assert np.all(EXTREME(tops, sigma, params, 2 * batch) <= found * (1 + 1e-5))
    np.testing.assert_allclose(found[1:], 2 * edge, rtol=1e-4)


def test_the_step_it_allows() -> None:
    """Linear in the batch while noise rules below the outlier, then flat; a root at the edge."""
    batches = np.array([1.0, 2.0, 1e6, 2e6])
    steps = 2.0 / batch_hessian_extreme(100.0, 1.0, 10**4 + 1, batches)
    assert steps[0] < steps[1] < steps[2]
    np.testing.assert_allclose(steps[3] / steps[2], 1.0, rtol=1e-3)
    steps = 2.0 / batch_hessian_extreme(0.1, 1.0, 10**4, np.array([1.0, 4.0, 16.0]))
    np.testing.assert_allclose(steps / steps[0], [1.0, 2.0, 4.0], rtol=1e-5)


def test_the_whole_data_have_no_noise() -> None:
    found = batch_hessian_extreme([2.0, 5.0], 3.0, 100, 64, dataset_size=64)
    np.testing.assert_allclose(found, [2.0, 5.0])
    jitted = EXTREME(jnp.array([2.0, 5.0]), 0.1, 800, 16, 1000)
    np.testing.assert_allclose(jitted, batch_hessian_extreme([2.0, 5.0], 0.1, 800, 16, 1000))


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """A quadratic whose Hessian is the mean of the batch's matrices."""
    w = jnp.concatenate([params[name].astype(jnp.float32) for name in "ab"])
    return 0.5 * jnp.mean(jnp.einsum("i,nij,j->n", w, batch, w))


PARAMS = {"a": jnp.zeros(20), "b": jnp.zeros(SIZE - 20, jnp.bfloat16)}


def matrices(number: int, seed: int, sigma: float = 0.2, scale: float = 1.0) -> np.ndarray:
    rng, mean = np.random.default_rng(seed), scale * np.diag(np.linspace(-1.0, 3.0, SIZE))
    return np.stack([mean + symmetric_noise(rng, sigma) for _ in range(number)]).astype(np.float32)


def test_measured_noise() -> None:
    """The sigma that the matrices were drawn with, and the spectrum's mean and variance."""
    data = matrices(48, 1)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    found = hessian_noise(loss_fn, params, (data[i : i + 4] for i in range(0, 48, 4)), KEY)
    np.testing.assert_allclose(found.sigma, 0.2, rtol=0.05)
    np.testing.assert_allclose(found.mean, 1.0, rtol=0.2)
    spread = np.var(np.linspace(-1.0, 3.0, SIZE))
    noise = SIZE * 0.2**2 / 48
    np.testing.assert_allclose(found.dispersion, spread + noise, rtol=0.2)
    np.testing.assert_allclose(found.shrinkage, spread / (spread + noise), rtol=0.05)
    share = float(found.shrinkage)
    np.testing.assert_allclose(found.damping(0.1), (1 - share) / share + 0.1, rtol=1e-6)


def test_alike_batches_have_no_noise() -> None:
    data = np.stack([np.eye(SIZE, dtype=np.float32)] * 2)
    found = hessian_noise(loss_fn, PARAMS, [data, data], KEY)
    np.testing.assert_allclose(found.mean, 1.0, rtol=1e-2)  # the product is in bfloat16
    assert float(found.variance) < 1e-6
    assert np.isinf(found._replace(shrinkage=jnp.float32(-0.5)).damping(0.1))


def test_noise_far_below_the_hessian() -> None:
    """In float32, where squares of 100 have an error of 1e-3: the difference is formed first."""
    data = np.float32(100) * np.eye(SIZE, dtype=np.float32) + matrices(12, 3, 1e-3, 0.0)
    params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    found = hessian_noise(loss_fn, params, [data[i : i + 2] for i in range(0, 12, 2)], KEY)
    np.testing.assert_allclose(found.mean, 100.0, rtol=1e-4)
    np.testing.assert_allclose(found.dispersion, SIZE * 1e-6 / 12, rtol=0.3)
    np.testing.assert_allclose(found.sigma, 1e-3, rtol=0.1)
    assert -0.3 < float(found.shrinkage) < 0.5  # none of the dispersion is real


def test_no_noise_and_nothing_but_noise() -> None:
    """The share is 1 and minus infinity, whatever the unit."""
    eye, e = np.eye(3, dtype=np.float32), np.diag(np.float32([1.0, -1.0, 1.0]))

    def loss(w: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.mean(jnp.einsum("i,nij,j->n", w, batch, w))

    for unit in (1e-3, 1.0, 1e3):
        one, other = (np.float32(unit) * x[None] for x in (eye + e / 2, eye - e / 2))
        alike = hessian_noise(loss, jnp.zeros(3), [one, one], KEY)
        assert (float(alike.variance), float(alike.shrinkage)) == (0.0, 1.0)
        noise = hessian_noise(loss, jnp.zeros(3), [one, other], KEY)
        assert float(noise.shrinkage) < -1e3
        assert np.isinf(noise.damping(0.1))


def test_batches_are_batches() -> None:
    data = [matrices(2, seed) for seed in (0, 1)]
    params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    expected = hessian_noise(loss_fn, params, data, KEY)
    found = hessian_noise(loss_fn, params, Batches(data), KEY)
    np.testing.assert_array_equal(found, expected)


def test_minimal_damping() -> None:
    """The authors' pairs of damping and batch size, at a learning rate of 1."""
    for damping, batch in ((16, 16), (8, 32), (4, 64), (2, 128), (1, 256)):
        assert minimal_damping(1.0, batch) == damping
    assert minimal_damping(0.1, 100, scale=10.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, -0.1, 10, 4), "sigma must be >= 0 everywhere, got -0.1"),
        ((1.0, 0.1, 0, 4), "num_params must be >= 1"),
        ((1.0, 0.1, 10, 0), "batch_size must be > 0"),
        ((1.0, 0.1, 10, 40, 20), "batch_size must be at most dataset_size, got 40 and 20"),
        (([1.0, 2.0], 0.1, 10, [1, 2, 3]), "must have shapes that broadcast"),
    ],
)
def test_errors(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_hessian_extreme(*arguments)


def test_errors_of_the_others() -> None:
    with pytest.raises(ValueError, match="batches must hold two or more, got 1"):
        hessian_noise(loss_fn, PARAMS, [matrices(1, 0)], KEY)
    with pytest.raises(ValueError, match="one size, got 1 examples after batches of 2: leave"):
        hessian_noise(loss_fn, PARAMS, [matrices(2, 0), matrices(2, 0), matrices(1, 0)], KEY)
    with pytest.raises(ValueError, match="batch_size must be a number > 0"):
        minimal_damping(1.0, 0)
