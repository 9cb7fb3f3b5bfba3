"""Norm-adaptive SGD: its estimate, and what it is for.

The experiment: |x| in 10 dimensions from a distance of 5, noise of size 0.5 that is 20 for a tenth
of the run, error of the average of the iterates weighted by their steps, mean over repetitions.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import hyperparams, norm_adaptive_sgd, scale_by_norm_adaptive_sgd
from adamw_jax.moments import scale_by_norm_estimate
from tests.catalogue import assert_close, assert_equal, assert_finite, run, sample_params

pytestmark = pytest.mark.quick

STEPS, DIMENSION, REPETITIONS, DISTANCE = 1000, 10, 32, 5.0
COUNT = np.arange(STEPS)
LOUD = np.where((COUNT >= 400) & (COUNT < 500), 20.0, 0.5)
STEADY = np.full(STEPS, 0.5)
SHORT = DISTANCE / np.sqrt(STEPS)


def error(rate: np.ndarray | None, noise: np.ndarray) -> float:
    """With these steps, or with estimated ones (None)."""
    given = np.zeros(STEPS) if rate is None else rate
    compiled = _experiment(rate is None)
    return float(compiled(*(jnp.asarray(x, jnp.float32) for x in (given, noise))))


@functools.cache
def _experiment(estimated: bool) -> Any:
    tx = norm_adaptive_sgd(SHORT)

    def one(key: Any, rates: Any, noises: Any) -> Any:
        x = jnp.full(DIMENSION, DISTANCE / np.sqrt(DIMENSION), jnp.float32)
        normal = jax.random.normal(key, (STEPS, DIMENSION)) / np.float32(np.sqrt(DIMENSION))

        def step(carry: Any, now: Any) -> Any:
            x, state, total, weight = carry
            rate, noise, z = now
            g = x / jnp.maximum(jnp.linalg.norm(x), 1e-12) + noise * z
            if estimated:
                updates, state = tx.update(g, state, x)
                rate = -jnp.vdot(updates, g) / jnp.vdot(g, g)
            else:
                updates = -rate * g
            return (x + updates, state, total + rate * x, weight + rate), None

        start = (x, tx.init(x), jnp.zeros_like(x), jnp.float32(0.0))
        (_, _, total, weight), _ = jax.lax.scan(step, start, (rates, noises, normal))
        return jnp.linalg.norm(total / weight)

    keys = jax.random.split(jax.random.key(0), REPETITIONS)
    return jax.jit(
        lambda rates, noises: jnp.mean(jax.vmap(one, (0, None, None))(keys, rates, noises))
    )


def size(noise: np.ndarray) -> np.ndarray:
    """Root of the mean square of the gradient."""
    return np.sqrt(1 + noise**2)


def test_loud_phases() -> None:
    """Less than half of the error of the best constant step, near that of the known sizes."""
    best = DISTANCE / np.sqrt(np.sum(size(LOUD) ** 2))
    constant = min(error(np.full(STEPS, best * f), LOUD) for f in (0.5, 1.0, 2.0))
    oracle = error(SHORT / size(LOUD), LOUD)
    estimated = error(None, LOUD)
    assert estimated < 0.5 * constant
    assert estimated < 1.5 * oracle


def test_steady_noise() -> None:
    """Nothing is lost where a constant step is right."""
    assert error(None, STEADY) < 1.1 * error(SHORT / size(STEADY), STEADY)


GRADIENTS = np.random.default_rng(3).normal(size=(6, 4)) * np.array([1, 5, 0.1, 1])


@pytest.mark.parametrize("use_previous", [True, False])
@pytest.mark.usefixtures("x64")
def test_the_estimate(use_previous: bool) -> None:
    """One norm over all leaves, of the steps before; the first step has its own."""
    tx = scale_by_norm_estimate(0.7, 0.1, use_previous=use_previous)
    params = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    state, square = tx.init(params), np.sum(GRADIENTS[0] ** 2)
    for g in GRADIENTS:
        after = 0.7 * square + 0.3 * np.sum(g**2)
        m = np.sqrt(square if use_previous else after)
        updates, state = tx.update({"a": jnp.asarray(g[:3]), "b": jnp.asarray(g[3])}, state)
        expected = {"a": g[:3] / (m + 0.1), "b": g[3] / (m + 0.1)}
        assert_close(updates, expected, rtol=1e-12)
        square = after


def test_the_optimizer_is_the_stage_and_the_learning_rate() -> None:
    params, gradients = jnp.ones(4), jnp.asarray(GRADIENTS, jnp.float32)
    whole, _ = run(norm_adaptive_sgd(0.05, 0.8, 0.1), params, gradients)
    parts = optax.chain(scale_by_norm_adaptive_sgd(0.8, 0.1), optax.scale(-0.05))
    assert_close(run(parts, params, gradients)[0], whole)
    assert set(hyperparams(norm_adaptive_sgd(0.1).init(params))) == {
        "learning_rate", "beta", "floor"
    }  # fmt: skip


@pytest.mark.parametrize("floor", [0.0, 1e-3])
def test_zero_gradients(floor: float) -> None:
    params = sample_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = norm_adaptive_sgd(0.1, floor=floor)
    with jax.debug_nans(True):
        updates, state = tx.update(zeros, tx.init(params), params)
        updates, _ = tx.update(zeros, state, params)
    assert_equal(updates, zeros)

    def moved(gradient: Any) -> Any:
        updates, _ = tx.update(gradient, tx.init(params), params)
        return sum(jnp.sum(u) for u in jax.tree.leaves(updates))

    assert_finite(jax.grad(moved)(params))
    assert_finite(jax.grad(moved)(zeros))


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("use_previous", [True, False])
@pytest.mark.parametrize("bad", [3e19, np.inf, np.nan])
def test_what_is_not_finite_is_not_remembered(bad: float, use_previous: bool, at: int) -> None:
    """One loud gradient does not stop the optimizer: the next steps are as if it had not been."""
    tx = norm_adaptive_sgd(0.1, use_previous=use_previous)
    sizes = [1.0, 2.0, 3.0, 1.5, 1.0]
    state = quiet = tx.init(jnp.ones(3))
    for i, size in enumerate(sizes):
        if i == at:
            _, state = tx.update(jnp.full(3, bad), state)
        got, state = tx.update(jnp.full(3, size), state)
        expected, quiet = tx.update(jnp.full(3, size), quiet)
        assert_close(got, expected)
    assert_finite(state)


def test_arguments() -> None:
    for options in ({"beta": 1.0}, {"beta": -0.1}, {"floor": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a number"):
            norm_adaptive_sgd(0.1, **options)
    with pytest.raises(ValueError, match="use_previous must be True or False"):
        scale_by_norm_estimate(use_previous=1)  # type: ignore[arg-type]
