"""The figures of docs/scale.md, which are computed from shapes, are those of arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
@pytest.mark.parametrize("name", ["adamw", "adamw + lookahead", "lion"])
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
