"""``RunningMeasure`` against NumPy, and its judgement of drift."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.diagnostics import RunningMeasure

pytestmark = pytest.mark.quick

MEASURE = RunningMeasure(window=40, blocks=8)


@jax.jit
def measured(values: jax.Array) -> Any:
    def step(state: Any, x: jax.Array) -> Any:
        return MEASURE.update(state, {"x": x, "y": -x.astype(jnp.bfloat16)}), None

    start = MEASURE.init({"x": 0.0, "y": 0.0})
    return MEASURE.read(jax.lax.scan(step, start, values)[0])


@pytest.mark.parametrize("steps", [1, 23, 57, 120])
def test_against_numpy(steps: int) -> None:
    """The window is the last eight complete blocks of five; 57 steps leave two over."""
    values = np.random.default_rng(steps).normal(size=steps).astype(np.float32)
    found = measured(jnp.asarray(values))["x"]
    np.testing.assert_allclose(found.mean, values.mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.variance, values.var(), rtol=1e-4, atol=1e-6)
    blocks = values[: steps // 5 * 5].reshape(-1, 5).mean(1)[-8:]
    window = blocks.mean() if len(blocks) else 0.0
    np.testing.assert_allclose(found.window_mean, window, rtol=1e-4, atol=1e-6)
    if len(blocks) < 8:
        assert not found.settled
        return
    drift = blocks[4:].mean() - blocks[:4].mean()
    error = np.sqrt(blocks[:4].var(ddof=1) / 4 + blocks[4:].var(ddof=1) / 4)
    np.testing.assert_allclose(found.drift, drift, rtol=1e-4)
    np.testing.assert_allclose(found.drift_error, error, rtol=1e-4)
    assert bool(found.settled) == (abs(drift) <= 2 * error)


def test_a_trend_is_seen_and_steady_noise_is_not() -> None:
    noise = np.random.default_rng(0).normal(size=(100, 120)).astype(np.float32)
    trend = noise + 0.1 * np.arange(120, dtype=np.float32)
    steady = jax.vmap(measured)(jnp.asarray(noise))["x"].settled
    moving = jax.vmap(measured)(jnp.asarray(trend))["x"].settled
    assert 0.85 <= np.mean(steady) <= 1.0  # two standard errors of a difference of two fours
    assert np.mean(moving) < 0.05


def test_narrow_scalars_and_long_runs() -> None:
    """Averages are in float32, also of bfloat16; a large mean does not swallow the variance."""
    values = 1000.0 + jnp.tile(jnp.array([-1.0, 1.0]), 5000)
    found = measured(values)
    np.testing.assert_allclose(found["x"].mean, 1000.0, rtol=1e-6)
    np.testing.assert_allclose(found["x"].variance, 1.0, rtol=1e-2)
    assert found["y"].mean.dtype == jnp.float32


def test_errors() -> None:
    for options in ({"window": 30, "blocks": 20}, {"window": 35, "blocks": 5}):
        with pytest.raises(ValueError, match="window must be a multiple of blocks"):
            RunningMeasure(**options)
    with pytest.raises(ValueError, match="blocks must be a whole number >= 4, got 2"):
        RunningMeasure(blocks=2)
    with pytest.raises(ValueError, match="window must be a whole number >= 20, got 10"):
        RunningMeasure(window=10)
    state = MEASURE.init({"x": 0.0})
    for wrong in ({"y": jnp.float32(0.0)}, {"x": jnp.zeros(3)}):
        with pytest.raises(ValueError, match="scalars must be like those given to init"):
            MEASURE.update(state, wrong)
