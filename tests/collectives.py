"""Count what devices say to each other in a compiled step; write docs/results/collectives.md.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.collectives
"""

from __future__ import annotations

import collections
import itertools
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.storage._formats import FORMATS
from tests.catalogue import EXTRA, PLAIN, TAILS

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "results" / "collectives.md"
SHAPES = {"bias": (64,), "kernel": (64, 128), "stack": (8, 64, 32)}
KINDS = {"automatic": AxisType.Auto, "explicit": AxisType.Explicit}


class Layout(NamedTuple):
    """A mesh, and the axes along which parameters and state are sharded."""

    mesh: tuple[int, int]
    params: dict[str, P]
    state: dict[str, P]


_WHOLE, _ROWS = ({name: spec for name in SHAPES} for spec in (P(), P("data")))
_BOTH = {"bias": P("model"), "kernel": P("data", "model"), "stack": P(None, "data", "model")}
LAYOUTS = {
    "data parallel": Layout((8, 1), _WHOLE, _WHOLE),
    "FSDP": Layout((8, 1), _ROWS, _ROWS),
    "FSDP x tensor parallel": Layout((2, 4), _BOTH, _BOTH),
    "ZeRO-1": Layout((8, 1), _WHOLE, _ROWS),
}


class Row(NamedTuple):
    """An optimizer, what a step looks at to move an element, and the dtype of the parameters."""

    tx: Any
    scope: str
    dtype: Any = jnp.float32


def _rows() -> dict[str, Row]:
    rounded = {name: tx for name, tx in TAILS.items() if name.endswith("rounding")}
    wide = {name: tx for name, tx in TAILS.items() if name not in rounded}
    adamw, element, measuring = aj.adamw(0.1), "element", ("probe", "measure_noise_scale")
    blocks = {name: {"block_size": 8} for name in FORMATS if name not in ("bfloat16", "float32")}
    formats = {name: make(**blocks.get(name, {})) for name, make in FORMATS.items()}
    return {
        **{entry.label: Row(entry.make(), entry.scope) for entry in PLAIN},
        **{name: Row(tx, "tree" if name in measuring else element) for name, tx in wide.items()},
        **{name: Row(tx, element, jnp.bfloat16) for name, tx in rounded.items()},
        "clip_gradient": Row(aj.compose(aj.clip_gradient(1.0), adamw), "tree"),
        "percentile_clipping": Row(aj.compose(aj.percentile_clipping(), adamw), "tree"),
        **{
            f"storage={name}": Row(
                aj.adamw(0.1, storage=each), "leaf" if name == "4bit" else element
            )
            for name, each in formats.items()
        },
        "quantize_state(optax.adam)": Row(
            aj.quantize_state(optax.adam(0.1), formats["8bit"]), element
        ),
        "skip_bad_steps": Row(aj.skip_bad_steps(adamw), "tree"),
        "skip_bad_steps, spikes": Row(
            aj.skip_bad_steps(adamw, loss_spike=6.0, norm_spike=6.0), "tree"
        ),
        "accumulate": Row(aj.accumulate(adamw, 2), "tree"),
        "dynamic_loss_scale": Row(aj.dynamic_loss_scale(adamw), "tree"),
    }


ROWS = _rows()


def collectives(
    row: Row, layout: str, kind: AxisType = AxisType.Auto, memory: str = "device"
) -> dict[str, list[list[int]]]:
    """The sizes of the arrays that each collective of a compiled step makes, by operation."""
    shape, params_specs, state_specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
    places, parts = (
        {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        for specs in (params_specs, state_specs)
    )
    params = {
        name: jax.ShapeDtypeStruct(shape, row.dtype, sharding=places[name])
        for name, shape in SHAPES.items()
    }
    wanted = aj.state_shardings(row.tx, params, parts)
    kept = jax.tree.map(lambda s: s.with_memory_kind(memory), wanted)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(row.tx.init, params),
        kept,
    )

    def step(params: Any, state: Any, gradient: Any) -> Any:
        if memory != "device":
            state = jax.device_put(state, wanted)
        extra = EXTRA | {"micro_square_norm": jnp.float32(1.0)}
        updates, state = row.tx.update(gradient, state, params, **extra)
        if memory != "device":
            state = jax.device_put(state, kept)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # optax needs it
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(places, kept))
        return collectives_in(jitted.lower(params, state, params).compile().as_text())


