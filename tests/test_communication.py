"""Compressed means: right in the mean or contracting, nothing lost, as many bytes as counted."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax, random
from jax.sharding import AxisType, PartitionSpec as P

import adamw_jax as aj
from adamw_jax import communication as comm
from tests.catalogue import assert_equal

WORKERS = 8
SHAPES = {"bias": (7,), "kernel": (12, 9), "scale": ()}


@dataclasses.dataclass(frozen=True)
class Row:
    """A compressor and what is known of it.

    Attributes:
      make: the compressor.
      loss: for contracting ones, ``d -> c`` with |x - C(x)|^2 <= (1 - c) |x|^2 for d elements.
      noise: for unbiased ones, ``d -> w`` with E|x - C(x)|^2 <= w |x|^2.
      bytes: payload for a float32 array of (64, 64).
      rate: learning rate of the run that is compared with the uncompressed one.
    """

    make: comm.Compressor
    bytes: int
    loss: Any = None
    noise: Any = None
    rate: float = 0.1


def quantized(d: int, levels: int) -> float:
    return min(d / levels**2, d**0.5 / levels)


TABLE = {
    "majority_vote": Row(comm.majority_vote(), 512, rate=0.01),
    "scaled_sign": Row(comm.scaled_sign(), 512 + 4, loss=lambda d: 1 / d),
    "one_bit": Row(comm.one_bit(), 512 + 2 * 64 * 4, loss=lambda d: 1 / d),
    "qsgd": Row(comm.qsgd(), 2048 + 8 * 4, noise=lambda d: quantized(d, 7)),
    "qsgd, 2 bits": Row(comm.qsgd(2, 10), 1024 + 410 * 4, noise=lambda d: quantized(10, 1)),
    "qsgd, 8 bits": Row(comm.qsgd(8), 4096 + 8 * 4, noise=lambda d: quantized(d, 127)),
    "terngrad": Row(comm.terngrad(), 1024 + 4, noise=lambda d: d**0.5),
    "top_k": Row(comm.top_k(0.2), 819 * (4 + 2), loss=lambda d: max(1, int(0.2 * d)) / d),
    "random_k": Row(comm.random_k(0.2), 819 * 4, loss=lambda d: 0.0),
    "random_k, unbiased": Row(
        comm.random_k(0.25, unbiased=True), 1024 * 4, noise=lambda d: d / max(1, int(d / 4)) - 1
    ),
    "power_sgd": Row(comm.power_sgd(2), 2 * 2 * 64 * 4, loss=lambda d: 0.0),
}
every = pytest.mark.parametrize("name", TABLE)
CONTRACTING = [name for name, row in TABLE.items() if row.make.contracts]
UNBIASED = [name for name, row in TABLE.items() if row.noise]


def arrays(seed: int, workers: int = WORKERS) -> Any:
    """Gradients of all workers, whose elements are of different sizes; one leaf is 0."""
    rng = np.random.default_rng(seed)
    tree = {k: jnp.asarray(rng.normal(size=(workers, *s)) ** 3) for k, s in SHAPES.items()}
    return tree | {"zero": jnp.zeros((workers, 5, 5))}


PARAMS = jax.tree.map(lambda x: x[0], arrays(0))


def simulated(tx: Any, workers: int = WORKERS) -> tuple[Any, Any]:
    """The first state and the update of all workers, as one compiled step on one device."""
    start = jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=workers)
    step = jax.vmap(tx.update, axis_name="data", in_axes=(0, 0, None))
    return start(PARAMS), jax.jit(step)


def stage_of(compressor: Any, workers: int = WORKERS, **options: Any) -> Any:
    return comm.compressed_mean(compressor, "data", workers, **options)


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


@pytest.mark.parametrize("name", CONTRACTING)
def test_contraction(name: str) -> None:
    x = arrays(1)["kernel"][0]
    found, _ = distances(name, x, 20)
    assert np.all(found <= 1 - TABLE[name].loss(x.size) + 1e-6)
    assert np.all(found > 1e-4)


def test_random_k_contracts_in_the_mean() -> None:
    x = arrays(1)["kernel"][0]
    found, _ = distances("random_k", x, 2000)
    assert abs(found.mean() - (1 - 21 / 108)) < 0.01


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_and_no_noisier_than_the_paper_says(name: str) -> None:
    x, draws = arrays(1)["kernel"][0], 4000
    found, results = distances(name, x, draws)
    limit = TABLE[name].noise(x.size)
    assert 0.02 * limit < found.mean() <= 1.02 * limit
    off = np.sum((results.mean(axis=0) - x) ** 2) / np.sum(x**2)
    assert off < 2 * found.mean() / draws  # 1 in the mean, if there is no bias


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


@every
def test_a_bad_gradient_poisons_nothing(name: str) -> None:
    """One NaN on one worker, or an overflow, stops all of them, and the memories stay."""
    tx = stage_of(TABLE[name].make)
    state, step = simulated(tx)
    _, state = step(arrays(1), state, PARAMS)
    bad = arrays(2)
    for wrong in (jnp.nan, jnp.inf, -jnp.inf):
        bad["kernel"] = bad["kernel"].at[5, 3, 3].set(wrong)
        update, after = step(bad, state, PARAMS)
        assert all(np.all(np.isnan(u)) for u in update.values())
        assert_equal(after.memory, state.memory)


def loss_fn(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    hidden = jnp.tanh(x @ params["in"] + params["bias"][None])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


@functools.cache
def data() -> Any:
    rng = np.random.default_rng(5)
    x = jnp.asarray(rng.normal(size=(WORKERS, 32, 8)))
    y = jnp.sin(x[..., :1]) + 0.5 * x[..., 1:2] * x[..., 2:3]
    params = {
        "in": jnp.asarray(rng.normal(size=(8, 32)) / 3),
        "bias": jnp.zeros(32),
        "out": jnp.asarray(rng.normal(size=(32, 1)) / 6),
    }
    return params, (x, y)


def trained(tx: Any, steps: int = 300) -> float:
    """The loss after a run in which each worker has its own data."""
    params, batches = data()

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
def uncompressed() -> float:
    return trained(optax.chain(average(), aj.sgdw(0.1, momentum=None)))


@pytest.mark.sample(4)
@every
def test_convergence(name: str) -> None:
    """A small model learns nearly as far as with the plain mean, from 0.43 to 0.09."""
    row = TABLE[name]
    assert uncompressed() < 0.1
    end = trained(aj.compose(stage_of(row.make), aj.sgdw(row.rate, momentum=None)))
    assert end < 1.15 * uncompressed()


@pytest.mark.parametrize("every", [1, 4])
def test_local_sgd(every: int) -> None:
    """With an average each step SGD takes the steps of the mean gradient; else it learns as far."""
    end = trained(aj.compose(aj.sgdw(0.1, momentum=None), comm.local_sgd(every, "data")))
    np.testing.assert_allclose(end, uncompressed(), rtol=1e-3 if every == 1 else 0.2)


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


def test_draws_differ_between_steps_workers_and_leaves() -> None:
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64)}
    tx = stage_of(comm.terngrad(), 2)
    step = jax.vmap(tx.update, axis_name="data")
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
        state = jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=2)(params)
        gradient = jax.tree.map(lambda p: jnp.ones((2, *p.shape), p.dtype), params)
        gradient["complex"] *= jnp.complex64(1 + 2j)
        update, state = jax.vmap(tx.update, axis_name="data")(gradient, state)
        assert_equal(update, gradient)
        assert state.memory.error["narrow"].dtype == jnp.float32


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
    errors = jax.tree.map(lambda e: random.normal(random.key(0), e.shape), state.memory.error)
    state = state._replace(memory=state.memory._replace(error=errors))
    other = comm.resize_workers(state, 2)
    shapes = jax.eval_shape(stage_of(comm.power_sgd(2), 2).init, PARAMS)
    assert jax.tree.structure(other) == jax.tree.structure(shapes)
    trees = (other.memory.error, shapes.memory.error, errors)
    for new, like, old in zip(*map(jax.tree.leaves, trees), strict=True):
        assert new.shape == like.shape
        np.testing.assert_allclose(jnp.mean(new, axis=0), jnp.mean(old, axis=0), rtol=1e-5)


def test_checkpoints_gain_and_lose_the_stage() -> None:
    plain = aj.adamw(1e-3)
    tx = aj.compose(stage_of(comm.top_k(), 4), plain)
    saved = jax.jit(plain.update)(PARAMS, plain.init(PARAMS), PARAMS)[1]
    more: Any = aj.migrate_state(saved, tx, PARAMS)[0]
    assert more.stages["compressed_mean"].error["kernel"].shape == (4, 12, 9)
    assert_equal(aj.migrate_state(more, plain, PARAMS)[0], saved)


mesh = functools.cache(lambda: jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)))


def on_devices(tx: Any, check_vma: bool = True) -> tuple[Any, Any]:
    """The first state, and a compiled and donated step of eight devices on their own gradients."""
    specs = comm.worker_specs(jax.eval_shape(tx.init, PARAMS), "data")
    start = jax.shard_map(tx.init, mesh=mesh(), in_specs=P(), out_specs=specs, check_vma=check_vma)

    def step(gradient: Any, state: Any, params: Any) -> Any:
        return tx.update(jax.tree.map(lambda g: g[0], gradient), state, params)

    mapped = jax.shard_map(
        step,
        mesh=mesh(),
        in_specs=(P("data"), specs, P()),
        out_specs=(P(), specs),
        check_vma=check_vma,
    )
    return jax.jit(start)(PARAMS), jax.jit(mapped, donate_argnums=1)


@pytest.mark.devices
@pytest.mark.sample(4)
@pytest.mark.parametrize("check_vma", [True, False])
@every
def test_devices_do_as_simulated_workers_do(name: str, check_vma: bool) -> None:
    """With a clip and moments behind; by types the result is the same on all devices."""
    tx = aj.compose(stage_of(TABLE[name].make), aj.clip_gradient(1.0), aj.adamw(0.1))
    state, step = on_devices(tx, check_vma)
    theirs, simulation = simulated(tx)
    for seed in range(3):
        update, state = step(arrays(seed), state, PARAMS)
        wanted, theirs = simulation(arrays(seed), theirs, PARAMS)
        for k in PARAMS:
            np.testing.assert_allclose(update[k], wanted[k][0], rtol=1e-3, atol=1e-5, err_msg=k)
    error = state.stages["compressed_mean"].error
    if error is not None:
        assert error["scale"].sharding.spec == P("data")
        for k in PARAMS:
            other = theirs.stages["compressed_mean"].error[k][:, 0]
            np.testing.assert_allclose(error[k], other, rtol=1e-3, atol=1e-4, err_msg=k)


@pytest.mark.devices
@pytest.mark.optimized
@pytest.mark.sample(4)
@every
def test_the_counted_bytes_are_those_in_the_program(name: str) -> None:
    """What XLA's collectives get is the payload and the number that says that all is finite."""
    tx = stage_of(TABLE[name].make)
    state, step = on_devices(tx)
    text = step.lower(arrays(0), state, PARAMS).compile().as_text()
    sizes = {"f32": 4, "s32": 4, "u8": 1, "u16": 2, "u32": 4}
    found = 0
    collective = r" = (\([^)]*\)|\S+) (all-gather|all-reduce)(?:-start)?\("
    for types, operation in re.findall(collective, text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            size = sizes[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
            found += size // WORKERS if operation == "all-gather" else size
    assert found == comm.payload_bytes(TABLE[name].make, PARAMS) + 4


@pytest.mark.devices
def test_skip_bad_steps_around_and_behind() -> None:
    """Both keep parameters, moments and memories in a bad step, and agree on all devices."""
    stage, inner = stage_of(comm.one_bit()), aj.adamw(0.1)
    bad = arrays(2)
    bad["kernel"] = bad["kernel"].at[5, 3, 3].set(jnp.nan)
    guarded: Any = (
        aj.skip_bad_steps(aj.compose(stage, inner), axis_name="data"),
        optax.chain(stage, aj.skip_bad_steps(inner)),
    )
    for tx in guarded:
        state, step = on_devices(tx)
        _, state = step(arrays(1), state, PARAMS)
        before = jax.device_get(state)
        update, state = step(bad, state, PARAMS)
        assert not any(np.any(u) for u in update.values())
        assert int(aj.read_skips(state)["skipped"]) == 1
        kept = jax.device_get(state)
        for field in (".error", ".average"):
            assert_equal(*([x for name, x in named(s) if field in name] for s in (before, kept)))
            assert any(field in name for name, _ in named(kept))


def named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), x) for path, x in leaves]


