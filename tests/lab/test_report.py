"""Reports: self-contained, rebuilt from logs alone, showing the numbers that lie beside them."""

import csv
import dataclasses
import io
import itertools
import re

import numpy as np
import pytest
from rich.console import Console

from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.logs import Logged, read_log, write_log
from adamw_jax.lab.plots import files
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.plots.finder import finder
from adamw_jax.lab.plots.heat import heat
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.plots.style import INK, SERIES
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.report import build, html, markdown
from adamw_jax.lab.report.build import Section
from adamw_jax.lab.results import Column, Figure, Panel, Result, Table, Verdict
from adamw_jax.lab.runs import perform, say

pytestmark = pytest.mark.quick

NAMES = ("decay_scale", "decoupled_decay")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    work = [(e, "tiny", e.settings("tiny")) for e in map(get_experiment, NAMES)]
    folder = tmp_path_factory.mktemp("report")
    return perform("A <small> report", work, folder, Console(file=io.StringIO(), width=100))


def test_every_file_is_there(report):
    for section in report.sections:
        name = section.logged.experiment.name
        for kind in ("json", "jsonl", "csv"):
            assert (report.folder / "logs" / f"{name}.{kind}").stat().st_size > 0
        for figure in section.result.figures:
            for kind in ("png", "svg", "csv"):
                assert (report.folder / "figures" / f"{figure.name}.{kind}").stat().st_size > 0
        for table in section.result.tables:
            assert (report.folder / "tables" / f"{table.name}.csv").stat().st_size > 0
    assert (report.folder / "verdicts.csv").stat().st_size > 0


def test_page_needs_nothing_from_outside(report):
    page = (report.folder / "report.html").read_text("utf-8")
    paper = "<a href='https://arxiv.org/abs/1711.05101'>arXiv 1711.05101</a>"
    assert page.count(paper) == len(NAMES)  # one may follow a link, the page loads nothing
    page = page.replace(paper, "")
    assert not re.search(r"https?:|//[a-z]|@import|<script|<link|<iframe|url\((?!#)", page)
    targets = re.findall(r'(?:src|href)=["\']([^"\']*)', page)
    assert targets
    assert all(t.startswith("#") or t.startswith("data:text/csv;base64,") for t in targets)
    assert page.count("<svg") == sum(len(s.result.figures) for s in report.sections) > 0


