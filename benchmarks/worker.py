"""Run the process of one contender: prepare it, then return one sample per request.

The parent asks over a pipe, so only one contender computes at a time while all stay alive.
"""

import dataclasses
import math
import os
import resource
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import contenders


class AbsentError(Exception):
    """The contender cannot run here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that all contenders of a run share.

    Attributes:
        tree: Name of the parameter tree.
        dtype: Dtype of parameters and gradients.
        compile_only: Time tracing and compiling instead of steps.
        period: Steps that belong together; a sample is a whole number of periods.
        in_jit: Steps in one jitted call.
        sample_s: Minimal duration of a sample, which determines its number of steps.
        dump: Folder for the optimized HLO, or None.
        xla_flags: Flags added to `XLA_FLAGS`.
    """

    tree: str
    dtype: str = "float32"
    compile_only: bool = False
    period: int = 1
    in_jit: int = 1
    sample_s: float = 0.1
    dump: str | None = None
    xla_flags: str = ""

    def __post_init__(self) -> None:
        """Check that the steps of a call are a whole number of periods."""
        if self.period < 1 or self.in_jit < 1:
            raise ValueError("period and in_jit must be at least 1")


def busy_seconds() -> float:
    """Return the processor time of the machine since its start, or 0 if unknown."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, interrupts, soft, stolen = (int(ticks) for ticks in line[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Run `work`; return wall and processor seconds, and busy cores, its own and others."""
    before = busy_seconds()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    others = max(0.0, busy_seconds() - before - cpu)
    return {"seconds": wall, "cpu": cpu, "cores": cpu / wall, "others": others / wall}


class StepWorker:
    """Timer of the steps of one contender."""

    def __init__(self, contender: contenders.Contender, options: Options):
        self.options = options
        if contender.library in contenders.EAGER:
            if options.in_jit > 1:
                raise AbsentError("no jit to put several steps in")
            from benchmarks.torch_step import TorchStep

            self.step: Any = TorchStep(contender, options.tree, options.dtype)
        else:
            self.step = _jax_step(contender, options)
        self.step.fill()
        self._unit = math.lcm(options.period, options.in_jit)
        self._start, self._done = self.step.probe(), 0
        self._run(self._unit)
        took = timed(lambda: self._run(self._unit))["seconds"]
        self.steps = self._unit * min(1000, max(1, math.ceil(options.sample_s / took)))

    def _run(self, steps: int) -> None:
        self.step.run(steps)
        self._done += steps

    def facts(self) -> dict[str, Any]:
        """Return the figures that need no clock."""
        travel = float(abs(self.step.probe() - self._start).mean()) / self._done
        return self.step.facts() | {"travel": travel, "steps_per_sample": self.steps}

    def sample(self) -> dict[str, float]:
        """Return seconds per step over a whole number of periods, and the busy cores."""
        self._run(self.options.in_jit)  # to fill the caches
        sample = timed(lambda: self._run(self.steps))
        return sample | {key: sample[key] / self.steps for key in ("seconds", "cpu")}


class CompileWorker:
    """Timer of trace, lowering and compilation of one contender, repeated in each sample."""

    def __init__(self, contender: contenders.Contender, options: Options):
        if contender.library in contenders.EAGER:
            raise AbsentError("eager, nothing to compile")
        self.contender, self.options = contender, options
        self.step: Any = None
        _jax_step(contender, dataclasses.replace(options, tree="tiny:4", dump=None))

    def facts(self) -> dict[str, Any]:
        """Return the figures of the last compilation; times are in the samples."""
        facts = self.step.facts() if self.step else {}
        return {key: value for key, value in facts.items() if not key.endswith("_s")}

    def sample(self) -> dict[str, float]:
        """Return the seconds of each phase, and the busy cores."""
        import jax

        jax.clear_caches()
        self.step = None
        sample = timed(self._compile)
        return sample | self.step.times | {"seconds": self.step.times["total_s"]}

    def _compile(self) -> None:
        self.step = _jax_step(self.contender, self.options, warm=False)


def _jax_step(contender: contenders.Contender, options: Options, warm: bool = True) -> Any:
    from benchmarks.jax_step import JaxStep

    if warm:  # the first compilation of a process includes imports
        JaxStep(contender, "tiny:2", options.dtype)
    return JaxStep(contender, options.tree, options.dtype, options.in_jit, options.dump)


def make(name: str, options: Options) -> StepWorker | CompileWorker:
    """Return the worker of a contender; raise AbsentError if it cannot run here."""
    kind = CompileWorker if options.compile_only else StepWorker
    try:
        return kind(contenders.parse(name), options)
    except ModuleNotFoundError as error:
        if error.name not in ("adamw_jax", "optax", "torch", "bitsandbytes"):
            raise  # a library that is installed but broken
        raise AbsentError(str(error)) from error


def serve(connection: Connection, name: str, options: Options) -> None:
    """Answer the parent until it says stop."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options.xla_flags}".strip()
    try:
        worker = make(name, options)
        connection.send(("ready", None))
        while connection.recv() == "sample":
            connection.send(("sample", worker.sample()))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        connection.send(("facts", worker.facts() | {"process_mib": peak}))
    except AbsentError as error:
        connection.send(("absent", str(error)))
    except EOFError:  # the parent is gone
        pass
    except Exception as error:
        traceback.print_exc()
        connection.send(("error", f"{type(error).__name__}: {error}"))