@pytest.mark.devices
def test_a_gradient_that_was_summed_before_is_refused() -> None:
    """As ``jax.grad`` gives it for parameters that all devices share."""
    tx = stage_of(comm.one_bit())
    specs = comm.worker_specs(jax.eval_shape(tx.init, PARAMS), "data")
    step = jax.shard_map(tx.update, mesh=mesh(), in_specs=(P(), specs, P()), out_specs=(P(), specs))
    with pytest.raises(ValueError, match=r"has been summed over the workers.*pcast"):
        step(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.devices
@pytest.mark.optimized
def test_local_sgd_on_devices() -> None:
    """Parameters and state of each device lie in rows; what is sent stands in a branch."""
    tx = aj.compose(aj.adamw(0.1), comm.local_sgd(2, "data"))
    params: Any = jax.tree.map(lambda p: jnp.stack([p] * WORKERS), PARAMS)
    state = jax.vmap(tx.init)(params)

    def step(*rows: Any) -> Any:
        gradient, state, params = jax.tree.map(lambda x: x[0], rows)
        updates, state = tx.update(gradient, state, params)
        return jax.tree.map(lambda x: x[None], (optax.apply_updates(params, updates), state))

    mapped = jax.jit(
        jax.shard_map(step, mesh=mesh(), in_specs=P("data"), out_specs=P("data")), donate_argnums=1
    )
    text: Any = mapped.lower(arrays(0), state, params).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert "all-reduce" in text
    assert "all-reduce" not in entry
    simulation = jax.jit(jax.vmap(tx.update, axis_name="data"))
    theirs: Any = params
    other = jax.tree.map(jnp.copy, state)
    for seed in range(4):
        params, state = mapped(arrays(seed), state, params)
        updates, other = simulation(arrays(seed), other, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for k in PARAMS:
        np.testing.assert_allclose(params[k], theirs[k], rtol=1e-4, atol=1e-5)
        assert np.ptp(params[k], axis=0).max() < 1e-5
    shared = jax.shard_map(
        lambda g, s, p: tx.update(g, s, p)[0],
        mesh=mesh(),
        in_specs=(P("data"), P(), P()),
        out_specs=P("data"),
    )
    with pytest.raises(ValueError, match="each worker of local_sgd needs its own"):
        shared(arrays(0)["kernel"][0][:8], tx.init(jnp.zeros((1, 9))), jnp.zeros((1, 9)))
