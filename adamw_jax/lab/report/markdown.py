"""Write the report as Markdown: a summary, and a file with the details of each experiment."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from adamw_jax.lab.experiments.registry import Experiment, settings_hash
from adamw_jax.lab.results import Table

if TYPE_CHECKING:
    from adamw_jax.lab.report.build import Report, Section


def page(report: Report) -> str:
    """Return the summary: every claim with its verdict and numbers, and where the details are."""
    run = report.run
    parts = [
        f"# {run['title']}",
        f"`{run['command']}`, started {run['started']}, {run['seconds']:.0f} s of measurements on "
        f"{run['environment']['processor']} ({run['environment']['cores']} cores).",
    ]
    if report.overview:
        figure, files = report.overview
        parts.append(f"![{figure.alt}](figures/{files['png'].name})")
    parts += [part for section in report.sections for part in _summary(section)]
    parts += ["## Environment", _lines(f"{k}: {v}" for k, v in run["environment"].items())]
    return "\n\n".join(parts) + "\n"


def _summary(section: Section) -> list[str]:
    """Return what a section says first; a claim is named once, above its other tasks."""
    experiment, result = section.logged.experiment, section.result
    where = f"details/{experiment.name}.md"
    parts = [f"## {experiment.title}"]
    if experiment.reference:
        parts.append(f"{_linked(experiment.reference)}.")
    parts += _tables(result.leading)
    if result.verdicts:
        claims = ["", *(verdict.claim for verdict in result.verdicts)]
        rows = [
            ("" if v.claim == before else v.claim, v.task, f"**{v.word}**", v.evidence)
            for before, v in zip(claims, result.verdicts, strict=False)
        ]
        parts.append(grid(("Claim", "Task", "Verdict", "Numbers"), rows))
    what = "Setup, rules of judgement, pictures" if result.verdicts else "Setup, pictures"
    return [*parts, f"[{what} and every number]({where})"]


def details(section: Section) -> str:
    """Return the file with everything on one experiment."""
    logged, result = section.logged, section.result
    experiment = logged.experiment
    verdicts = [
        (v.claim, v.task, f"**{v.word}**", v.evidence, v.rule, v.literature)
        for v in result.verdicts
    ]
    titles = ("Claim", "Task", "Verdict", "Evidence", "Rule", "Literature")
    said = [grid(titles, verdicts)] if verdicts else []
    said += [_lines(result.remarks)] if result.remarks else []
    pictures = [
        f"![{figure.alt}](../figures/{files['png'].name})\n\n"
        f"Numbers: [{files['csv'].name}](../figures/{files['csv'].name})"
        for figure, files in zip(result.figures, section.pictures, strict=True)
    ]
    first = _tables(result.leading)
    parts = [f"# {experiment.title}", experiment.question, experiment.setup, *expected(experiment)]
    parts += [*first, *pictures, *said] if first else [*said, *pictures]
    parts += _tables(result.details)
    settings = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(logged.settings).items())
    parts.append(
        f"Preset {logged.preset}, settings {settings_hash(logged.settings)}: {settings}. "
        f"{logged.seconds:.1f} s. {_linked(experiment.reference)}."
    )
    return "\n\n".join(parts) + "\n"


def _tables(tables: Iterable[Table]) -> list[str]:
    return [part for table in tables for part in (f"### {table.title}", of_table(table))]


def expected(experiment: Experiment) -> list[str]:
    """Return a sentence on what the full preset should give, if the experiment has one."""
    found = experiment.expected
    return [f"What the preset full should give: {found}"] if found else []


def _linked(reference: str) -> str:
    """Make links of arXiv numbers."""
    link = r"[arXiv \1](https://arxiv.org/abs/\1)"
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", link, reference)


def of_table(table: Table) -> str:
    """Return a table of results as Markdown."""
    rows = [[column.cell(row) for column in table.columns] for row in table.rows]
    return grid([column.title for column in table.columns], rows)


def grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; bars in headings and cells are escaped."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(titles), "|" + "---|" * len(titles), *map(line, rows)])


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(f"- {text}" for text in texts)
