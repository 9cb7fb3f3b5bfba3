"""Define the command line of the benchmarks."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from benchmarks import dispatch, programs, report, rounds, suite, trees, worker

EPILOG = """
contenders: [label=]library:name(argument=literal)+stage, library one of ours, optax, torch, bnb:
  ours:adamw  'ours:adamw(weight_decay=0.1)'  optax:amsgrad  ours:adamw+lookahead
  torch:adamw-fused  torch:adamw-foreach  torch:adamw-loop
Columns that start with x are ratios to the baseline: of medians, of minima, the median of the
ratios within a round, and of processor time. Samples taken during other work are replaced ("quiet"
is the number of good ones). Repeat runs that are marked "one core" or "other work". If other work
uses cores, torch's spinning threads need OMP_WAIT_POLICY=PASSIVE on small trees.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--baseline", default=None, help="contender to which ratios are computed")
    shared.add_argument("--dtype", default="float32", help="dtype of parameters and gradients")
    shared.add_argument("--max-seconds", type=float, default=600.0, help="time limit of all rounds")
    shared.add_argument(
        "--memory-gib",
        type=float,
        default=None,
        help="memory of contenders that run together; if more are given, they run in groups, each "
        "with the baseline (default: half of the free memory)",
    )
    shared.add_argument("--seed", type=int, default=0, help="seed of the order in each round")
    shared.add_argument(
        "--out", type=Path, action="append", default=[], help=".md, .csv or .json file; repeatable"
    )
    shared.add_argument("--dump-hlo", default=None, help="folder for the optimized HLO")
    shared.add_argument("--xla-flags", default="", help="flags added to XLA_FLAGS")

    steps = argparse.ArgumentParser(add_help=False)
    steps.add_argument(
        "--tree", default="resnet50", help=f"{', '.join(trees.TREES)}; with a size: tiny:1000"
    )
    steps.add_argument("--repeats", type=int, default=15, help="number of rounds")
    steps.add_argument("--sample-s", type=float, default=0.1, help="minimal duration of a sample")
    steps.add_argument(
        "--in-jit",
        type=int,
        default=1,
        help="steps in one jitted call, to time the device without the dispatch, on GPU and TPU",
    )

    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True)
    for name, what, parents, period, names in (
        ("step", "time of one step", [shared, steps], 1, ["optax:adamw", "ours:adamw"]),
        (
            "lookahead",
            "time of one step, averaged over whole periods of Lookahead",
            [shared, steps],
            5,
            ["ours:adamw", "ours:adamw+lookahead", "optax:adamw+lookahead"],
        ),
        ("compile", "time to trace and compile", [shared], 1, ["optax:adamw", "ours:adamw"]),
    ):
        command = commands.add_parser(name, help=what, parents=parents, description=what)
        command.add_argument("contenders", nargs="*", default=names)
        if name == "compile":
            command.add_argument(
                "--leaves", type=int, default=1000, help="number of leaves, 64 elements each"
            )
            command.add_argument("--tree", default=None, help="tree instead of --leaves")
            command.add_argument("--repeats", type=int, default=3, help="number of rounds")
        else:
            command.add_argument("--period", type=int, default=period, help="steps in a period")
    every = commands.add_parser(
        "suite",
        help="run all comparisons of docs/results/benchmarks.md, or the named ones",
        description="Sections: " + ", ".join(suite.SECTIONS),
    )
    every.add_argument("sections", nargs="*", help="default: all of them")
    every.add_argument(
        "--folder", type=Path, default=Path("docs/results"), help="folder of the page"
    )
    every.add_argument(
        "--raw", type=Path, default=Path("build/benchmarks"), help="folder of the raw figures"
    )
    every.add_argument(
        "--max-seconds", type=float, default=150.0, help="time limit of each section"
    )
    every.add_argument("--load", type=float, default=1.0, help="wait until the load is below this")
    every.add_argument("--patience", type=float, default=120.0, help="longest wait in seconds")
    for name, what in (
        ("dispatch", "time of a step on a small network, inside and outside of jit"),
        ("programs", "kernels, bytes and scratch of all optimizers on CPU, TPU and GPU"),
    ):
        paged = commands.add_parser(name, help=what, description=what)
        paged.add_argument("--page", type=Path, default=Path(f"docs/results/{name}.md"))
        if name == "dispatch":
            paged.add_argument("--rounds", type=int, default=400, help="number of rounds")
    return top


def run_suite(given: argparse.Namespace) -> int:
    """Run sections of the suite, and write the page and its CSV."""
    unknown = sorted(set(given.sections) - set(suite.SECTIONS))
    if unknown:
        raise ValueError(f"sections: no {unknown[0]!r}; there are {', '.join(suite.SECTIONS)}")
    failed = 0
    for name in given.sections or suite.SECTIONS:
        suite.wait_for_quiet(given.load, given.patience)
        print(f"\n{name}: {suite.SECTIONS[name].title}", flush=True)
        extra = ["--max-seconds", f"{given.max_seconds:g}"]
        out = given.raw / f"{name}.json"
        failed |= main([*suite.SECTIONS[name].arguments, *extra, "--out", str(out)])
        given.folder.mkdir(parents=True, exist_ok=True)
        (given.folder / "benchmarks.md").write_text(suite.page(given.raw))
        suite.rows_csv(given.raw, given.folder / "benchmarks.csv")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a contender failed (a missing library is not a failure)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    top = parser()
    given = top.parse_args(arguments)
    if given.command == "suite":
        try:
            return run_suite(given)
        except ValueError as error:
            top.error(str(error))
    if given.command == "dispatch":
        dispatch.write(given.page, given.rounds)
        return 0
    if given.command == "programs":
        programs.write(given.page)
        return 0
    compile_only = given.command == "compile"
    names = list(dict.fromkeys(given.contenders))
    baseline = given.baseline or names[0]
    try:
        for path in given.out:
            report.check_suffix(path)
        options = worker.Options(
            tree=given.tree or f"tiny:{given.leaves}",
            dtype=given.dtype,
            compile_only=compile_only,
            period=1 if compile_only else given.period,
            in_jit=1 if compile_only else given.in_jit,
            sample_s=0.0 if compile_only else given.sample_s,
            dump=given.dump_hlo,
            xla_flags=given.xla_flags,
        )
        tree = trees.shapes(options.tree)
        budget = None if given.memory_gib is None else given.memory_gib * rounds.GIB
        rows = list(
            rounds.compare(
                names, baseline, options, given.repeats, given.max_seconds, budget, given.seed
            )
        )
    except ValueError as error:
        top.error(str(error))
    print(f"{options.tree}: {len(tree)} leaves, {trees.count(tree):,} parameters, {options.dtype}")
    print(f"load {os.getloadavg()[0]:.1f}; {report.machine()}\n")
    print(report.text(report.table(rows, compile_only)))
    failed = [row for row in rows if not _ran(row)]
    command = f"python -m benchmarks {shlex.join(_without_out(arguments))}"
    for path in given.out:
        report.write(path, rows, command, compile_only)
    return 1 if failed else 0


def _without_out(arguments: list[str]) -> list[str]:
    """Return the command line without its `--out` options."""
    kept = list(arguments)
    while "--out" in kept:
        at = kept.index("--out")
        del kept[at : at + 2]
    return kept


def _ran(row: rounds.Row) -> bool:
    return "median_s" in row or row["note"].startswith("absent:")
