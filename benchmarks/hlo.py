r"""Count kernels, copies, bytes and scratch of a compiled step, on CPU, GPU or TPU.

The text of an optimized module (`compiled.as_text()`) is read instruction by instruction.
Every kernel is counted once: in the entry computation, in the body of a loop, in every branch of a
conditional. Instructions inside a fusion are not counted.

    >>> text = "ENTRY %main (p: f32[64]) -> f32[64] {\n  ROOT %c = f32[64]{0} copy(%p)\n}"
    >>> census(text).copies
    1
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

#: Arrays of at least this many elements are "array-sized": clocks, counts and hyperparameters
#: are smaller, the smallest leaf of a real network (16 channels) is not.
ARRAY_SIZED = 16

#: Instructions that only name, group or wait for values. The start of a transfer moves data and is
#: counted; its done only waits.
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
        *("copy-done", "slice-done", "async-done", "async-update"),
    )
)
_TRANSFERS = frozenset(("copy-start", "slice-start", "async-start"))
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(?:condition|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: its name, opcode, and the sizes of its result arrays."""

    name: str
    opcode: str
    sizes: tuple[int, ...]
    line: str

    @property
    def largest(self) -> int:
        """Return the number of elements of the largest array it writes."""
        return max(self.sizes, default=0)


@dataclasses.dataclass(frozen=True)
class Census:
    """Numbers of kernels of a module.

    Attributes:
        array_fusions: Fusions that write at least one array-sized array.
        small_fusions: The other fusions: step counts, clocks, bias corrections.
        copies: Array-sized copies, which a step with donated state should not need.
        others: Array-sized kernels that are neither (a dot, an unfused reduction).
        transfers: Asynchronous moves between memories (TPU: the prefetch of an operand).
    """

    array_fusions: int
    small_fusions: int
    copies: int
    others: int
    transfers: int

    @property
    def array_kernels(self) -> int:
        """Return the number of array-sized kernels."""
        return self.array_fusions + self.copies + self.others


def _split_type(text: str) -> tuple[str, str]:
    """Split `TYPE opcode(...)` after the type, which may be a tuple with nested parentheses."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :].lstrip()
    raise ValueError(f"no end of the tuple type in HLO line {text[:120]!r}")


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Return the instructions of every computation of a module, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    entry, body = "", None
    for line in text.splitlines():
        if body is None:
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                body = found.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            body = None
        elif match := _INSTRUCTION.match(line):
            kind, rest = _split_type(line[match.end() :])
            sizes = tuple(
                math.prod(int(size) for size in dims.split(",") if size)
                for dims in _ARRAY.findall(kind)
            )
            body.append(Instruction(match[1], rest.partition("(")[0].strip(), sizes, line))
    if not entry:
        raise ValueError("text: no ENTRY computation; pass compiled.as_text()")
    return found, entry


def _is_bookkeeping(instruction: Instruction) -> bool:
    # A TPU joins prefetched pieces of one operand by a custom call that moves nothing.
    return instruction.opcode in _FREE or (
        instruction.opcode == "custom-call" and '"ConcatBitcast"' in instruction.line
    )


def kernels(text: str) -> Iterator[Instruction]:
    """Return all instructions of an optimized module that run as kernels."""
    found, entry = computations(text)
    waiting, seen = [entry], {entry}
    while waiting:
        for instruction in found[waiting.pop()]:
            if instruction.opcode in ("while", "conditional", "call"):
                called = _CALLED.findall(instruction.line)
                for branches in _BRANCHES.findall(instruction.line):
                    called += [name.strip().lstrip("%") for name in branches.split(",")]
                waiting += [name for name in called if name in found and name not in seen]
                seen.update(called)
            elif not _is_bookkeeping(instruction):
                yield instruction


def census(text: str, array_sized: int = ARRAY_SIZED) -> Census:
    """Count the kernels of an optimized module.

    Args:
        text: The module, from `compiled.as_text()`.
        array_sized: Smallest number of elements of an array-sized array.
    """
    counts = dict.fromkeys((field.name for field in dataclasses.fields(Census)), 0)
    for kernel in kernels(text):
        large = kernel.largest >= array_sized
        if kernel.opcode == "fusion":
            counts["array_fusions" if large else "small_fusions"] += 1
        elif kernel.opcode in _TRANSFERS:
            counts["transfers"] += large
        elif kernel.opcode == "copy":
            counts["copies"] += large
        else:
            counts["others"] += large
    return Census(**counts)


def array_fusions(text: str, array_sized: int = ARRAY_SIZED) -> int:
    """Count the fusions that write at least one array of `array_sized` elements."""
    return census(text, array_sized).array_fusions


def bytes_accessed(compiled: Any) -> float:
    """Return the bytes that one run reads and writes, by XLA's cost analysis."""
    analysis = compiled.cost_analysis()
    if isinstance(analysis, list | tuple):  # one entry a module, in older jax
        analysis = analysis[0]
    return float(analysis["bytes accessed"])


def scratch_bytes(compiled: Any) -> int:
    """Return the temporary memory of one run, without arguments and results."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def aliased_bytes(compiled: Any) -> int:
    """Return the bytes of results that reuse the memory of donated arguments."""
    return int(compiled.memory_analysis().alias_size_in_bytes)


def tpu_device(topology: str = "v5e:2x2x1") -> Any:
    """Return a description of a TPU, to compile for it on a host without one.

    Args:
        topology: Chip generation and layout.

    Raises:
        ImportError: If `libtpu` is not installed (`pip install 'jax[tpu]'` brings it).
    """
    import libtpu  # noqa: F401  # pyright: ignore[reportMissingImports]
    from jax.experimental import topologies

    # Without these, libtpu asks a metadata server of Google's cloud which machine it is on, and
    # two test processes exclude each other by a lock file meant for real chips.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]


def compile_step(
    step: Callable[..., Any],
    *arguments: Any,
    donate: tuple[int, ...] = (0, 1),
    device: Any = None,
) -> Any:
    """Compile `step` ahead of time for arrays with the shapes of `arguments`.

    Args:
        step: The function.
        *arguments: Trees of arrays or of `jax.ShapeDtypeStruct`.
        donate: Positions whose memory the results may reuse.
        device: Target; `tpu_device()` for a TPU, None for the default device.
    """
    import jax

    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)

    def describe(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    described = jax.tree.map(describe, arguments)
    return jax.jit(step, donate_argnums=donate).lower(*described).compile()
