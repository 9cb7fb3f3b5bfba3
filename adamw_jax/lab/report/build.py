"""Build verdicts, tables, pictures and the two reports from a folder of logs.

This writes ``report.html``, ``report.md``, ``verdicts.csv``, ``details/``, ``figures/`` and
``tables/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adamw_jax.lab.json_files import read_json, write_text
from adamw_jax.lab.logs import Logged, read_log
from adamw_jax.lab.plots.files import as_csv, write
from adamw_jax.lab.report import html, markdown
from adamw_jax.lab.report.overview import overview
from adamw_jax.lab.results import Figure, Result, Verdict


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment in a report; ``pictures`` are the files of its figures, in order."""

    logged: Logged
    result: Result
    pictures: Sequence[dict[str, Path]]


@dataclasses.dataclass(frozen=True)
class Report:
    """The content of a report.

    Attributes:
      folder: folder of the report.
      run: the content of ``run.json``.
      sections: one section per experiment.
      overview: the picture at the top with its files, or None.
    """

    folder: Path
    run: dict[str, Any]
    sections: Sequence[Section]
    overview: tuple[Figure, dict[str, Path]] | None

    @property
    def verdicts(self) -> list[Verdict]:
        """Return all verdicts, grouped by claim."""
        return grouped(verdict for section in self.sections for verdict in section.result.verdicts)


def build(folder: Path) -> Report:
    """Analyse the logs in a folder and write the reports into it.

    A comparison that was interrupted is shown as far as it goes, another experiment is left out. A
    damaged folder is a ``ValueError``.
    """
    if not (folder / "run.json").is_file():
        raise ValueError(
            f"folder must hold results, but {folder} has no run.json: give the folder of a run."
        )
    run = read_json(folder / "run.json")
    try:
        _check(run)
        logs = _logs(folder, run["experiments"])
        results = {logged.experiment.name: logged.experiment.analyse(logged.settings, logged.rows)
                   for logged in logs}  # fmt: skip
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file leads to
        what = f"there is no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"the results in {folder} are damaged: {what}") from error
    if not logs:
        raise ValueError(f"the run in {folder} was interrupted: continue it with --resume.")
    (folder / "figures").mkdir(exist_ok=True)
    sections = [_section(folder, logged, results[logged.experiment.name]) for logged in logs]
    picture = overview(run["title"], results)
    report = Report(
        folder, run, sections, (picture, write(picture, folder / "figures")) if picture else None
    )
    if report.verdicts:
        rows = [
            {"experiment": section.logged.experiment.name, **dataclasses.asdict(verdict)}
            for section in sections
            for verdict in section.result.verdicts
        ]
        write_text(folder / "verdicts.csv", as_csv(rows))
    write_text(folder / "report.html", html.page(report))
    write_text(folder / "report.md", markdown.page(report))
    (folder / "details").mkdir(exist_ok=True)
    for section in sections:
        path = folder / "details" / f"{section.logged.experiment.name}.md"
        write_text(path, markdown.details(section))
    return report


TYPES = {"title": str, "command": str, "started": str, "seconds": int | float,
         "environment": dict, "experiments": list}  # fmt: skip


def _check(run: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a field of ``run.json`` is missing or of another type."""
    for name, kind in TYPES.items():
        if not isinstance(run.get(name), kind):
            raise ValueError(f"run.json has a wrong {name}, {run.get(name)!r}")
    for name in ("processor", "cores"):
        if not isinstance(run["environment"].get(name), str):
            raise ValueError(f"run.json has a wrong {name} in environment")


def _logs(folder: Path, names: Sequence[str]) -> list[Logged]:
    """Return the logs of a run; those of experiments that had not begun are left out.

    So are those that were interrupted, unless their analysis is made for this.
    """
    begun = [name for name in names if (folder / "logs" / f"{name}.json").exists()]
    found = [read_log(folder / "logs", name) for name in begun]
    if not found:
        raise ValueError("it has no log of any experiment")
    return [logged for logged in found if logged.finished or logged.experiment.partial]


def grouped(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts in order, with those on the same claim next to each other."""
    claims: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        claims.setdefault(verdict.claim, []).append(verdict)
    return [verdict for same in claims.values() for verdict in same]


def _section(folder: Path, logged: Logged, result: Result) -> Section:
    name = logged.experiment.name
    figures = [
        dataclasses.replace(figure, name=f"{name}-{figure.name}") for figure in result.figures
    ]
    tables = [dataclasses.replace(table, name=f"{name}-{table.name}") for table in result.tables]
    result = dataclasses.replace(
        result, figures=figures, tables=tables, verdicts=grouped(result.verdicts)
    )
    (folder / "tables").mkdir(exist_ok=True)
    for table in tables:
        path = folder / "tables" / f"{table.name}.csv"
        write_text(path, as_csv(table.rows))
    return Section(logged, result, [write(figure, folder / "figures") for figure in figures])
