"""Write the report as one HTML page that contains its pictures, style and numbers."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from adamw_jax.lab.experiments.registry import settings_hash
from adamw_jax.lab.plots.files import as_csv
from adamw_jax.lab.report.markdown import expected
from adamw_jax.lab.report.svg import inline
from adamw_jax.lab.results import Figure, Table, Verdict
from adamw_jax.lab.stats import SIGNS

if TYPE_CHECKING:
    from adamw_jax.lab.report.build import Report, Section


def page(report: Report) -> str:
    """Return the page."""
    run = report.run
    style = (
        importlib.resources.files("adamw_jax.lab.report").joinpath("page.css").read_text("utf-8")
    )
    body = [_header(report)]
    if report.overview:
        body.append(f"<section>{_picture(*report.overview)}</section>")
    if report.verdicts:
        body.append(_summary(report))
    body += [_section(section) for section in report.sections]
    body.append(_environment(run))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(run['title'])}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    run, count = report.run, {word: 0 for word in SIGNS}
    for verdict in report.verdicts:
        count[verdict.word] += 1
    tally = "".join(
        f'<span class="tally">{_pill(word)}<b>{number}</b></span>' for word, number in count.items()
    )
    links = "".join(
        f'<li><a href="#{s.logged.experiment.name}">{escape(s.logged.experiment.title)}</a></li>'
        for s in report.sections
    )
    return (
        f"<header><p class='kicker'>adamw_jax</p><h1>{escape(run['title'])}</h1>"
        f"<p class='lead'><code>{escape(run['command'])}</code> · {escape(run['started'])} · "
        f"{run['seconds']:.0f} s of measurements · {escape(run['environment']['processor'])}, "
        f"{escape(run['environment']['cores'])} cores</p>"
        + (f"<p class='tallies'>{tally}</p>" if report.verdicts else "")
        + (f"<nav><ol>{links}</ol></nav>" if len(report.sections) > 1 else "")
        + "</header>\n"
    )


def _pill(word: str) -> str:
    return f'<span class="pill {word.replace(" ", "-")}">{SIGNS[word]} {word}</span>'


def _summary(report: Report) -> str:
    """Return one line per claim; rules and evidence are in the sections."""
    lines = []
    for section in report.sections:
        for same in _by_claim(section.result.verdicts):
            words = "".join(
                f"<span class='at'>{_pill(v.word)} <span "
                f"class='task'>{escape(v.task)}</span></span>"
                for v in same
            )
            lines.append(
                "<tr><td><a "
                f"href='#{section.logged.experiment.name}'>{escape(same[0].claim)}</a></td>"
                f"<td>{words}</td></tr>"
            )
    return (
        "<section><h2>Verdicts</h2><p>Each is judged by the rule next to the evidence "
        "below. Settings are chosen on validation data, results are reported on test data. "
        "<i>Undecided</i> means that these seeds are too few for the scatter.</p><table "
        f"class='summary'>{''.join(lines)}</table></section>\n"
    )


def _by_claim(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.claim, []).append(verdict)
    return list(groups.values())


def _claim(verdicts: Sequence[Verdict]) -> str:
    first = verdicts[0]
    lines = "".join(
        f"<tr><td>{_pill(v.word)}</td><td class='task'>{escape(v.task)}</td>"
        f"<td>{_unbroken(v.evidence)}</td></tr>"
        for v in verdicts
    )
    literature = f" <b>Literature.</b> {escape(first.literature)}" if first.literature else ""
    return (
        f"<div class='claim'><h3>{escape(first.claim)}</h3><table class='verdicts'>{lines}</table>"
        f"<p class='rule'><b>Rule.</b> {escape(first.rule)}{literature}</p></div>"
    )


def _unbroken(text: str) -> str:
    """Escape a text, without line breaks inside an interval or before a unit."""
    text = re.sub(r"\[[^]]*\]", lambda found: found.group().replace(" ", "\u00a0"), escape(text))
    return re.sub(r" (±|%|points)", "\u00a0\\1", text)


def _section(section: Section) -> str:
    logged, result = section.logged, section.result
    experiment = logged.experiment
    pictures = "".join(
        _picture(figure, files)
        for figure, files in zip(result.figures, section.pictures, strict=True)
    )
    settings = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(_plain(value))}</td></tr>"
        for key, value in dataclasses.asdict(logged.settings).items()
    )
    claims = "".join(_claim(same) for same in _by_claim(result.verdicts))
    claims += remarks(result.remarks)
    first = "".join(table(found) for found in result.leading)
    return (
        f"<section id='{experiment.name}'><h2>{escape(experiment.title)}</h2>"
        f"<p>{escape(experiment.question)}</p><p class='setup'>{escape(experiment.setup)}</p>"
        + "".join(f"<p class='setup'>{escape(text)}</p>" for text in expected(experiment))
        + (first + pictures + claims if first else claims + pictures)
        + "".join(table(found) for found in result.details)
        + f"<details><summary>Settings {settings_hash(logged.settings)}, {logged.seconds:.1f} s"
        f"</summary><table class='plain'><tr><td>preset</td><td>{escape(logged.preset)}</td></tr>"
        f"{settings}</table></details>"
        + (
            f"<p class='reference'>{_linked(experiment.reference)}</p>"
            if experiment.reference
            else ""
        )
        + "</section>\n"
    )


def _linked(reference: str) -> str:
    """Escape a reference; arXiv numbers become links."""
    link = r"<a href='https://arxiv.org/abs/\1'>arXiv \1</a>"
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", link, escape(reference))


def remarks(texts: Iterable[str]) -> str:
    """Return sentences as a list."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<ul class='remarks'>{items}</ul>" if items else ""


def _picture(figure: Figure, files: dict[str, Path]) -> str:
    drawing = inline(files["svg"].read_text("utf-8"), figure.name, figure.alt)
    numbers = files["csv"].read_text("utf-8")
    return (
        f"<figure>{drawing}<figcaption>{escape(figure.alt)} "
        f"{_download(files['csv'].name, numbers, 'Numbers (CSV)')}</figcaption></figure>"
    )


def _download(name: str, text: str, label: str) -> str:
    data = base64.b64encode(text.encode()).decode()
    return f'<a download="{escape(name)}" href="data:text/csv;base64,{data}">{label}</a>'


def table(table: Table) -> str:
    """Return a table of results, open if it is short."""
    heads = "".join(
        f"<th{' class=number' if c.numeric else ''}>{escape(c.title)}</th>" for c in table.columns
    )
    lines = "".join(
        f"<tr{' class=best' if row.get('chosen') else ''}>"
        + "".join(
            f"<td{' class=number' if c.numeric else ''}>{escape(c.cell(row))}</td>"
            for c in table.columns
        )
        + "</tr>"
        for row in table.rows
    )
    opened = " open" if len(table.rows) <= 8 else ""
    return (
        f"<details{opened}><summary>{escape(table.title)} ({len(table.rows)} rows)</summary>"
        f"<div class='scroll'><table class='data'><thead><tr>{heads}</tr></thead><tbody>{lines}"
        f"</tbody></table></div><p>{_download(f'{table.name}.csv', as_csv(table.rows), 'CSV')}</p>"
        "</details>"
    )


def _environment(run: dict) -> str:
    lines = "".join(
        f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td></tr>"
        for key, value in run["environment"].items()
    )
    return f"<section><h2>Environment</h2><table class='plain'>{lines}</table></section>\n"


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(f"({_plain(v)})" if isinstance(v, tuple | list) else str(v) for v in value)
    return str(value)