def test_page_is_well_formed_and_escaped(report):
    page = (report.folder / "report.html").read_text("utf-8")
    assert "A &lt;small&gt; report" in page
    assert "A <small> report" not in page
    for tag in ("section", "table", "figure", "svg", "details", "tr", "td", "p", "div"):
        assert len(re.findall(rf"<{tag}[\s>]", page)) == page.count(f"</{tag}>"), tag
    ids = re.findall(r'\bid=["\']([^"\']+)', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(ids)


def test_page_says_what_the_reporting_rule_asks_for(report):
    page = (report.folder / "report.html").read_text("utf-8")
    for section in report.sections:
        for verdict in section.result.verdicts:
            assert verdict.word in page
        assert f"{section.logged.seconds:.1f} s" in page
    for key in ("processor", "jax", "optax", "numpy", "python", "commit"):
        assert f"<td>{key}</td>" in page
    assert "<td>seeds</td><td>0, 1</td>" in page


def test_dark_page_recolours_the_drawings(report):
    page = (report.folder / "report.html").read_text("utf-8")
    drawing = page[page.index("<svg") : page.index("</svg>")]
    assert INK not in drawing
    assert SERIES[0] not in drawing
    assert "var(--ink)" in drawing
    assert page.count("--series-0:") == 2  # once for light, once for dark


def test_pictures_have_alt_text(report):
    page = (report.folder / "report.html").read_text("utf-8")
    for section in report.sections:
        text = details(report, section)
        for figure in section.result.figures:
            assert len(figure.alt) > 60
            assert f'aria-label="{figure.alt}"' in page
            assert f"![{figure.alt}](../figures/{figure.name}.png)" in text


def details(report, section):
    path = report.folder / "details" / f"{section.logged.experiment.name}.md"
    return path.read_text("utf-8")


def test_markdown_tables_have_equal_rows(report):
    summary = (report.folder / "report.md").read_text("utf-8")
    for text in (summary, *(details(report, section) for section in report.sections)):
        for above, line in itertools.pairwise(text.splitlines()):
            if above.startswith("|") and line.startswith("|"):
                assert bars(above) == bars(line)


def test_the_summary_is_short_and_leads_to_the_details(report):
    """Claim, verdict and numbers stand in the summary, rules and tables in the details alone."""
    summary = (report.folder / "report.md").read_text("utf-8")
    for section in report.sections:
        behind = details(report, section)
        assert f"](details/{section.logged.experiment.name}.md)" in summary
        for v in section.result.verdicts:
            assert summary.count(f"| {v.claim} |") == 1
            assert f"| {v.task} | **{v.word}** | {v.evidence} |" in summary
            assert v.rule not in summary
            assert f"| {v.claim} | {v.task} | **{v.word}** | {v.evidence} | {v.rule} |" in behind
        for table in section.result.tables:
            assert table.title not in summary
            assert markdown.of_table(table) in behind


@pytest.mark.parametrize("prefix", ["", "compare-"])  # a report puts the experiment before
def test_the_ranking_and_the_curves_come_first(prefix):
    """Made-up results of a comparison, in both forms of the report."""
    experiment = get_experiment("compare")
    tables = [Table(prefix + name, f"Title of {name}", [Column("a", "a")], [{"a": 1}])
              for name in ("ranking", "cost")]  # fmt: skip
    verdict = Verdict("A claim", "task", "shown", "Evidence.", "Rule.")
    result = Result([verdict], tables, remarks=["The model and the budget."])
    logged = Logged(experiment, "tiny", experiment.settings("tiny"), 1.0, [])
    section = Section(logged, result, [])
    for text in (html._section(section), markdown.details(section)):
        places = [
            text.index(word)
            for word in (
                "Title of ranking",
                "A claim",
                "The model and the budget.",
                "Title of cost",
            )
        ]
        assert places == sorted(places)  # fmt: skip


def bars(line):
    return len(re.findall(r"(?<!\\)\|", line))


def test_a_bar_in_a_markdown_table_is_escaped():
    columns = [Column("norm", "|x|^2 / d"), Column("b", "b")]
    lines = markdown.of_table(Table("t", "t", columns, [{"norm": "|g|", "b": "1"}])).splitlines()
    assert [bars(line) for line in lines] == [3, 3, 3]
    assert lines[0] == r"| \|x\|^2 / d | b |"


def test_report_is_rebuilt_from_the_logs_alone(report):
    before = {p.name: p.read_bytes() for p in (report.folder / "figures").iterdir()}
    names = ("report.html", "report.md", *(f"details/{name}.md" for name in NAMES))
    pages = [(report.folder / name).read_bytes() for name in names]
    for path in (report.folder / "figures").iterdir():
        path.unlink()
    again = build(report.folder)
    assert [v.word for v in again.verdicts] == [v.word for v in report.verdicts]
    assert pages == [(report.folder / name).read_bytes() for name in names]
    assert before == {p.name: p.read_bytes() for p in (report.folder / "figures").iterdir()}


def drawn(canvas):
    """Title, heights of all lines, and texts of every panel."""
    return [
        (
            ax.get_title(loc="left"),
            np.concatenate(
                [np.zeros(0), *(np.atleast_1d(line.get_ydata()) for line in ax.get_lines())]
            ),
            [text.get_text() for text in ax.texts],
        )
        for ax in canvas.axes
    ]


def assert_csv_is_the_picture(figure, text):
    """Every number in the file stands in the picture, and the other way round."""
    rows = list(csv.DictReader(io.StringIO(text)))
    for title, heights, texts in drawn(files.draw(figure)):
        mine = [row for row in rows if row["panel"] == title]
        if "mean" in mine[0]:  # a heat map: its numbers are written into the cells
            expected = [f"{100 * float(row['mean']):.1f}" for row in mine]
            assert sorted(t for t in texts if "±" not in t) == sorted(expected)
            continue
        key = "value" if mine[0].get("value") else "y"
        numbers = np.array([float(row[key]) for row in mine if row[key]])
        assert set(numbers) == set(heights[np.isin(heights, numbers)])
        assert np.isin(heights, numbers).all()


def test_csv_holds_the_plotted_numbers(report):
    for section in report.sections:
        for figure in section.result.figures:
            path = report.folder / "figures" / f"{figure.name}.csv"
            assert_csv_is_the_picture(figure, path.read_text("utf-8"))


X = [0.01, 0.1, 1.0]
DRAWINGS = {
    "bands": (lines("x", "y", percent=True), [
        {"series": s, "x": x, "y": x / 3 + i, "low": x / 3 + i - 0.1, "high": x / 3 + i + 0.1}
        for i, s in enumerate("ab") for x in X]),
    "bars": (lines("x", "y", xscale="log", spread="bars", markers=True, ticks_at_data=True), [
        {"series": "a", "x": x, "y": x / 7, "low": 0.0, "high": 1.0} for x in X]),
    "dots": (paired_dots("y", percent=True), [
        {"series": s, "seed": seed, "value": 0.5 + 0.1 * i + seed / 70}
        for i, s in enumerate("ab") for seed in range(4)]),
    "theory": (theory("x", "y", xscale="log"), [
        {"series": s, "kind": kind, "x": x, "y": x / 7} for s in "ab"
        for kind in ("measured", "theory") for x in X]),
    "dense theory": (theory("x", "y", dense=True, ylim=(0, 1)), [
        {"series": "a", "kind": kind, "x": x, "y": x / 7}
        for kind in ("measured", "theory") for x in X]),
    "heat": (heat("x", "y", most=0.1), [
        {"x": x, "y": y, "mean": x / 3 + y / 9, "sd": 0.01, "gap": 0.0, "best": x == y}
        for x in X for y in X]),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(DRAWINGS))
def test_every_kind_of_drawing_shows_its_rows(kind, tmp_path):
    draw, rows = DRAWINGS[kind]
    figure = Figure(kind, "A figure", "What it shows.", [Panel("One", draw, rows)], columns=1)
    paths = files.write(figure, tmp_path)
    assert_csv_is_the_picture(figure, paths["csv"].read_text("utf-8"))
    assert b"What it shows." in paths["svg"].read_bytes()
    assert paths["png"].read_bytes().startswith(b"\x89PNG")


def test_the_finder_shows_curves_and_labels_its_suggestions():
    rows = [{"kind": "curve", "series": "seed 0", "x": x, "y": 2 - x} for x in X]
    rows += [{"kind": "suggestion", "series": "valley", "x": 0.03, "y": None}]
    figure = Figure("f", "F", "What it shows.", [Panel("One", finder(), rows)], columns=1)
    ((_, heights, texts),) = drawn(files.draw(figure))
    assert set(heights) == {2 - x for x in X} | {0.0, 1.0}  # and the line from bottom to top
    assert texts == ["valley 0.03"]


def test_unused_panels_stay_empty():
    panel = Panel("One", *DRAWINGS["bars"])
    figure = Figure("f", "F", "What it shows.", [panel] * 4, columns=3)
    assert [ax.axison for ax in files.draw(figure).axes] == [True] * 4 + [False] * 2


def test_same_numbers_same_bytes(report, tmp_path):
    figure = report.sections[0].result.figures[0]
    first, second = files.write(figure, tmp_path / "a"), files.write(figure, tmp_path / "b")
    for kind, path in first.items():
        assert path.read_bytes() == second[kind].read_bytes()


def test_damaged_logs_are_refused_by_name(report, tmp_path):
    logged = report.sections[0].logged
    write_log(tmp_path, logged)
    assert read_log(tmp_path, "decay_scale").rows == logged.rows
    path = tmp_path / "decay_scale.jsonl"
    whole = path.read_text("utf-8")
    path.write_text("\n".join(whole.splitlines()[:-1]), "utf-8")
    with pytest.raises(ValueError, match=r"decay_scale.jsonl has 11 rows that are not the 12"):
        read_log(tmp_path, "decay_scale")
    path.write_text(whole.replace("0.", "1.", 1), "utf-8")
    with pytest.raises(ValueError, match="run the experiment again"):
        read_log(tmp_path, "decay_scale")
    path.write_text(whole[:-20], "utf-8")
    with pytest.raises(ValueError, match=r"cannot read the log .*decay_scale\.jsonl"):
        read_log(tmp_path, "decay_scale")
    (tmp_path / "decay_scale.json").unlink()
    with pytest.raises(ValueError, match=r"cannot read .*decay_scale\.json"):
        read_log(tmp_path, "decay_scale")


def test_logs_hold_no_word_for_infinity(report, tmp_path):
    logged = dataclasses.replace(report.sections[0].logged, rows=[{"kept": float("inf")}])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_log(tmp_path, logged)


def test_verdicts_are_printed_with_their_rules(report):
    out = io.StringIO()
    say(report, Console(file=out, width=200))
    text = " ".join(out.getvalue().replace("│", " ").split())
    for verdict in report.verdicts:
        assert verdict.word in text
        assert verdict.rule[:40] in text
    assert "report.html" in text
