"""The gradient noise scale: estimates without bias, and the meter inside a step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.diagnostics import (
    curvature_noise_scale,
    gradient_noise_scale,
    measure_noise_scale,
    micro_square_norms,
    read_noise_scale,
    with_micro_norms,
)
from tests.catalogue import assert_close, assert_equal

pytestmark = pytest.mark.quick

MU = np.array([1.0, 0.5, -0.25])
STD = np.array([1.0, 2.0, 0.5])
SIGNAL, NOISE = float(np.sum(MU**2)), float(np.sum(STD**2))
MICRO, BATCH, STEPS = 4, 16, 300
PARAMS = {"a": jnp.zeros(2), "b": jnp.zeros(1)}


def draws(steps: int, seed: int = 0) -> Any:
    """Micro-gradients of every step: normal per-example gradients, averaged by fours."""
    shape = (steps, BATCH // MICRO, MICRO, 3)
    examples = MU + STD * np.random.default_rng(seed).normal(size=shape)
    micro = jnp.asarray(examples.mean(2), jnp.float32)
    return {"a": micro[..., :2], "b": micro[..., 2:]}


def test_no_bias() -> None:
    """Means over many measurements, within four standard errors."""
    small, big = jax.vmap(micro_square_norms)(draws(4000))
    found = gradient_noise_scale(small, big, MICRO, BATCH)
    for estimate, truth in ((found.gradient_square, SIGNAL), (found.noise_trace, NOISE)):
        error = np.std(estimate) / np.sqrt(len(estimate))
        assert abs(np.mean(estimate) - truth) < 4 * error
        assert error < 0.05 * truth
    assert np.any(found.gradient_square < 0)
    np.testing.assert_array_equal(np.isinf(found.scale), found.gradient_square <= 0)


@pytest.mark.usefixtures("x64")
def test_of_a_sample_it_is_the_sample_s_covariance() -> None:
    examples = np.random.default_rng(1).normal(size=(7, 3)) * STD + MU
    tree = {"a": jnp.asarray(examples[:, :2]), "b": jnp.asarray(examples[:, 2:])}
    found = gradient_noise_scale(*micro_square_norms(tree), 1, 7)
    covariance, mean = np.cov(examples.T), examples.mean(0)
    np.testing.assert_allclose(found.noise_trace, np.trace(covariance), rtol=1e-12)
    hessian = np.diag([1.0, 4.0, 9.0]) + 0.1

    def product(v: Any) -> Any:
        h = jnp.asarray(hessian) @ jnp.concatenate([v["a"], v["b"]])
        return {"a": h[:2], "b": h[2:]}

    weighed = curvature_noise_scale(tree, product)
    np.testing.assert_allclose(weighed.curvature, mean @ hessian @ mean, rtol=1e-12)
    np.testing.assert_allclose(weighed.noise_curvature, np.trace(hessian @ covariance), rtol=1e-12)
    # The best step: the minimum of the expected loss after it, found by a fine search.
    rates = np.linspace(0.0, 2.0 * float(weighed.max_learning_rate), 20_001)
    bend = mean @ hessian @ mean + np.trace(hessian @ covariance) / 5
    best = rates[np.argmin(-rates * (mean @ mean) + rates**2 / 2 * bend)]
    np.testing.assert_allclose(weighed.learning_rate(5), best, atol=rates[1])


def test_the_hessian_may_be_flat() -> None:
    """With H = 1 both scales are one."""
    tree = draws(1)
    tree = jax.tree.map(lambda x: x[0], tree)
    small, big = micro_square_norms(tree)
    weighed = curvature_noise_scale(tree, lambda v: v, MICRO)
    noise = gradient_noise_scale(small, big, MICRO, BATCH).noise_trace
    np.testing.assert_allclose(weighed.scale, noise / big, rtol=1e-5)
    np.testing.assert_allclose(weighed.max_learning_rate, 1.0, rtol=1e-6)


RECIPE = (measure_noise_scale(MICRO, BATCH, decay=0.98), aj.clip_gradient(0.1), aj.adamw(0.1))


@functools.cache
def measured() -> tuple[Any, Any]:
    tx = aj.compose(*RECIPE)

    def step(state: Any, micro: Any) -> Any:
        square, _ = micro_square_norms(micro)
        g = jax.tree.map(lambda x: x.mean(0), micro)
        updates, state = tx.update(g, state, PARAMS, micro_square_norm=square)
        return state, updates

    return jax.jit(lambda state, g: jax.lax.scan(step, state, g))(tx.init(PARAMS), draws(STEPS))


def test_the_meter_averages_both() -> None:
    state, _ = measured()
    small, big = jax.vmap(micro_square_norms)(draws(STEPS))
    one = gradient_noise_scale(small, big, MICRO, BATCH)
    weights = 0.98 ** np.arange(STEPS)[::-1]
    found = read_noise_scale(state)
    for kept, each in zip(found, one, strict=True):
        np.testing.assert_allclose(kept, np.average(each, weights=weights), rtol=1e-4)
    np.testing.assert_allclose(found.scale, NOISE / SIGNAL, rtol=0.25)


def test_the_meter_leaves_every_step_to_the_bit() -> None:
    _, updates = measured()
    bare = aj.compose(*RECIPE[1:])

    def step(state: Any, micro: Any) -> Any:
        updates, state = bare.update(jax.tree.map(lambda x: x.mean(0), micro), state, PARAMS)
        return state, updates

    scanned = jax.jit(lambda state, g: jax.lax.scan(step, state, g))
    assert_equal(updates, scanned(bare.init(PARAMS), draws(STEPS))[1])


def test_multi_steps_tells_the_norms() -> None:
    """Micro-gradients one by one give the numbers of whole steps; a skipped one does not count."""
    given = jax.tree.map(lambda x: x[:3].reshape(12, -1), draws(STEPS))
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        multi = optax.MultiSteps(
            aj.compose(*RECIPE), BATCH // MICRO, should_skip_update_fn=optax.skip_not_finite
        )
        tx = with_micro_norms(multi)
        step, state = jax.jit(tx.update), tx.init(PARAMS)
        for i in range(12):
            if i == 6:
                _, state = step(jax.tree.map(lambda x: x + jnp.nan, PARAMS), state, PARAMS)
            _, state = step(jax.tree.map(lambda x, i=i: x[i], given), state, PARAMS)
    small, big = jax.vmap(micro_square_norms)(jax.tree.map(lambda x: x[:3], draws(STEPS)))
    one = gradient_noise_scale(small, big, MICRO, BATCH)
    weights = 0.98 ** np.array([2.0, 1.0, 0.0])
    for kept, each in zip(read_noise_scale(state), one, strict=True):
        np.testing.assert_allclose(kept, np.average(each, weights=weights), rtol=1e-4)
    assert float(state.total) == 0


@pytest.mark.devices
def test_over_devices() -> None:
    """One micro-batch a device: the local norms averaged by pmean."""
    micro = jax.tree.map(lambda x: x[0], draws(STEPS))
    tx = aj.compose(*RECIPE)

    def step(g: Any) -> Any:
        local = jax.tree.map(lambda x: x[0], g)
        square = jax.lax.pmean(optax.tree.norm(local, squared=True), "data")
        mean = jax.lax.pmean(local, "data")
        return tx.update(mean, tx.init(PARAMS), PARAMS, micro_square_norm=square)[1]

    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[: BATCH // MICRO]), ("data",))
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(step, mesh=mesh, in_specs=spec("data"), out_specs=spec())
    state = jax.jit(mapped)(micro)
    expected = gradient_noise_scale(*micro_square_norms(micro), MICRO, BATCH)
    assert_close(tuple(read_noise_scale(state)), tuple(expected), rtol=1e-4)


def test_what_is_not_finite_is_left_out() -> None:
    tx = measure_noise_scale(1, 2)
    state = tx.init(PARAMS)
    assert tuple(map(float, read_noise_scale(state))) == (0.0, 0.0)
    assert np.isinf(read_noise_scale(state).scale)
    g = jax.tree.map(jnp.ones_like, PARAMS)
    _, state = tx.update(g, state, micro_square_norm=jnp.float32(4.0))
    _, after = tx.update(g, state, micro_square_norm=jnp.float32(jnp.inf))
    assert_equal(tuple(after.memory), tuple(state.memory))
    assert_close(tuple(read_noise_scale(after)), (2.0, 2.0), rtol=1e-5)


def test_a_checkpoint_goes_with_and_without() -> None:
    bare = aj.compose(*RECIPE[1:])
    state, report = aj.migrate_state(bare.init(PARAMS), aj.compose(*RECIPE), PARAMS)
    assert all(name.startswith("stages/measure_noise_scale/") for name in report.started)
    assert_equal(aj.migrate_state(state, bare, PARAMS)[0], bare.init(PARAMS))


def test_errors() -> None:
    with pytest.raises(ValueError, match="big_batch must be a whole number >= 9, got 8"):
        measure_noise_scale(8, 8)
    with pytest.raises(ValueError, match="decay must be a number"):
        measure_noise_scale(1, 2, decay=1.0)
    tx = aj.compose(*RECIPE)
    for extra in ({}, {"micro_square_norm": jnp.ones(4)}):
        with pytest.raises(ValueError, match="measure_noise_scale needs micro_square_norm"):
            tx.update(PARAMS, tx.init(PARAMS), PARAMS, **extra)
    with pytest.raises(ValueError, match="must hold one measure_noise_scale"):
        read_noise_scale(aj.adamw(0.1).init(PARAMS))
    with pytest.raises(TypeError, match=r"takes an optax.MultiSteps\(...\)"):
        with_micro_norms(tx)  # type: ignore[arg-type]
    for few, many in (
        (8, 8),
        (np.int32(8), np.int32(8)),
        (jnp.int32(8), jnp.int32(8)),
        (np.array([4, 8]), 8),
        (np.array([4, 9]), np.array([8, 8])),
    ):
        with pytest.raises(ValueError, match="big_batch must be > small_batch everywhere, got 8"):
            gradient_noise_scale(1.0, 1.0, few, many)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        multi = with_micro_norms(optax.MultiSteps(tx, 3))
        with pytest.raises(ValueError, match=r"3 micro-batches of small_batch=4 .* of 12, not big"):
            multi.update(PARAMS, multi.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="gradients must be stacked"):
        micro_square_norms({"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match="measure_noise_scale takes gradient, but"):
        aj.compose(aj.adamw(0.1), measure_noise_scale(1, 2))
