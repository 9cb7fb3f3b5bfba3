"""Compressed means and local SGD in training: bad gradients, wrong places, checkpoints."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax, random

import adamw_jax as aj
from adamw_jax import communication as comm
from adamw_jax.lab.models import mlp
from adamw_jax.lab.tasks import get_task
from tests.catalogue import assert_equal
from tests.communication_table import (
    PARAMS,
    TABLE,
    WORKERS,
    arrays,
    every,
    simulated,
    stage_of,
)

pytestmark = pytest.mark.quick


@pytest.mark.sample(2)
@every
def test_a_bad_gradient_poisons_nothing(name: str) -> None:
    """One bad element on one worker, or an overflow, stops all of them, and the memories stay."""
    state, step = simulated(stage_of(TABLE[name].make))
    good = arrays(2)
    _, state = step(arrays(1), state, PARAMS)
    wrong = [good["kernel"].at[5, 3, 3].set(x) for x in (jnp.nan, jnp.inf, -jnp.inf)]
    if name != "majority_vote":  # which sends no sizes
        wrong.append(jnp.full_like(good["kernel"], 3e38))
    for kernel in wrong:
        update, after = step(good | {"kernel": kernel}, state, PARAMS)
        assert all(np.all(np.isnan(u)) for u in update.values())
        assert_equal(after.memory, state.memory)


def loss_fn(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    hidden = jnp.tanh(x @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


@functools.cache
def data() -> Any:
    """Loss, parameters and the data of each worker."""
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(WORKERS, 32, 8)))
    y = jnp.sin(x[..., :1]) + 0.5 * x[..., 1:2] * x[..., 2:3]
    params = {
        "in": jnp.asarray(rng.normal(size=(8, 32)) / 3),
        "bias": jnp.zeros(32),
        "out": jnp.asarray(rng.normal(size=(32, 1)) / 6),
    }
    return loss_fn, params, (x, y)


@functools.cache
def lab() -> Any:
    """The same of the network and the data of the lab."""
    task = get_task("mnist1d")
    network = mlp(task.features, task.classes, hidden=32)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = network.apply(params, batch[0])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

    x, y = (
        z[: WORKERS * 32].reshape(WORKERS, 32, *z.shape[1:])
        for z in (task.train.inputs, task.train.labels)
    )
    return loss, jax.tree.map(jnp.asarray, network.init(0)), (jnp.asarray(x), jnp.asarray(y))


def trained(tx: Any, problem: Any = data, steps: int = 300) -> float:
    """The loss after a run in which each worker has its own data."""
    loss_fn, params, batches = problem()

    def worker(batch: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = lax.scan(step, (params, tx.init(params)), length=steps)
        return end

    ends = jax.jit(jax.vmap(worker, axis_name="data"))(batches)
    end = jax.tree.map(lambda x: jnp.mean(x, axis=0), ends)
    return float(jnp.mean(jax.vmap(loss_fn, (None, 0))(end, batches)))


def average() -> Any:
    return optax.stateless(lambda g, p: jax.tree.map(lambda x: lax.pmean(x, "data"), g))


@functools.cache
def uncompressed(problem: Any = data, steps: int = 300) -> float:
    return trained(optax.chain(average(), aj.sgdw(0.1, momentum=None)), problem, steps)


@pytest.mark.sample(2)
@pytest.mark.parametrize("problem", [data, lab])
@every
def test_convergence(name: str, problem: Any) -> None:
    """Both learn nearly as far as with the plain mean, from 0.43 to 0.09 and from 2.78 to 0.61."""
    row = TABLE[name]
    assert uncompressed(problem) < {data: 0.1, lab: 0.65}[problem]
    end = trained(aj.compose(stage_of(row.make), aj.sgdw(row.rate, momentum=None)), problem)
    assert end < {data: 1.15, lab: 1.05}[problem] * uncompressed(problem)


@pytest.mark.sample(1)
@pytest.mark.parametrize("problem", [data, lab])
def test_averages_of_each_step_are_steps_of_the_mean(problem: Any) -> None:
    tx = aj.compose(aj.sgdw(0.1, momentum=None), comm.local_sgd(1, "data"))
    np.testing.assert_allclose(trained(tx, problem, 30), uncompressed(problem, 30), rtol=1e-5)


@pytest.mark.sample(2)
@pytest.mark.parametrize("problem", [data, lab])
@pytest.mark.parametrize("every", [4, comm.post_local(150, 4)], ids=["local", "post-local"])
def test_local_sgd(every: Any, problem: Any) -> None:
    """It learns nearly as far as the plain mean, with averages in every fourth step."""
    end = trained(aj.compose(aj.sgdw(0.1, momentum=None), comm.local_sgd(every, "data")), problem)
    assert end < {data: 1.15, lab: 1.1}[problem] * uncompressed(problem)


def test_local_sgd_averages_when_it_is_time() -> None:
    tx = aj.compose(aj.sgdw(0.1, momentum=None), comm.local_sgd(comm.post_local(3, 4), "data"))
    step = jax.jit(jax.vmap(tx.update, axis_name="data"))
    params: Any = {"a": jnp.zeros((WORKERS, 3))}
    state = jax.vmap(tx.init)(params)
    together = []
    for seed in range(12):
        gradient = {"a": random.normal(random.key(seed), (WORKERS, 3))}
        updates, state = step(gradient, state, params)
        params = optax.apply_updates(params, updates)
        together.append(bool(jnp.max(jnp.ptp(params["a"], axis=0)) < 1e-6))
    assert [i for i, same in enumerate(together) if same] == [0, 1, 2, 6, 10]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stage_of(comm.qsgd(), error_feedback=True), "error_feedback=True does not fit"),
        (lambda: stage_of("one_bit"), r"compressor must be a Compressor.*'one_bit'"),
        (lambda: stage_of(comm.qsgd(), 0), "workers must be a whole number >= 1, got 0"),
        (lambda: comm.qsgd(3), "bits must be 2, 4 or 8, got 3"),
        (lambda: comm.top_k(0.0), "fraction must be a number > 0 and <= 1, got 0"),
        (lambda: comm.power_sgd(0), "rank must be a whole number >= 1, got 0"),
        (lambda: comm.terngrad(-1.0), "clip must be a number > 0, got -1"),
    ],
)
def test_wrong_arguments(call: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_wrong_places() -> None:
    tx = stage_of(comm.top_k(), 4)
    with pytest.raises(ValueError, match=r"is not around this update.*jax.shard_map"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    state, step = simulated(tx)
    with pytest.raises(ValueError, match=r"workers=4, but there are 8.*give 8"):
        step(arrays(0), state, PARAMS)
    eight = stage_of(comm.top_k())
    outside = eight.init(PARAMS)
    with pytest.raises(ValueError, match=r"a worker got 8 rows.*worker_specs"):
        jax.vmap(eight.update, axis_name="data", in_axes=(0, None))(arrays(0), outside)
    local = aj.compose(aj.sgdw(0.1), comm.local_sgd(4, "data"))
    with pytest.raises(ValueError, match="is not around this update"):
        local.update(PARAMS, local.init(PARAMS), PARAMS)


def test_the_state_of_another_number_of_workers() -> None:
    state = stage_of(comm.power_sgd(2), 4).init(PARAMS)
    errors = jax.tree.map(lambda e: jnp.arange(float(e.size)).reshape(e.shape), state.memory.error)
    state = state._replace(memory=state.memory._replace(error=errors))
    other = comm.resize_workers(state, 2)
    shapes = jax.eval_shape(stage_of(comm.power_sgd(2), 2).init, PARAMS)
    assert jax.tree.structure(other) == jax.tree.structure(shapes)
    trees = (other.memory.error, shapes.memory.error, errors)
    for new, like, old in zip(*map(jax.tree.leaves, trees), strict=True):
        assert new.shape == like.shape
        np.testing.assert_allclose(jnp.mean(new, axis=0), jnp.mean(old, axis=0), rtol=1e-5)


def test_what_is_shown_and_mapped() -> None:
    """The compressor has its name; ``map_params`` reaches the memory of each parameter."""
    tx = aj.compose(stage_of(comm.power_sgd(2), 4), aj.sgdw(0.1))
    assert "compressed_mean(compressor=power_sgd)" in repr(tx)
    state = tx.init(PARAMS)
    doubled: Any = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert jax.tree.structure(doubled) == jax.tree.structure(state)
    assert np.all(doubled.stages["compressed_mean"].error["kernel"] == 1)


def test_checkpoints_gain_and_lose_the_stage() -> None:
    plain = aj.adamw(1e-3)
    tx = aj.compose(stage_of(comm.top_k(), 4), plain)
    saved = jax.jit(plain.update)(PARAMS, plain.init(PARAMS), PARAMS)[1]
    more: Any = aj.migrate_state(saved, tx, PARAMS)[0]
    assert more.stages["compressed_mean"].error["kernel"].shape == (4, 12, 9)
    assert_equal(aj.migrate_state(more, plain, PARAMS)[0], saved)
