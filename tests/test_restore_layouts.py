"""A state comes back from disk in the layout of docs/sharding.md that it is asked for."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax import communication as comm
from adamw_jax.state import restore_checkpoint, save_checkpoint
from tests.catalogue import assert_equal

pytestmark = [pytest.mark.devices, pytest.mark.quick]

PARAMS = {"w": jnp.linspace(-1, 1, 128).reshape(16, 8), "b": jnp.ones(3)}
TX = aj.skip_bad_steps(aj.compose(aj.adamw(0.1), aj.lookahead()))


@functools.cache
def place(spec: P, kind: str = "device") -> NamedSharding:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, spec, memory_kind=kind)


def assert_restored(got: Any, state: Any, wanted: Any) -> None:
    assert_equal(jax.device_get(got), jax.device_get(state))
    for x, there in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert x.sharding.is_equivalent_to(there, x.ndim)
        assert x.sharding.memory_kind == there.memory_kind


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_a_cut_state_of_whole_parameters(tmp_path: pathlib.Path, kind: str) -> None:
    """ZeRO-1; without ``shardings`` each device would hold all of it."""
    params = jax.device_put(PARAMS, place(P()))
    wanted = aj.state_shardings(TX, params, place(P("data"), kind))
    state = jax.device_put(TX.init(params), wanted)
    save_checkpoint(tmp_path, 1, TX, params, state)
    back = restore_checkpoint(tmp_path, TX, params, shardings=wanted)
    assert_restored(back.state, state, wanted)
    assert back.params["w"].sharding.is_fully_replicated
    whole = restore_checkpoint(tmp_path, TX, params).state
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(whole))
    edited = aj.adamw(0.1)
    by: dict[str, Any] = {"saved_by": TX, "shardings": wanted}
    moved = restore_checkpoint(tmp_path, edited, params, **by).state
    expected, _ = aj.migrate_state(state, edited, params)
    assert_restored(moved, expected, jax.tree.map(lambda x: x.sharding, expected))
    kept = moved.stages["estimate_moments"].first.average["w"].sharding
    assert kept.is_equivalent_to(place(P("data"), kind), 2)
    assert kept.memory_kind == kind


def test_the_memories_of_workers(tmp_path: pathlib.Path) -> None:
    tx = aj.compose(comm.compressed_mean(comm.one_bit(), "data", workers=8), aj.adamw(0.1))
    specs = comm.worker_specs(jax.eval_shape(tx.init, PARAMS), "data")
    wanted = jax.tree.map(lambda spec: place(spec), specs)
    state = jax.tree.map(jnp.ones_like, jax.device_put(tx.init(PARAMS), wanted))
    save_checkpoint(tmp_path, 1, tx, PARAMS, state)
    back = restore_checkpoint(tmp_path, tx, PARAMS, shardings=wanted)
    assert_restored(back.state, state, wanted)
    assert back.state.stages["compressed_mean"].error["w"].sharding.spec[0] == "data"


def test_a_row_of_everything_for_each_worker(tmp_path: pathlib.Path) -> None:
    """A run of ``local_sgd``, whose counts and hyperparameters have rows, too."""
    tx = aj.compose(aj.sgdw(0.1), comm.local_sgd(4, "data"))
    params = jax.device_put(jax.tree.map(lambda p: jnp.stack([p] * 8), PARAMS), place(P("data")))
    state = jax.device_put(jax.vmap(tx.init)(params), place(P("data")))
    save_checkpoint(tmp_path, 1, tx, params, state)
    in_rows = optax.GradientTransformation(jax.vmap(tx.init), tx.update)
    back = restore_checkpoint(tmp_path, in_rows, params, shardings=place(P("data")))
    rows = jax.tree.map(lambda _: place(P("data")), (params, state))
    assert_restored((back.params, back.state), (params, state), rows)


def test_what_does_not_fit_is_refused(tmp_path: pathlib.Path) -> None:
    save_checkpoint(tmp_path, 1, TX, PARAMS, TX.init(PARAMS))
    with pytest.raises(
        ValueError, match=r"(?s)shardings does not fit the state.*Give what state_shar"
    ):
        restore_checkpoint(tmp_path, TX, PARAMS, shardings={"w": place(P())})
    with pytest.raises(TypeError, match=r"must hold shardings of jax.sharding, got P"):
        restore_checkpoint(tmp_path, TX, PARAMS, shardings=P("data"))
