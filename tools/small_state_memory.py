"""Measure the memory of a step of AdamW by storage and by layout on eight devices.

    python tools/small_state_memory.py

prints the table of docs/low_precision.md: the state and the scratch of the compiled step, in MiB
per device, for 12 parameters of 1024 x 1024. The devices are simulated on the CPU, and the scratch
is reported by XLA (``compiled.memory_analysis()``).
"""

from __future__ import annotations

import math
import os
import re
from typing import Any, NamedTuple

if __name__ == "__main__":  # before jax is imported
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.storage import choose

LAYOUTS = {
    "data parallel, 8 devices": (8, 1, P()),
    "FSDP, 8 devices": (8, 1, P("data")),
    "FSDP x tensor parallel, 2 x 4": (2, 4, P("data", "model")),
}
"""Devices along two axes of a mesh, and the sharding of the parameters."""

STORAGES = (None, "bfloat16", "8bit", "float8", "4bit")


class Memory(NamedTuple):
    """Memory of one step, in bytes per device.

    Attributes:
      state: arrays of the optimizer.
      scratch: temporary memory, without arguments and results.
      collectives: operations between devices in the program.
    """

    state: int
    scratch: int
    collectives: int


def measure(
    layout: str, storage: Any, *, leaves: int = 12, size: int = 1024, sequential: bool | None = None
) -> Memory:
    """Return the memory of a compiled step with donated parameters and state."""
    rows, columns, spec = LAYOUTS[layout]
    mesh = jax.make_mesh(
        (rows, columns),
        ("data", "model"),
        axis_types=(AxisType.Auto,) * 2,
        devices=jax.devices()[: rows * columns],
    )
    placed = NamedSharding(mesh, spec)
    shape = jax.ShapeDtypeStruct((size, size), jnp.float32, sharding=placed)
    params = {f"layer{i}": shape for i in range(leaves)}
    tx = aj.adamw(1e-3, storage=storage and choose(storage, sequential=sequential))
    shardings = aj.state_shardings(tx, params, placed)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        shardings,
    )

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    places = jax.tree.map(lambda x: x.sharding, params), shardings
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=places)
    compiled: Any = jitted.lower(params, state, params).compile()
    arrays = [(x.dtype.itemsize, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state)]
    used = sum(itemsize * math.prod(shape) for itemsize, shape in arrays)
    words = re.findall(r" (all-\w+|collective-\w+|reduce-scatter)\(", compiled.as_text())
    return Memory(used, compiled.memory_analysis().temp_size_in_bytes, len(words))


def main() -> None:
    """Print the table."""
    print("| layout | storage | state | scratch | sum | collectives |")
    print("|---|---|---:|---:|---:|---:|")
    for layout in LAYOUTS:
        for storage in STORAGES:
            state, scratch, words = measure(layout, storage)
            mib = [f"{x / 2**20:.1f}" for x in (state, scratch, state + scratch)]
            print(f"| {layout} | {storage or 'float32'} | {' | '.join(mib)} | {words} |")


if __name__ == "__main__":
    main()
