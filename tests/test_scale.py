"""The figures of docs/scale.md, which are computed from shapes, are those of arrays."""

from __future__ import annotations

import collections
import functools
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj

if not (Path(__file__).parents[1] / "tools").is_dir():
    pytest.skip("tools/ is not in the wheel", allow_module_level=True)
from tools import scale

pytestmark = [pytest.mark.devices, pytest.mark.quick]

PARAMS = {
    "embedding": jnp.ones((512, 256), jnp.bfloat16),
    "mlp": jnp.ones((4, 256, 1024), jnp.bfloat16),
}


def bytes_on_one(state: Any) -> int:
    """Bytes of a state on each device."""
    leaves = jax.tree.leaves(state)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


@pytest.mark.sample(2)
@pytest.mark.parametrize("storage", scale.STORAGES)
@pytest.mark.parametrize(
    "name",
    [
        *("adamw", "adamw + lookahead", "lion", "pnm", "amsgrad", "adapnm", "koala_m"),
        *("schedule_free_adamw", 'adamw + average_iterates(kind="last", window=4)'),
    ],
)
def test_bytes_of_state(name: str, storage: Any) -> None:
    make = scale.OPTIMIZERS[name]
    tx = make(1e-3) if storage is None else make(1e-3, storage=storage)
    expected = scale.state_bytes(tx, PARAMS) * scale.size(PARAMS)
    rounding = 0.005 * scale.size(PARAMS)
    assert abs(bytes_on_one(tx.init(PARAMS)) - expected) <= rounding
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P(None, "data"))
    rows = {"embedding": NamedSharding(mesh, P("data")), "mlp": rows}
    wanted = aj.state_shardings(tx, PARAMS, rows)
    state = jax.jit(tx.init, out_shardings=wanted)(PARAMS)
    scales = 0.02 * scale.size(PARAMS) if storage == "4bit" else 0  # of rank one: not all are cut
    assert abs(bytes_on_one(state) - expected / 8) <= rounding / 8 + scales + 256


KERNELS = {"in": (64, 256), "middle": (256, 128), "out": (128, 64)}
COLLECTIVE = (
    r" = (\([^)]*\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


@functools.partial(jax.checkpoint, static_argnums=2)  # FSDP gathers again in the backward pass
def layer(kernel: Any, x: Any, whole: NamedSharding) -> Any:
    return jnp.tanh(x @ jax.lax.with_sharding_constraint(kernel, whole))


def program(place: NamedSharding, part: NamedSharding, whole: NamedSharding) -> str:
    """The program of a training step whose parameters and state are sharded so."""
    tx = aj.adamw(1e-3)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
        for name, shape in KERNELS.items()
    }
    wanted = aj.state_shardings(tx, params, part)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        wanted,
    )
    rows = NamedSharding(whole.mesh, P("data"))
    batch = jax.ShapeDtypeStruct((16, 64), jnp.bfloat16, sharding=rows)

    def loss_fn(params: Any, x: Any) -> Any:
        for name in KERNELS:
            x = layer(params[name], x, whole)
        return jnp.mean(jnp.square(x))

    def step(params: Any, state: Any, batch: Any) -> Any:
        gradient = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=(place, wanted))
    return str(step.lower(params, state, batch).compile().as_text())


@pytest.mark.optimized
@pytest.mark.sample(1)
@pytest.mark.parametrize("layout", scale.SENT)
def test_bytes_on_the_wire(layout: str) -> None:
    """XLA's CPU program all-reduces what would be scattered, and widens bfloat16 to float32.

    So elements are counted, of both reductions together; scalars are left out.
    """
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    place, part = rows if layout == "FSDP" else whole, whole if layout == "data parallel" else rows
    count = sum(map(math.prod, KERNELS.values()))
    found = collections.Counter[str]()
    for types, name in re.findall(COLLECTIVE, program(place, part, whole)):
        for dims in re.findall(r"\w+\[([\d,]+)\]", types):
            found[name] += math.prod(map(int, dims.split(",")))
    sent, gathered = scale.SENT[layout], found.pop("all-gather", 0)
    reduced = found.pop("all-reduce", 0) + 8 * found.pop("reduce-scatter", 0)
    assert (gathered, reduced) == (sent.gathered * count, (sent.reduced + sent.scattered) * count)
    assert not found
