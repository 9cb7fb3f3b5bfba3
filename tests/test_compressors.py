"""Compressors are right in the mean or contract, and nothing that they leave out is lost."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random

from adamw_jax import communication as comm
from tests.catalogue import assert_equal
from tests.communication_table import (
    CONTRACTING,
    PARAMS,
    TABLE,
    UNBIASED,
    WORKERS,
    arrays,
    every,
    simulated,
    stage_of,
)

pytestmark = pytest.mark.quick


@functools.cache
def sent(name: str) -> Any:
    """``(keys, x) -> (result, C(x))`` of one worker, for each key."""

    def one(key: jax.Array, x: jax.Array) -> Any:
        compressor = TABLE[name].make
        memory = compressor.start and compressor.start(key, x)
        told = compressor.exchange(x, memory, key, comm.Wire(("data",)))
        return told.mean, told.sent

    def each(key: jax.Array, x: jax.Array) -> Any:
        alone = jax.vmap(one, axis_name="data", in_axes=(None, 0))
        return jax.tree.map(lambda y: y[0], alone(key, x[None]))

    return jax.jit(jax.vmap(each, (0, None)))


def distances(name: str, x: jax.Array, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """|x - C(x)|^2 / |x|^2 for each draw, and the results."""
    results, own = sent(name)(random.split(random.key(3), draws), x)
    np.testing.assert_allclose(results, own, rtol=1e-5, atol=1e-6)  # the mean over one worker
    error = np.sum((np.asarray(own) - np.asarray(x)) ** 2, axis=tuple(range(1, own.ndim)))
    return error / np.sum(np.asarray(x) ** 2), np.asarray(results)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CONTRACTING)
def test_contraction(name: str) -> None:
    x = arrays(1)["kernel"][0]
    found, _ = distances(name, x, 20)
    assert np.all(found <= 1 - TABLE[name].loss(x.size) + 1e-6)
    assert np.all(found > 1e-4)


@pytest.mark.slow
def test_random_k_contracts_in_the_mean() -> None:
    x = arrays(1)["kernel"][0]
    found, _ = distances("random_k", x, 2000)
    assert abs(found.mean() - (1 - 21 / 108)) < 0.01


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_and_no_noisier_than_the_paper_says(name: str) -> None:
    x, draws = arrays(1)["kernel"][0], 4000
    found, results = distances(name, x, draws)
    limit = TABLE[name].noise(x.size)
    assert 0.02 * limit < found.mean() <= 1.02 * limit
    off = np.sum((results.mean(axis=0) - x) ** 2) / np.sum(x**2)
    assert off < 2 * found.mean() / draws  # 1 in the mean, if there is no bias


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", CONTRACTING)
def test_nothing_is_lost(name: str) -> None:
    """What was used so far, and what is still in the memories, is the sum of all gradients."""
    state, step = simulated(stage_of(TABLE[name].make))
    used, given = (jax.tree.map(jnp.zeros_like, PARAMS) for _ in range(2))
    for seed in range(5):
        gradient = arrays(seed)
        update, state = step(gradient, state, PARAMS)
        assert all(np.array_equal(u, jnp.broadcast_to(u[:1], u.shape)) for u in update.values())
        used = jax.tree.map(lambda a, u: a + u[0], used, update)
        given = jax.tree.map(lambda a, g: a + jnp.mean(g, axis=0), given, gradient)
    left = jax.tree.map(lambda e: jnp.mean(e[:, 0], axis=0), state.memory.error)
    for k in PARAMS:
        np.testing.assert_allclose(used[k] + left[k], given[k], rtol=1e-4, atol=1e-4, err_msg=k)
    assert float(jnp.max(jnp.abs(left["kernel"]))) > 1e-2


def test_majority_vote() -> None:
    """Signs of most workers; 0 for a tie, and where all gradients are 0."""
    gradient = arrays(4)
    state, step = simulated(stage_of(comm.majority_vote()))
    update, _ = step(gradient, state, PARAMS)
    for k, g in gradient.items():
        np.testing.assert_array_equal(update[k][0], np.sign(np.sum(np.sign(g), axis=0)), k)
    state, step = simulated(stage_of(comm.majority_vote(), 3), 3)
    signs = []
    for _ in range(40):
        update, state = step(arrays(4, 3), state, PARAMS)
        signs.append(float(update["zero"][0, 0, 0]))
    assert set(signs) == {1.0, -1.0}
    assert abs(sum(signs)) < 20


def test_one_bit_keeps_the_means_of_columns() -> None:
    x = arrays(1)["kernel"][0]
    _, results = distances("one_bit", x, 1)
    for column, got in zip(np.asarray(x).T, results[0].T, strict=True):
        up = column >= 0
        np.testing.assert_allclose(got[up], column[up].mean(), rtol=1e-5)
        np.testing.assert_allclose(got[~up], column[~up].mean(), rtol=1e-5)


def test_power_sgd_is_exact_on_low_rank() -> None:
    """At once if the mean has the rank; else it becomes the best approximation."""
    rng = np.random.default_rng(0)
    thin = [jnp.asarray(rng.normal(size=(WORKERS, n, 2))) for n in (30, 20)]
    common = jnp.einsum("wir,wjr->wij", thin[0][:1], thin[1])  # one column space
    start = jax.vmap(stage_of(comm.power_sgd(2)).init, axis_name="data", in_axes=None, axis_size=8)
    step = jax.jit(jax.vmap(stage_of(comm.power_sgd(2)).update, axis_name="data"))
    update, _ = step(common, start(common[0]))
    np.testing.assert_allclose(update[0], jnp.mean(common, axis=0), rtol=1e-4, atol=1e-5)
    full = jnp.asarray(rng.normal(size=(1, 30, 20)) + 3 * common[:1]) + jnp.zeros((WORKERS, 1, 1))
    tx = stage_of(comm.power_sgd(2), error_feedback=False)
    state = jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=8)(full[0])
    plain = jax.jit(jax.vmap(tx.update, axis_name="data"))
    for _ in range(30):
        update, state = plain(full, state)
    u, s, v = np.linalg.svd(full[0], full_matrices=False)
    np.testing.assert_allclose(update[0], (u[:, :2] * s[:2]) @ v[:2], rtol=1e-3, atol=1e-3)


@every
def test_bytes(name: str) -> None:
    row, array = TABLE[name], jnp.zeros((64, 64))
    assert comm.payload_bytes(row.make, array) == row.bytes
    gathered = name.split(",")[0] not in ("random_k", "power_sgd")
    per_payload = 7 if gathered else 1.75
    assert comm.received_bytes(row.make, array, 8) == per_payload * row.bytes
    assert comm.payload_bytes(None, array) == 4 * 64 * 64


def test_draws_differ_between_steps_workers_and_leaves() -> None:
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64)}
    tx = stage_of(comm.terngrad(), 2)
    step = jax.jit(jax.vmap(tx.update, axis_name="data"))
    state = jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=2)(params)
    same = jax.tree.map(lambda p: jnp.full((2, 64), 0.5).at[:, 0].set(1.0), params)
    first, state = step(same, state)
    second, _ = step(same, state)
    found = [first["a"][0], first["b"][0], second["a"][0]]
    assert not any(np.array_equal(x, y) for x, y in zip(found, found[1:] + found[:1], strict=True))
    assert 0.5 in np.unique(first["a"][0])  # one of two workers drew 1, the other 0


def test_complex_empty_and_narrow_leaves() -> None:
    """A complex leaf is its two parts; an empty one stays; a narrow one keeps its dtype."""
    params = {
        "complex": jnp.zeros((4, 3), jnp.complex64),
        "empty": jnp.zeros((0, 3)),
        "narrow": jnp.zeros(6, jnp.bfloat16),
    }
    for compressor in (comm.one_bit(), comm.top_k(1.0)):
        tx = stage_of(compressor, 2)
        state = jax.jit(jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=2))(params)
        gradient = jax.tree.map(lambda p: jnp.ones((2, *p.shape), p.dtype), params)
        gradient["complex"] *= jnp.complex64(1 + 2j)
        update, state = jax.jit(jax.vmap(tx.update, axis_name="data"))(gradient, state)
        assert_equal(update, gradient)
        assert state.memory.error["narrow"].dtype == jnp.float32
