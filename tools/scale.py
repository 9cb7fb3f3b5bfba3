"""Write docs/scale.md: memory, step floors and bytes on the wire of large models; or --check it.

    python tools/scale.py

Nothing is allocated. Bytes of state are those that ``adamw_jax.summary`` reports for the shapes of
a decoder whose layers are stacked.
"""

from __future__ import annotations

import collections
import functools
import math
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import adamw_jax as aj
from adamw_jax import communication as comm

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "scale.md"
WIDTHS = {"1 B": (2048, 18), "8 B": (4096, 38), "70 B": (8192, 86), "100 B": (10240, 79)}
"""Width and layers of each model."""

VOCABULARY = 50304
PARAMETER = GRADIENT = 2  # bytes of bfloat16
BANDWIDTH = 4.8e12  # bytes per second of an H200, its data sheet
DEVICES = {"one device": 1, "256 devices": 256, "1,000 hosts of 8 devices": 8000}


def _optimizer(name: str) -> Callable[..., Any]:
    row = aj.info(name)
    return functools.partial(row.factory, **row.example)


def _with_tail(tail: Any) -> Callable[..., Any]:
    return lambda rate, **options: aj.compose(aj.adamw(rate, **options), tail)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    **{name: _optimizer(name) for name in aj.list_optimizers()},
    "adafactor(b1=0.9)": lambda rate, **options: aj.adafactor(rate, b1=0.9, **options),
    "adamw + lookahead": _with_tail(aj.lookahead()),
    "adamw + average_iterates": _with_tail(aj.average_iterates()),
    'adamw + average_iterates(kind="last", window=4)': _with_tail(
        aj.average_iterates(kind="last", window=4)
    ),
}
STATES = {
    "`adamw`": aj.adamw(1e-3),
    '`adamw(storage="8bit")`': aj.adamw(1e-3, storage="8bit"),
    '`adamw(storage="4bit")`': aj.adamw(1e-3, storage="4bit"),
    "`lion`": aj.lion(1e-3),
    "`adafactor`": aj.adafactor(1e-3),
}
"""Those whose memory and times are shown for each model."""

STORAGES = (None, "bfloat16", "8bit", "roots", "float8", "4bit")

COMPRESSORS: dict[str, comm.Compressor] = {
    "majority_vote()": comm.majority_vote(),
    "scaled_sign()": comm.scaled_sign(),
    "one_bit()": comm.one_bit(),
    "terngrad()": comm.terngrad(),
    "qsgd()": comm.qsgd(),
    "qsgd(8)": comm.qsgd(8),
    "top_k(0.01)": comm.top_k(0.01),
    "random_k(0.01)": comm.random_k(0.01),
    "power_sgd(4)": comm.power_sgd(4),
}
WORKERS = (8, 64, 256)
LOCAL_STEPS = 8


