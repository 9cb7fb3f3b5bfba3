"""List what XLA makes of every optimizer's step on a CPU, a TPU and a GPU.

Nothing is run, and neither a TPU nor a GPU is needed: the step is compiled for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import hlo, report

#: Four blocks of this shape, so that leaves are large beside a scalar.
SHAPES = {"kernel": (512, 512), "bias": (512,)}
BLOCKS = 4
STORAGES = ("8bit", "roots", "4bit", "float8", "bfloat16")

HEAD = f"""# Programs

Made by `python -m benchmarks programs`. What XLA makes of one step of every optimizer, donated
parameters and state, on {BLOCKS} layers of 512 x 512 with biases: for a CPU, and compiled ahead of
time for a TPU v5e and an NVIDIA H200, which were not there. So these are facts about programs, not
times. Kernels write at least one array, small kernels only scalars (each is a launch of 2 to 4
microseconds on a GPU), bytes are read and written by all kernels, scratch is memory beyond
arguments and results; both are per parameter. A step cannot move less than "floor": parameters and
gradient, and the state read and written. XLA's account for a TPU also counts moves between its
memories, and pads small arrays.
"""


def _programs(tx: Any, devices: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the figures of a step for each device."""
    import jax
    import jax.numpy as jnp
    import optax

    layer = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SHAPES.items()}
    params = {f"layer{i}": layer for i in range(BLOCKS)}
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = jax.eval_shape(tx.init, params)

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optax.with_extra_args_support(tx).update(
            gradient, state, params, value=1.0
        )
        return optax.apply_updates(params, updates), state

    for device in devices.values():
        compiled = hlo.compile_step(step, params, state, params, device=device)
        text = compiled.as_text()
        counts = hlo.census(text)
        numbers = (counts.array_kernels, counts.small_fusions, counts.copies)
        # A GPU that is not there has no cost analysis, and a TPU's text moves arrays twice.
        on_gpu = device is not None and device.platform == "gpu"
        moved = hlo.bytes_moved(text) if on_gpu else hlo.bytes_accessed(compiled)
        scratch = hlo.scratch_bytes(compiled)
        yield [*map(str, numbers), f"{moved / size:.1f}", f"{scratch / size:.2f}"]


def _floor(tx: Any) -> float:
    """Return the least bytes a parameter: gradient, parameter and state, all in float32."""
    import jax
    import jax.numpy as jnp

    leaf = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    state = jax.eval_shape(tx.init, {"kernel": leaf})
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.ndim)
    return 12 + 2 * held / leaf.size


def contenders() -> Iterator[tuple[str, Any]]:
    """Yield every optimizer of the catalogue and its twin in optax, then small state."""
    import optax

    import adamw_jax as aj

    for name in aj.list_optimizers():
        row = aj.info(name)
        yield name, row.factory(1e-3, **(row.twin_options if row.twin else row.example))
        if row.twin:
            yield f"optax.{row.twin}", getattr(optax, row.twin)(1e-3)
    for word in STORAGES:
        yield f'adamw, storage="{word}"', aj.adamw(1e-3, storage=word)


def write(path: Path) -> None:
    """Compile all steps for the devices whose compilers are installed, and write the page."""
    import jax

    devices: dict[str, Any] = {"CPU": None}
    for name, make in (("TPU", hlo.tpu_device), ("GPU", hlo.gpu_device)):
        try:
            devices[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
    figures = ("kernels", "small", "copies", "B/param", "scratch")
    tables = {name: [["step", "floor", *figures]] for name in devices}
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        for name, tx in contenders():
            floor = f"{_floor(tx):.1f}"
            for device, found in zip(devices, _programs(tx, devices), strict=True):
                tables[device].append([name, floor, *found])
            print(name, flush=True)
    parts = [HEAD, report.machine() + "\n"]
    for device, cells in tables.items():
        parts += [f"## {device}\n", report.markdown(cells) + "\n"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts))
