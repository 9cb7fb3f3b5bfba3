"""Run experiments and comparisons: measure, write logs, build the report, print the verdicts."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import datetime
import functools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from adamw_jax.lab.comparison import Comparison, whole_runs
from adamw_jax.lab.environment import environment
from adamw_jax.lab.experiments.compare import EXPERIMENT
from adamw_jax.lab.experiments.registry import Experiment
from adamw_jax.lab.folders import open_folder
from adamw_jax.lab.logs import LiveLog, Logged, read_log, same_settings, write_log, write_run
from adamw_jax.lab.progress import Lines, Live, Progress
from adamw_jax.lab.report import Report, build
from adamw_jax.lab.results import Result, Table, Verdict
from adamw_jax.lab.stats import SIGNS
from adamw_jax.lab.study import Study, terminated_like_interrupted
from adamw_jax.lab.train import Runner
from adamw_jax.lab.unfinished import Unfinished

COLORS = {
    "shown": "green",
    "equivalent": "cyan",
    "contradicted": "red",
    "undecided": "yellow",
    "does not apply": "dim",
}
COMMAND = contextvars.ContextVar("command", default="adamw_jax.lab.compare(...)")
"""The command that the reports name."""


@contextlib.contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """Show a bar on a terminal, lines elsewhere."""
    if console.is_terminal:
        with Live(console) as live:
            yield live
    else:
        yield Lines(console)


def _begun(folder: Path, title: str, names: Sequence[str]) -> dict[str, Any]:
    """Write and return the head of a run, whose seconds are not known yet."""
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    run = {"title": title, "command": COMMAND.get(), "started": now, "seconds": 0.0,
           "environment": environment(), "experiments": list(names)}  # fmt: skip
    write_run(folder, run)
    return run


def _built(folder: Path, run: dict[str, Any], seconds: float) -> Report:
    write_run(folder, run | {"seconds": round(seconds, 1)})
    return build(folder)


def perform(
    title: str,
    work: Sequence[tuple[Experiment, str, Any]],
    out: Path,
    console: Console,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> Report:
    """Measure, write logs, and build the report.

    Args:
      title: title of the report.
      work: experiments, each with the name of its preset and its settings.
      out: folder for the results.
      console: console for progress.
      overwrite: replace earlier results, see ``open_folder``.
      resume: keep what is finished, and go on inside the runs that are not.
    """
    with open_folder(out, overwrite=overwrite, resume=resume) as folder:
        run = _begun(folder, title, [experiment.name for experiment, _, _ in work])
        seconds = 0.0
        with shown_progress(console) as progress, terminated_like_interrupted():
            runner = Runner(progress)
            runner.engine.unfinished = Unfinished(folder)
            for number, (experiment, preset, settings) in enumerate(work, 1):
                progress.experiment(experiment.title, number, len(work))
                logs = folder / "logs"
                if not (resume and _finished(logs, experiment, settings)):
                    clock = time.perf_counter()
                    runner.log = LiveLog(
                        logs, Logged(experiment, preset, settings, 0.0, []), resume
                    )
                    rows = experiment.measure(settings, runner)
                    runner.log.finish(rows, time.perf_counter() - clock)
                    runner.engine.unfinished.remove()
                seconds += read_log(logs, experiment.name).seconds
        console.print("Writing the report ...", style="dim")
        report = _built(folder, run, seconds)
    return dataclasses.replace(report, folder=out)


def _finished(logs: Path, experiment: Experiment, settings: Any) -> bool:
    """Return whether there is a whole log, which must have these settings."""
    if not (logs / f"{experiment.name}.json").exists():
        return False
    old = read_log(logs, experiment.name)
    same_settings(logs, old.settings, settings)
    return old.finished


def run_study(study: Study, out: Path, *, resume: bool, overwrite: bool) -> Comparison:
    """Run a comparison with a live log in a folder, and build the report there."""
    settings = study.settings
    with open_folder(out, overwrite=overwrite, resume=resume) as folder:
        begin = Logged(EXPERIMENT, "own", settings, 0.0, [])
        log = LiveLog(folder / "logs", begin, resume, functools.partial(whole_runs, settings))
        run = _begun(folder, comparison_title(settings), [EXPERIMENT.name])
        study.engine.unfinished = Unfinished(folder)
        found = study.run(log.rows, log.add)
        logged = log.finish(found.rows, found.seconds)
        study.engine.unfinished.remove()
        _built(folder, run, logged.seconds)
    return dataclasses.replace(found, seconds=logged.seconds)


def write_results(found: Comparison, out: Path, overwrite: bool) -> Path:
    """Write the log and the report of a comparison; return the report."""
    with open_folder(out, overwrite=overwrite) as folder:
        run = _begun(folder, comparison_title(found.settings), [EXPERIMENT.name])
        logged = Logged(EXPERIMENT, "own", found.settings, found.seconds, found.rows)
        write_log(folder / "logs", logged)
        _built(folder, run, found.seconds)
    return out / "report.html"


def comparison_title(settings: Any) -> str:
    """Return the title of the report of a comparison."""
    return f"{', '.join(settings.optimizers)} on {settings.task}"


def say(report: Report, console: Console, *, tables: bool = False) -> None:
    """Print the verdicts with their rules, the files, and with ``tables`` each first table."""
    results = [section.result for section in report.sections]
    title, seconds = report.run["title"], report.run["seconds"]
    say_results(title, results, report.folder, seconds, console, tables=tables)


def say_results(
    title: str,
    results: Sequence[Result],
    folder: Path,
    seconds: float,
    console: Console,
    *,
    tables: bool,
) -> None:
    """Print results as ``say`` does; the files come first, because printing can fail."""
    console.print(f"Report:   {(folder / 'report.html').resolve()}", markup=False, soft_wrap=True)
    console.print(
        f"Also:     report.md, details/, figures/ (PNG, SVG, CSV), tables/, logs/ (JSONL, CSV). "
        f"{seconds:.0f} s of measurements.",
        markup=False,
        highlight=False,
    )
    for result in results if tables else ():
        for table in result.tables[: 2 if result.leading else 1]:
            console.print(grid_of(table))
        for remark in result.remarks:
            console.print(f"· {remark}", markup=False, highlight=False)
    verdicts = [verdict for result in results for verdict in result.verdicts]
    if verdicts:
        console.print(_verdicts(title, verdicts))


def _verdicts(title: str, all_verdicts: Sequence[Verdict]) -> Grid:
    """Return one row per claim: claim and rule, and the verdict and evidence of each task."""
    grid = Grid(title=escape(title), title_justify="left", title_style="bold")
    grid.show_lines, grid.header_style = True, "bold"
    grid.add_column("Claim and rule", ratio=5)
    grid.add_column("Verdict and evidence", ratio=6)
    claims: dict[str, list[Verdict]] = {}
    for verdict in all_verdicts:
        claims.setdefault(verdict.claim, []).append(verdict)
    for claim, verdicts in claims.items():
        grid.add_row(
            f"[bold]{escape(claim)}[/]\n[dim]{escape(verdicts[0].rule)}[/]",
            "\n".join(
                f"[bold {COLORS[v.word]}]{SIGNS[v.word]} {v.word}[/] · [bold]{escape(v.task)}[/]\n"
                f"{escape(v.evidence)}"
                for v in verdicts
            ),
        )
    return grid


def grid_of(table: Table) -> Grid:
    """Return a table of results for the terminal."""
    grid = Grid(title=table.title, title_justify="left", header_style="bold", title_style="bold")
    for column in table.columns:
        name = not any(" " in column.cell(row) for row in table.rows)  # a name is never cut
        side: Literal["left", "right"] = "right" if column.numeric else "left"
        grid.add_column(column.title, justify=side, overflow="fold", no_wrap=name)
    for row in table.rows:
        style = "bold" if row.get("chosen") else None
        grid.add_row(*(escape(column.cell(row)) for column in table.columns), style=style)
    return grid
