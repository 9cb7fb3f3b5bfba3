"""The choice of stochastic rounding is exact: all noises, all of float8, the grid it stands on."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax.update._rounding_grid import gap, nearest
from adamw_jax.update._stochastic_rounding import rounding_update
from tests.catalogue import assert_equal

pytestmark = pytest.mark.slow

NARROW = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]


def wide(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def gaps(x: Any, dtype: Any) -> np.ndarray:
    return wide(gap(jnp.asarray(x, jnp.float32), dtype))


def pairs(dtype: str) -> tuple[jax.Array, jax.Array]:
    """Parameters and updates: powers of two and others, zeros, subnormals, of either sign, with
    updates from far below a gap to four times the parameter, and at the end of the range."""
    rng, info = np.random.default_rng(7), jnp.finfo(dtype)
    exponent = rng.uniform(-3, 3, 96)
    exponent[::6] = np.round(exponent[::6])
    if info.smallest_subnormal > 1e-30:
        exponent[1::6] = np.log2(float(info.tiny)) + rng.uniform(-2, 1, 16)
    p = rng.choice([-1, 1], 96) * 2.0**exponent
    least = np.log2(float(info.eps)) - 10
    u = rng.choice([-1, 1], 96) * 2.0 ** rng.uniform(least, 2, 96) * np.abs(p)
    p[2::12] = 0.0
    p[3], u[3] = float(info.max), 2.0**-9 * float(info.max)
    p[4], u[4] = -float(info.max), -0.3 * float(info.max)
    return jnp.asarray(p, jnp.float32).astype(dtype), jnp.asarray(u, jnp.float32)


NOISE = jnp.arange(2**16, dtype=jnp.uint16)


@jax.jit
def every_outcome(p: jax.Array, u: jax.Array) -> Any:
    """The update and the parameter for every noise, from float32 and from narrow updates."""
    p, u, noise = jnp.broadcast_arrays(p[:, None], u[:, None], NOISE[None, :])
    update = rounding_update(p, u, noise)
    return update, update.astype(p.dtype)


@pytest.mark.parametrize("dtype", NARROW[:2])
def test_the_mean_is_exact(dtype: str) -> None:
    """Over all 2**16 noises, and through apply_updates: two numbers around the sum, right odds."""
    p, u = pairs(dtype)
    update, narrow = every_outcome(p, u)
    assert_equal(narrow.astype(jnp.float32), update)
    params = jnp.broadcast_to(p[:, None], narrow.shape)
    new = wide(optax.apply_updates(params, narrow))
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_array_equal(wide(optax.apply_updates(params, update)), new)
    low, high = new.min(1), new.max(1)
    assert np.all((new == low[:, None]) | (new == high[:, None]))
    limit = float(jnp.finfo(dtype).max)
    exact = np.clip(wide(p.astype(jnp.float32) + u), -limit, limit)
    assert np.all((low <= exact) & (exact <= high))
    coarse = np.maximum(gaps(exact, dtype), gaps(u, dtype))
    assert np.all(high - low <= 2 * coarse)
    error = np.abs(new.mean(1) - exact)
    assert np.all(error <= 2.0**-16 * coarse)
    # A small update within a binade chooses between neighbours.
    start = wide(p)
    small = (np.abs(wide(u)) < gaps(start, dtype)) & (gaps(start, dtype) == gaps(exact, dtype))
    small &= np.abs(exact) < limit
    assert small.sum() > 20
    np.testing.assert_array_equal((high - low)[small], gaps(exact, dtype)[small])
    assert not np.any(error[small])


@pytest.mark.parametrize("dtype", NARROW[2:])
def test_all_of_float8(dtype: str) -> None:
    """Every parameter and update of float8, and updates between and beyond them, under 32 levels
    of noise: the mean is right, and at the end of the range nothing overflows."""
    with np.errstate(invalid="ignore"):
        numbers = wide(np.arange(256, dtype=np.uint8).view(jnp.dtype(dtype)))
    numbers = np.unique(numbers[np.isfinite(numbers)])
    limit = numbers.max()
    between = 0.7 * numbers[1:] + 0.3 * numbers[:-1]
    grid = np.meshgrid(numbers, np.concatenate([numbers, between, 3 * numbers]), indexing="ij")
    p, u = (jnp.asarray(x.ravel(), jnp.float32) for x in grid)
    levels = np.arange(1024, 2**16, 2048, dtype=np.uint16)

    @jax.jit
    def parameters(p: jax.Array, u: jax.Array) -> jax.Array:
        p, u, noise = jnp.broadcast_arrays(p.astype(dtype)[:, None], u[:, None], levels[None, :])
        return optax.apply_updates(p, rounding_update(p, u, noise).astype(dtype))

    new = wide(parameters(p, u))
    assert np.all(np.isfinite(new))
    start, wanted = wide(p), wide(u)
    exact = start + np.clip(np.clip(start + wanted, -limit, limit) - start, -limit, limit)
    coarse = np.maximum(gaps(exact, dtype), gaps(np.abs(wanted).clip(max=limit), dtype))
    assert np.all(np.abs(new - exact[:, None]) <= 3 * coarse[:, None])
    inside = np.maximum(np.abs(exact), np.abs(wanted)) + coarse <= limit
    low, high, mean = new.min(1), new.max(1), new.mean(1)
    apart = np.where(low < high, high - low, 3 * coarse)
    assert np.all(np.abs(mean - exact)[inside] <= (apart / 64 + 2.0**-15 * coarse)[inside])


@pytest.mark.parametrize("dtype", NARROW)
def test_the_grid(dtype: str) -> None:
    """Every number of the dtype is its own nearest, and its neighbour is one gap away."""
    size = jnp.dtype(dtype).itemsize
    codes = np.arange(2 ** (8 * size - 1), dtype=f"uint{8 * size}")
    with np.errstate(invalid="ignore"):
        numbers = wide(codes.view(jnp.dtype(dtype)))
    least = max(float(jnp.finfo(jnp.float32).tiny), float(jnp.finfo(dtype).smallest_subnormal))
    numbers = numbers[np.isfinite(numbers) & ((numbers == 0) | (numbers >= 2**8 * least))]
    x = jnp.asarray(numbers, jnp.float32)
    np.testing.assert_array_equal(wide(nearest(x, dtype)), numbers)
    inner = numbers[1:-1] if dtype == "bfloat16" else numbers[:-1]
    above = numbers[2:] if dtype == "bfloat16" else numbers[1:]
    kept = inner >= 2**8 * least
    np.testing.assert_array_equal(gaps(inner, dtype)[kept], (above - inner)[kept])
    between = jnp.asarray(inner + 0.37 * (above - inner), jnp.float32)[kept]
    np.testing.assert_array_equal(wide(nearest(between, dtype)), wide(between.astype(dtype)))
