"""Write the report as Markdown."""

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
    """Return the file."""
    run = report.run
    parts = [
        f"# {run['title']}",
        f"`{run['command']}`, started {run['started']}, {run['seconds']:.0f} s of measurements on "
        f"{run['environment']['processor']} ({run['environment']['cores']} cores).",
    ]
    if report.overview:
        figure, files = report.overview
        parts.append(f"![{figure.alt}](figures/{files['png'].name})")
    if report.verdicts:
        parts += ["## Verdicts", _verdicts(report)]
    parts += [part for section in report.sections for part in _section(section)]
    parts += ["## Environment", _lines(f"{k}: {v}" for k, v in run["environment"].items())]
    return "\n\n".join(parts) + "\n"


def _verdicts(report: Report) -> str:
    rows = [
        (v.claim, v.task, f"**{v.word}**", v.evidence, v.rule, v.literature)
        for v in report.verdicts
    ]
    return grid(("Claim", "Task", "Verdict", "Evidence", "Rule", "Literature"), rows)


def _section(section: Section) -> list[str]:
    logged = section.logged
    experiment = logged.experiment
    result = section.result
    claims = [f"**{v.word}** ({v.task}): {v.claim}. {v.evidence}" for v in result.verdicts]
    said = [_lines(texts) for texts in (claims, result.remarks) if texts]
    pictures = [
        f"![{figure.alt}](figures/{files['png'].name})\n\n"
        f"Numbers: [{files['csv'].name}](figures/{files['csv'].name})"
        for figure, files in zip(result.figures, section.pictures, strict=True)
    ]
    first, rest = (
        [part for table in tables for part in (f"### {table.title}", of_table(table))]
        for tables in (result.leading, result.details)
    )
    texts = [experiment.question, experiment.setup, *expected(experiment)]
    parts = [f"## {experiment.title}", *texts, *first]
    parts += [*pictures, *said, *rest] if first else [*said, *pictures, *rest]
    settings = ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(logged.settings).items())
    parts.append(
        f"Preset {logged.preset}, settings {settings_hash(logged.settings)}: {settings}. "
        f"{logged.seconds:.1f} s. {_linked(experiment.reference)}."
    )
    return parts


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
