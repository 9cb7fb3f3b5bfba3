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
import operator
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
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_WIDTH = re.compile(r"[a-z]+(\d+)")
_CALLED = re.compile(
    r"\b(?:condition|body|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: its name, opcode, the sizes of its result arrays, bytes, and operands."""

    name: str
    opcode: str
    sizes: tuple[int, ...]
    bytes: int
    operands: tuple[str, ...]
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
            opcode, _, operands = rest.partition("(")
            types, dims = (
                zip(*_ARRAY.findall(kind), strict=True) if _ARRAY.search(kind) else ((), ())
            )
            sizes = tuple(math.prod(int(size) for size in d.split(",") if size) for d in dims)
            written = sum(map(operator.mul, sizes, map(_bytes_of, types)))
            read = tuple(_OPERAND.findall(operands.partition("), ")[0]))
            body.append(Instruction(match[1], opcode.strip(), sizes, written, read, line))
    if not entry:
        raise ValueError("text: no ENTRY computation; pass compiled.as_text()")
    return found, entry


def _bytes_of(dtype: str) -> int:
    """Return the bytes of an element; a bool has one, as has an element of less than a byte."""
    width = _WIDTH.match(dtype)
    return max(int(width[1]) // 8, 1) if width else 1


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


def bytes_moved(text: str) -> int:
    """Return the bytes that the kernels of the entry computation read and write.

    Every kernel reads each of its operands once and whole.
    """
    found, entry = computations(text)
    made = {instruction.name: instruction.bytes for instruction in found[entry]}
    return sum(
        kernel.bytes + sum(made.get(name, 0) for name in set(kernel.operands))
        for kernel in found[entry]
        if not _is_bookkeeping(kernel)
    )


def bytes_accessed(compiled: Any) -> float:
    """Return the bytes that one run reads and writes, by XLA's cost analysis.

    Compiled for a GPU that is not there, a program has no such analysis: see `bytes_moved`.
    """
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


#: An H200, as XLA describes it.
_H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048 threads_per_warp: 32
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_block_limit: 65536 registers_per_core_limit: 65536
  device_memory_size: 150754820096 memory_bandwidth: 4800000000000 l2_cache_size: 62914560
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 7 } runtime_version { major: 13 }
"""


def gpu_device() -> Any:
    """Return a description of an NVIDIA H200, to compile for it on a host without a GPU.

    It needs neither CUDA nor a driver, but without CUDA the environment must say
    `JAX_PLATFORMS=cpu`.

    Raises:
        ImportError: If `jax_cuda13_plugin` is not installed (`pip install 'adamw-jax[gpu]'`).
    """
    import jax_cuda13_plugin  # noqa: F401  # pyright: ignore[reportMissingImports]
    from jax.experimental import topologies

    made = topologies.get_topology_desc(platform="cuda", target_config=_H200, topology="1x1x1")
    return made.devices[0]


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
        device: Target; `tpu_device()` or `gpu_device()`, None for the default device.
    """
    import jax

    from adamw_jax._core.sequential import compiled_for

    sharding = None if device is None else jax.sharding.SingleDeviceSharding(device)

    def describe(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def anew(*given: Any) -> Any:  # JAX would reuse the trace for another device
        return step(*given)

    described = jax.tree.map(describe, arguments)
    with compiled_for(jax.default_backend() if device is None else device.platform):
        return jax.jit(anew, donate_argnums=donate).lower(*described).compile()
