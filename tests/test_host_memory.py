"""Every function of a state takes one in host memory, and leaves it there."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax import communication as comm
from tests.catalogue import assert_equal

pytestmark = [pytest.mark.devices, pytest.mark.quick]

PARAMS = {"w": jnp.linspace(-1, 1, 512).reshape(64, 8), "b": jnp.ones(16)}
OPTAX, PLAIN = optax.adam(0.1), aj.adamw(0.1)
FULL = aj.dynamic_loss_scale(
    aj.skip_bad_steps(aj.probe(aj.clip_gradient(1.0), PLAIN, aj.lookahead()))
)
FROZEN = aj.compose(PLAIN, frozen="b")
EIGHT_BITS = aj.compose(aj.adamw(0.1, storage="8bit"), aj.lookahead())
PACKED = aj.pack_small_leaves(PLAIN)
METER = aj.compose(aj.diagnostics.measure_noise_scale(1, 2), PLAIN)
WORKERS = comm.compressed_mean(comm.one_bit(), "data", workers=8)

READ: dict[str, Any] = {
    "hyperparams": (FULL, aj.hyperparams),
    "in the mapping": (PLAIN, lambda state: state.hyperparams["b1"]),
    "read_skips": (FULL, aj.update.read_skips),
    "loss_scale": (FULL, aj.update.loss_scale),
    "read_probe": (FULL, aj.read_probe),
    "read_noise_scale": (METER, aj.diagnostics.read_noise_scale),
    "eval_params": (FULL, lambda state: aj.eval_params(state, PARAMS)),
}
CHANGE: dict[str, Any] = {
    "set_hyperparams": (FULL, lambda state: aj.set_hyperparams(state, b1=0.5)),
    "clear_hyperparams": (FULL, aj.clear_hyperparams),
    "migrate_state": (FULL, lambda state: aj.migrate_state(state, PLAIN, PARAMS)[0]),
    "another storage": (EIGHT_BITS, lambda state: aj.migrate_state(state, PLAIN, PARAMS)[0]),
    "thaw": (FROZEN, lambda state: aj.migrate_state(state, PLAIN, PARAMS, thaw=True)[0]),
    "from_optax": (OPTAX, lambda state: aj.from_optax(state, aj.skip_bad_steps(PLAIN), PARAMS)),
    "to_optax": (PLAIN, lambda state: aj.to_optax(state, OPTAX, PARAMS)),
    "restart_moments": (FULL, aj.moments.restart_moments),
    "restart_averages": (FULL, lambda state: aj.update.restart_averages(state, FULL, PARAMS)),
    "repack_state": (PLAIN, lambda state: aj.packing.repack_state(state, PACKED, PARAMS)),
    "resize_workers": (WORKERS, lambda state: comm.resize_workers(state, 4)),
}
OTHER = {
    "decode_state": "works inside a step",
    "encode_state": "works inside a step",
    "from_torch": "takes tensors or NumPy arrays",
    "learn_rates": "calls hyperparams and set_hyperparams",
    "worker_specs": "returns specs, which have no memory",
}


@functools.cache
def place(kind: str) -> NamedSharding:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, P(), memory_kind=kind)


def kinds(tree: Any) -> set[str]:
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", [*READ, *CHANGE])
def test_as_in_device_memory(name: str) -> None:
    tx, function = (READ | CHANGE)[name]
    state = jax.jit(tx.init, out_shardings=place("device"))(PARAMS)
    made = function(jax.device_put(state, place("pinned_host")))
    assert kinds(made) == {"device" if name in READ else "pinned_host"}
    assert_equal(made, function(state))


def test_the_tables_hold_all_of_them() -> None:
    """Those that take a state first, but for those in OTHER."""
    rooms = (aj, comm, aj.diagnostics, aj.moments, aj.packing, aj.state, aj.storage, aj.update)
    public = {name: getattr(room, name) for room in rooms for name in room.__all__}
    first = {
        name: next(iter(inspect.signature(function).parameters), None)
        for name, function in public.items()
        if inspect.isfunction(function)
    }
    taking = {name for name, argument in first.items() if argument in ("state", "saved")}
    assert {*OTHER} < taking
    assert taking - {*OTHER} <= {*READ, *CHANGE}


def test_in_a_compiled_step() -> None:
    """Where shapes and memory are known, but not the values."""
    host, device = place("pinned_host"), place("device")
    state = jax.device_put(jax.jit(PLAIN.init, out_shardings=device)(PARAMS), host)
    pinned = jax.jit(lambda state: aj.set_hyperparams(state, b1=0.5), out_shardings=host)(state)
    assert kinds(pinned) == {"pinned_host"}
    assert jax.jit(aj.hyperparams)(pinned)["b1"] == 0.5
