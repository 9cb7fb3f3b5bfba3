"""Run experiments: measure, write logs, build the report, print the verdicts."""

from __future__ import annotations

import contextlib
import datetime
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from adamw_jax.lab.environment import environment
from adamw_jax.lab.experiments.registry import Experiment
from adamw_jax.lab.logs import Logged, write_log, write_run
from adamw_jax.lab.progress import Lines, Live, Progress
from adamw_jax.lab.report import Report, build
from adamw_jax.lab.results import Table, Verdict
from adamw_jax.lab.stats import SIGNS
from adamw_jax.lab.train import Runner

ROOT = Path("adamw-jax-results")
COLORS = {"shown": "green", "equivalent": "cyan", "contradicted": "red", "undecided": "yellow",
          "does not apply": "dim"}  # fmt: skip
MARK = "run.json"


def new_folder(out: Path | None, kind: str, overwrite: bool = False) -> Path:
    """Make an empty folder for results and return its path.

    Args:
      out: the user's choice, or None for a new folder under ``adamw-jax-results``.
      kind: the command, for the name of the folder.
      overwrite: replace earlier results in the folder; other files are never deleted.
    """
    if out is None:
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        out = ROOT / f"{kind}-{stamp}"
        number = 2
        while out.exists():
            out = ROOT / f"{kind}-{stamp}-{number}"
            number += 1
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(f"{out} is not empty; choose another --out or add --overwrite.")
        if not (out / MARK).is_file():
            raise ValueError(
                f"{out} has files but no earlier results ({MARK}), so nothing is deleted; choose "
                "another --out."
            )
        _clear(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out}: {error}") from error
    return out


def _clear(folder: Path) -> None:
    """Delete the files that a run writes, and no others."""
    for name in ("logs", "figures", "tables"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (MARK, "report.html", "report.md", "verdicts.csv"):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """Show a bar on a terminal, lines elsewhere."""
    if console.is_terminal:
        with Live(console) as live:
            yield live
    else:
        yield Lines(console)


def perform(
    title: str,
    command: str,
    work: Sequence[tuple[Experiment, str, Any]],
    folder: Path,
    console: Console,
) -> Report:
    """Measure, write logs, and build the report.

    Args:
      title: title of the report.
      command: the user's command.
      work: experiments, each with the name of its preset and its settings.
      folder: an empty folder.
      console: console for progress.
    """
    begun = time.perf_counter()
    started = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with shown_progress(console) as progress:
        runner = Runner(progress)
        for number, (experiment, preset, settings) in enumerate(work, 1):
            progress.experiment(experiment.title, number, len(work))
            clock = time.perf_counter()
            rows = experiment.measure(settings, runner)
            seconds = time.perf_counter() - clock
            write_log(folder / "logs", Logged(experiment, preset, settings, seconds, rows))
    seconds = time.perf_counter() - begun
    names = [experiment.name for experiment, _, _ in work]
    write_run(folder, title, command, started, seconds, environment(), names)
    console.print("Writing the report ...", style="dim")
    return build(folder)


def say(report: Report, console: Console, *, tables: bool = False) -> None:
    """Print the verdicts with their rules, the files, and with ``tables`` each first table."""
    if tables:
        for section in report.sections:
            for table in section.result.tables[:1]:
                console.print(grid_of(table))
            for remark in section.result.remarks:
                console.print(f"· {remark}", markup=False, highlight=False)
    if report.verdicts:
        console.print(_verdicts(report))
    console.print(
        f"Report:   {(report.folder / 'report.html').resolve()}", markup=False, soft_wrap=True
    )
    console.print(
        f"Also:     report.md, figures/ (PNG, SVG, CSV), tables/ (CSV), logs/ (JSONL, CSV). "
        f"{report.run['seconds']:.0f} s of measurements.",
        markup=False,
        highlight=False,
    )


def _verdicts(report: Report) -> Grid:
    """Return one row per claim: claim and rule, and the verdict and evidence of each task."""
    grid = Grid(title=report.run["title"], title_justify="left", title_style="bold")
    grid.show_lines, grid.header_style = True, "bold"
    grid.add_column("Claim and rule", ratio=5)
    grid.add_column("Verdict and evidence", ratio=6)
    claims: dict[str, list[Verdict]] = {}
    for verdict in report.verdicts:
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
        grid.add_column(column.title, justify="right" if column.numeric else "left")
    for row in table.rows:
        style = "bold" if row.get("chosen") else None
        grid.add_row(*(escape(column.cell(row)) for column in table.columns), style=style)
    return grid