_OPERATION = re.compile(
    r" = (\([^)]*\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives_in(text: str) -> dict[str, list[list[int]]]:
    """The same of the text of a program."""
    found = collections.defaultdict(list)
    for types, operation in _OPERATION.findall(text):
        shapes = re.findall(r"\w+\[([\d,]*)\]", types)
        found[operation].append([math.prod(map(int, filter(None, s.split(",")))) for s in shapes])
    return dict(found)


def largest(sizes: Iterable[Iterable[int]]) -> int:
    """The size of the largest array, 0 if there is none."""
    return max(itertools.chain.from_iterable(sizes), default=0)


def cell(found: dict[str, list[list[int]]]) -> str:
    """What the table shows: reductions and gathers, and how many numbers they make."""
    signs = {"all-reduce": "R", "all-gather": "G", "reduce-scatter": "S"}
    parts = [
        f"{len(sizes)} {signs.get(operation, operation)} of {sum(map(sum, sizes)):,}"
        for operation, sizes in sorted(found.items(), reverse=True)
    ]
    return ", ".join(parts) or "–"


ABOUT = """# What devices send in a step

Collectives of a compiled step by optimizer and layout, read from XLA's program for eight devices of
a CPU. `3 R of 6` are three reductions (all-reduce) of six numbers in all, `3 G of {size:,}` three
gathers (all-gather) of {size:,} numbers, which are all parameters:
{shapes}.

A dash is none. Both branches of a condition are counted. In ZeRO-1 the state is cut and the
parameters are whole, so `3 G` bring the parts of the update together. A row is for meshes with
automatic and with explicit axes, or for one of them where they differ. AdamW is in the rows that
name a tail, a storage (blocks of 8) or a wrapper. With the state in host memory the collectives
are the same.

`tests/test_collectives.py` holds every row to its bounds and, with the same JAX, to these numbers.
Recipes: [Several devices](../sharding.md). Made with JAX {version} by

```bash
{command}
```

"""
COMMAND = "XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.collectives"


def page() -> str:
    """The text of the page."""
    head = ABOUT.format(
        size=sum(map(math.prod, SHAPES.values())),
        shapes=", ".join(f"{name} {shape}" for name, shape in SHAPES.items()),
        version=jax.__version__,
        command=COMMAND,
    )
    lines = [
        f"| optimizer | axes | {' | '.join(LAYOUTS)} |",
        "|---" * (2 + len(LAYOUTS)) + "|",
    ]
    for name, row in ROWS.items():
        found = {
            kind: " | ".join(cell(collectives(row, layout, axes)) for layout in LAYOUTS)
            for kind, axes in KINDS.items()
        }
        if len({*found.values()}) == 1:
            found = {"both": found["automatic"]}
        lines += [f"| `{name}` | {kind} | {cells} |" for kind, cells in found.items()]
    return head + "\n".join(lines) + "\n"


def recorded() -> dict[tuple[str, str], list[str]]:
    """The cells of the page by optimizer and kind of axes."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, kind, *cells = line.strip("| ").split(" | ")
            for each in KINDS if kind == "both" else (kind,):
                rows[name.strip("`"), each] = cells
    return rows


def recorded_with() -> str:
    """The version of JAX that made the page."""
    return re.findall(r"Made with JAX (\S+) by", PAGE.read_text(encoding="utf-8"))[0]


if __name__ == "__main__":
    if jax.device_count() != 8:
        raise SystemExit(f"eight devices are needed: {COMMAND}")
    PAGE.write_text(page(), encoding="utf-8")
