"""On devices: as simulated, agreed on all, and as many bytes as counted."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import adamw_jax as aj
from adamw_jax import communication as comm
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

pytestmark = [pytest.mark.devices, pytest.mark.quick]

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


@pytest.mark.sample(2)
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


@pytest.mark.sample(2)
@pytest.mark.optimized
@every
def test_the_counted_bytes_are_those_in_the_program(name: str) -> None:
    """What XLA's collectives get is the payload and the number that says that all is finite."""
    tx = stage_of(TABLE[name].make)
    state, step = on_devices(tx)
    text = step.lower(arrays(0), state, PARAMS).compile().as_text()
    assert bytes_in(text) == comm.payload_bytes(TABLE[name].make, PARAMS) + 4


def bytes_in(text: str) -> int:
    """What a device gives to the collectives of a program."""
    sizes = {"f32": 4, "s32": 4, "u8": 1, "u16": 2, "u32": 4}
    collective = r" = (\([^)]*\)|\S+) (all-gather|all-reduce)(?:-start)?\("
    found = 0
    for types, operation in re.findall(collective, text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            size = sizes[dtype] * int(np.prod([int(n) for n in shape.split(",") if n]))
            found += size // WORKERS if operation == "all-gather" else size
    return found


@pytest.mark.slow
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
        state, compiled = on_devices(tx)
        step = compiled.lower(arrays(1), state, PARAMS).compile()
        sent = comm.payload_bytes(comm.one_bit(), PARAMS) + 4
        assert sent <= bytes_in(step.as_text()) < sent + 16  # once, and what the two agree on
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


def test_frozen_leaves_are_the_same_on_all_devices() -> None:
    """By type, although their gradients differ."""
    tx = aj.compose(stage_of(comm.top_k()), aj.adamw(0.1), frozen="kernel")
    state, step = on_devices(tx)
    update, _ = jax.eval_shape(step, arrays(0), state, PARAMS)
    assert update["kernel"].shape == PARAMS["kernel"].shape


def test_a_gradient_that_was_summed_before_is_refused() -> None:
    """As ``jax.grad`` gives it for parameters that all devices share."""
    tx = stage_of(comm.one_bit())
    specs = comm.worker_specs(jax.eval_shape(tx.init, PARAMS), "data")
    step = jax.shard_map(tx.update, mesh=mesh(), in_specs=(P(), specs, P()), out_specs=(P(), specs))
    with pytest.raises(ValueError, match=r"has been summed over the workers.*pcast"):
        step(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.optimized
def test_local_sgd_on_devices() -> None:
    """Parameters and state of each device lie in rows; what is sent stands in a branch."""
    tx = aj.compose(aj.sgdw(0.1), comm.local_sgd(2, "data"))
    params: Any = jax.tree.map(lambda p: jnp.stack([p] * WORKERS), PARAMS)
    state = jax.vmap(tx.init)(params)

    def step(*rows: Any) -> Any:
        gradient, state, params = jax.tree.map(lambda x: x[0], rows)
        updates, state = tx.update(gradient, state, params)
        return jax.tree.map(lambda x: x[None], (optax.apply_updates(params, updates), state))

    mapped = jax.jit(
        jax.shard_map(step, mesh=mesh(), in_specs=P("data"), out_specs=P("data")), donate_argnums=1
    )
    compiled: Any = mapped.lower(arrays(0), state, params).compile()
    text = compiled.as_text()
    entry = text[text.index("ENTRY") :]
    assert "all-reduce" in text
    assert "all-reduce" not in entry
    simulation = jax.jit(jax.vmap(tx.update, axis_name="data"))
    theirs: Any = params
    other = jax.tree.map(jnp.copy, state)
    for seed in range(4):
        params, state = compiled(arrays(seed), state, params)
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
        jax.eval_shape(shared, jnp.ones((8, 9)), tx.init(jnp.zeros((1, 9))), jnp.zeros((1, 9)))
