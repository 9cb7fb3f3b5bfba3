"""Time contenders in shuffled rounds, each in its own process.

In each round every contender gives one sample, in a new random order. Other work on the machine
then affects all of them equally, and the ratios within a round stay valid. Samples during which
other processes used a large part of a core are dropped, and more rounds replace them.
"""

import dataclasses
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import contenders, trees, worker

Row = dict[str, Any]
GIB = 2**30
#: Cores that other processes may use during a sample that counts, and rounds for each asked for.
QUIET, PATIENCE = 0.25, 4


@dataclasses.dataclass
class Run:
    """The process of one contender and its results."""

    name: str
    process: Any
    connection: Any
    samples: list[dict[str, float]] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    failure: str = ""

    @property
    def quiet(self) -> list[int]:
        """Return the rounds without much other work."""
        return [at for at, sample in enumerate(self.samples) if sample["others"] <= QUIET]

    @classmethod
    def start(cls, name: str, options: worker.Options) -> "Run":
        """Start the process and wait until it is ready or has failed."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=worker.serve, args=(theirs, name, options), daemon=True)
        process.start()
        theirs.close()
        run = cls(name, process, ours)
        run.hear()
        return run

    def hear(self) -> Any:
        """Return the next answer; after a failure the contender leaves the rounds."""
        try:
            kind, content = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            kind, content = "error", f"the process ended with code {self.process.exitcode}"
        if kind in ("absent", "error"):
            self.failure = f"absent: {content}" if kind == "absent" else content.strip()
        return content

    def sample(self) -> None:
        """Ask for one sample."""
        self.connection.send("sample")
        answer = self.hear()
        if not self.failure:
            self.samples.append(answer)

    def stop(self) -> None:
        """Collect the figures and end the process."""
        if not self.failure:
            self.connection.send("stop")
            answer = self.hear()
            self.facts = {} if self.failure else answer
        self.connection.close()
        self.process.join()


def free_memory() -> int:
    """Return the free memory in bytes."""
    try:
        with open("/proc/meminfo") as lines:
            sizes = dict(line.split(":") for line in lines)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def groups(names: list[str], baseline: str, options: worker.Options, budget: float) -> list[Any]:
    """Split contenders into groups that fit in `budget` bytes, each with the baseline.

    Each is assumed to need five times its parameters (gradient, two moments, one spare).
    """
    width = 2 if "16" in options.dtype else 4
    each = 0.4 * GIB
    if not options.compile_only:
        each += 5 * width * trees.count(trees.shapes(options.tree))
    others = [name for name in names if name != baseline]
    size = max(1, int(budget // each) - 1)
    return [[baseline, *others[at : at + size]] for at in range(0, max(1, len(others)), size)]


def _rounds(
    names: list[str], options: worker.Options, repeats: int, seconds: float, order: random.Random
) -> list[Run]:
    runs: list[Run] = []
    try:
        for name in names:  # one after the other, so that each compiles alone
            runs.append(Run.start(name, options))
        deadline = time.monotonic() + seconds
        for done in range(PATIENCE * repeats):
            alive = [run for run in runs if not run.failure]
            enough = done >= repeats and all(len(run.quiet) >= repeats for run in alive)
            if enough or (done and time.monotonic() > deadline):
                break
            for run in order.sample(alive, len(alive)):
                run.sample()
        for run in runs:
            run.stop()
    finally:
        for run in runs:
            if run.process.is_alive():
                run.process.terminate()
    return runs


def _kept(runs: list[Run]) -> bool:
    """Return whether the whole group has enough quiet rounds to drop the others."""
    return all(len(run.quiet) >= min(3, len(run.samples)) for run in runs if run.samples)


def _statistics(run: Run, base: Run, quiet_only: bool) -> Row:
    def values(of: Run, key: str) -> list[float]:
        kept = of.quiet if quiet_only else range(len(of.samples))
        return [of.samples[at][key] for at in kept]

    row: Row = {
        "median_s": statistics.median(values(run, "seconds")),
        "min_s": min(values(run, "seconds")),
        "cpu_s": statistics.median(values(run, "cpu")),
        "rounds": len(run.samples),
        "quiet_rounds": len(run.quiet),
        "note": "" if quiet_only else "other work ran in most rounds",
    }
    for key in ("cores", "trace_s", "lower_s", "compile_s", "total_s"):
        if key in run.samples[0]:
            row[key] = statistics.median(values(run, key))
    if base.failure or not base.samples:
        return row
    reference = values(base, "seconds")
    row["ratio_median"] = row["median_s"] / statistics.median(reference)
    row["ratio_min"] = row["min_s"] / min(reference)
    row["ratio_cpu"] = row["cpu_s"] / statistics.median(values(base, "cpu"))
    both = set(run.quiet) & set(base.quiet) if quiet_only else set()
    paired = [
        run.samples[at]["seconds"] / base.samples[at]["seconds"]
        for at in both or range(len(run.samples))
    ]
    row["ratio_paired"] = statistics.median(paired)
    if len(paired) > 1:
        low, _, high = statistics.quantiles(paired, n=4, method="inclusive")
        row["paired_low"], row["paired_high"] = low, high
    return row


def compare(
    names: list[str],
    baseline: str,
    options: worker.Options,
    repeats: int = 15,
    seconds: float = 600.0,
    budget: float | None = None,
    seed: int = 0,
) -> Iterator[Row]:
    """Time contenders against a baseline and yield one row for each, group by group.

    Args:
        names: The contenders.
        baseline: One of them, or another one.
        options: Their common options.
        repeats: Rounds without other work; at most four times as many are run.
        seconds: Time limit per group; no round begins later, except the first.
        budget: Memory in bytes of contenders that run together; None for half of the free memory.
        seed: Random seed of the order in each round.
    """
    labels = {name: contenders.parse(name).label for name in (baseline, *names)}
    budget = free_memory() / 2 if budget is None else budget
    order = random.Random(seed)
    for number, group in enumerate(groups(names, baseline, options, budget)):
        runs = _rounds(group, options, repeats, seconds, order)
        base, quiet_only = runs[0], _kept(runs)
        for run in runs:
            row: Row = {
                "contender": labels[run.name],
                "baseline": labels[baseline],
                "tree": options.tree,
                "dtype": options.dtype,
                "group": number,
            }
            row |= run.facts
            notes = [row.get("note", ""), run.failure]
            if run.samples and not run.failure:
                row |= _statistics(run, base, quiet_only)
                row["samples"] = run.samples
                notes += [row["note"], _suspicion(row)]
            yield row | {"note": "; ".join(note for note in notes if note)}


def _suspicion(row: Row) -> str:
    """Return the reason to doubt a row."""
    if not 0 < row.get("travel", 1.0) < float("inf"):
        return "the parameters did not move, or are not finite"
    large = row.get("params", 0) / max(1, row.get("leaves", 1)) > 10_000
    alone = row.get("device") == "cpu" and (os.cpu_count() or 1) > 1 and row.get("cores", 2) < 1.1
    return "one core only: run again" if large and alone and "steps_per_sample" in row else ""