def shapes(width: int, layers: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the parameters of a decoder in bfloat16, layers stacked along the first axis."""
    found = {
        "embedding": (VOCABULARY, width),
        "attention": (layers, width, 4 * width),
        "mlp_in": (layers, width, 4 * width),
        "mlp_out": (layers, 4 * width, width),
        "norms": (layers, 2, width),
    }
    return {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in found.items()}


def size(params: Any) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def state_bytes(tx: Any, params: Any) -> float:
    """Return the bytes of state per parameter, from the table of ``summary``."""
    (line,) = (x for x in aj.summary(tx, params).splitlines() if x.startswith("sum over"))
    return float(line.split()[-1])


def rows(header: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table with numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def by_optimizer() -> str:
    """Return bytes of state per parameter by optimizer and storage, alike ones in one row."""
    params, alike = (
        shapes(*WIDTHS["1 B"]),
        collections.defaultdict[tuple[str, ...], list[str]](list),
    )
    for name, make in OPTIMIZERS.items():
        cells = []
        for storage in STORAGES:
            try:
                tx = make(1e-3) if storage is None else make(1e-3, storage=storage)
            except TypeError:  # it takes no storage
                cells.append("–")
            else:
                cells.append(f"{state_bytes(tx, params):.2f}")
        alike[tuple(cells)].append(f"`{name}`")
    body = [[", ".join(names), *cells] for cells, names in sorted(alike.items(), key=_first_cell)]
    return rows(["optimizer", *(f"`{s or 'float32'}`" for s in STORAGES)], body)


def _first_cell(row: tuple[tuple[str, ...], list[str]]) -> float:
    return float(row[0][0])


def shown(x: float) -> str:
    """Return a number with three digits, or all of a whole part that has more."""
    return f"{x:,.{max(0, 2 - math.floor(math.log10(x)))}f}"


def memory() -> str:
    """Return GiB per device for parameters, gradients and state."""
    body = []
    for model, widths in WIDTHS.items():
        params = shapes(*widths)
        whole, gib = PARAMETER + GRADIENT, size(params) / 2**30
        for name, tx in STATES.items():
            state = state_bytes(tx, params)
            row = [f"{model}, {name}", shown((whole + state) * gib)]
            for devices in [*DEVICES.values()][1:]:
                row.append(shown((whole + state / devices) * gib))
                row.append(shown((whole + state) / devices * gib))
            body.append(row)
    names = [*DEVICES][1:]
    layouts = [f"{name}, {layout}" for name in names for layout in ("ZeRO-1", "FSDP")]
    return rows(["model, optimizer", "one device", *layouts], body)


def moved_bytes(tx: Any, params: Any) -> float:
    """Return the bytes per parameter that a step of an optimizer must read and write."""
    return 2 * PARAMETER + GRADIENT + 2 * state_bytes(tx, params)


def floors() -> str:
    """Return the least milliseconds of a step of each optimizer, by memory traffic alone."""
    body = []
    for model, widths in WIDTHS.items():
        params = shapes(*widths)
        for name, tx in STATES.items():
            moved = moved_bytes(tx, params) * size(params)
            times = [moved / n / BANDWIDTH * 1e3 for n in DEVICES.values()]
            body.append([f"{model}, {name}", *map(shown, times)])
    return rows(["model, optimizer", *DEVICES], body)


class Sent(NamedTuple):
    """How often a step reduces the gradient, scatters its sums and gathers the parameters."""

    reduced: int
    scattered: int
    gathered: int

    @property
    def bytes(self) -> int:
        """Return bytes per parameter that a device of a ring sends."""
        return (2 * self.reduced + self.scattered) * GRADIENT + self.gathered * PARAMETER


SENT = {"data parallel": Sent(1, 0, 0), "ZeRO-1": Sent(0, 1, 1), "FSDP": Sent(0, 1, 2)}


def wire() -> str:
    """Return GiB that each device sends in a step, with rings of many devices."""
    body = []
    for model, widths in WIDTHS.items():
        gib = size(shapes(*widths)) / 2**30
        body.append([model, *(shown(sent.bytes * gib) for sent in SENT.values())])
    return rows(["model", *SENT], body)


def compressed() -> str:
    """Return what compressed gradients of the smallest model take on the wire."""
    width, layers = WIDTHS["1 B"]
    stacked = shapes(width, layers)
    params = {"embedding": stacked.pop("embedding")} | {
        f"{name}/{i}": jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
        for name, leaf in stacked.items()
        for i in range(layers)
    }
    count = size(params)

    def row(name: str, compressor: comm.Compressor | None, steps: int = 1) -> list[str]:
        sent = comm.payload_bytes(compressor, params) / steps
        got = [comm.received_bytes(compressor, params, n) / steps for n in WORKERS]
        return [name, f"{sent / count:.4f}", *(shown(n / 2**30) for n in got)]

    body = [row("none", None), row(f"`local_sgd({LOCAL_STEPS}, ...)`", None, LOCAL_STEPS)]
    body += [row(f"`{name}`", compressor) for name, compressor in COMPRESSORS.items()]
    got = [f"GiB received, {n} workers" for n in WORKERS]
    return rows(["compressor", "bytes per parameter", *got], body)


def page() -> str:
    """Return the text of the page."""
    return f"""# Scale

What the state of an optimizer costs for models of 1 to 100 billion parameters. `python
tools/scale.py` computes this page from `summary` and the shapes of a decoder, without allocating
anything; `make check` compares it, and a test compares the figures with arrays on one and on
eight devices. Parameters and gradients are bfloat16. How to lay a state out over devices:
[Several devices](sharding.md).

## Bytes of state per parameter

{by_optimizer()}

A dash: `storage=` is not taken. Adafactor keeps a number for each row and column. Weights in a
state, such as averages, are not encoded. `stochastic_rounding` adds a key,
`compensated_rounding` 2 bytes, `accumulate` 4. `skip_bad_steps` and `dynamic_loss_scale` add a
few numbers in all.

## Memory per device, in GiB

Parameters, gradients and state. In ZeRO-1 only the state is cut, in FSDP all three.

{memory()}

## Least time of a step, in milliseconds

Gradient, parameters and state are read once, parameters and state written once, at 4.8
TB/s, the bandwidth of one H200; on several devices with FSDP. In ZeRO-1 each device also writes all
parameters, which are not cut. No program is faster. With state in float32 and bfloat16 XLA's
programs of `adamw` and `lion` for an H200 move these bytes and no more, which a test reads from
them. Codes of few bits and `adafactor` move more ([programs](results/programs.md)). Times that were
measured, on a CPU: [benchmarks](results/benchmarks.md).

{floors()}

## GiB on the wire per device and step

A ring of many devices sends nearly the array itself to gather or to scatter it, and twice that to
reduce it. Data parallel reduces gradients. ZeRO-1 scatters sums of gradients and gathers
parameters. FSDP also gathers the parameters for the backward pass. A test reads these operations
from XLA's programs for eight devices; on CPU they reduce whole gradients where an accelerator
scatters sums, and send float32 in place of bfloat16. The optimizer itself sends nothing, or a few
numbers for each leaf if it takes norms.

{wire()}

## Compressed gradients

What a worker of [`compressed_mean`](communication.md) gives to the network in a step, and what it
receives if arrays go around a ring, for the model of 1 B and in float32. Both are computed from the
payload, which a test finds in XLA's programs. What is gathered arrives from each of the others, so
it grows with the workers; what is averaged (`none`, `random_k`, `power_sgd`) does not.
`local_sgd` sends parameters instead, here every {LOCAL_STEPS} steps.

{compressed()}
"""


def main(arguments: list[str]) -> int:
    """Write the page, or with --check return 1 if it differs."""
    new = page()
    if "--check" in arguments:
        is_old = new != PAGE.read_text(encoding="utf-8")
        if is_old:
            print("docs/scale.md is old; run python tools/scale.py")
        return int(is_old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
