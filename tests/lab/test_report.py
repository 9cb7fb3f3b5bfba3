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
from adamw_jax.lab.logs import read_log, write_log
from adamw_jax.lab.plots import files
from adamw_jax.lab.plots.style import INK, SERIES
from adamw_jax.lab.report import build
from adamw_jax.lab.session import new_folder, perform, say

NAMES = ("decay_scale", "amsgrad", "decoupled_decay")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    work = [(e, "tiny", e.settings("tiny")) for e in map(get_experiment, NAMES)]
    folder = tmp_path_factory.mktemp("report")
    console = Console(file=io.StringIO(), width=100)
    return perform("A <small> report", "adamw-jax test", work, folder, console)


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
    text = (report.folder / "report.md").read_text("utf-8")
    for section in report.sections:
        for figure in section.result.figures:
            assert len(figure.alt) > 60
            assert f'aria-label="{figure.alt}"' in page
            assert f"![{figure.alt}](figures/{figure.name}.png)" in text


def test_markdown_tables_have_equal_rows(report):
    lines = (report.folder / "report.md").read_text("utf-8").splitlines()
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert above.count("|") == line.count("|")


def test_report_is_rebuilt_from_the_logs_alone(report):
    before = {p.name: p.read_bytes() for p in (report.folder / "figures").iterdir()}
    pages = [(report.folder / name).read_bytes() for name in ("report.html", "report.md")]
    for path in (report.folder / "figures").iterdir():
        path.unlink()
    again = build(report.folder)
    assert [v.word for v in again.verdicts] == [v.word for v in report.verdicts]
    assert pages == [(report.folder / name).read_bytes() for name in ("report.html", "report.md")]
    assert before == {p.name: p.read_bytes() for p in (report.folder / "figures").iterdir()}


def drawn(canvas):
    """All numbers that the picture's lines, error bars and cells stand at, panel by panel."""
    found = []
    for ax in canvas.axes:
        xs, ys, texts = [], [], []
        for line in ax.get_lines():
            xs += list(np.atleast_1d(line.get_xdata()))
            ys += list(np.atleast_1d(line.get_ydata()))
        for text in ax.texts:
            texts.append(text.get_text())
        found.append((ax.get_title(loc="left"), np.array(xs, float), np.array(ys, float), texts))
    return found


def test_csv_holds_the_plotted_numbers(report):
    checked = 0
    for section in report.sections:
        for figure in section.result.figures:
            with open(report.folder / "figures" / f"{figure.name}.csv", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            for title, _, ys, texts in drawn(files.draw(figure)):
                mine = [row for row in rows if row["panel"] == title]
                if "mean" in mine[0]:  # a heat map: its numbers are written into the cells
                    expected = [f"{100 * float(row['mean']):.1f}" for row in mine]
                    assert sorted(t for t in texts if "±" not in t) == sorted(expected)
                else:
                    key = "y" if "y" in mine[0] and mine[0]["y"] else "value"
                    numbers = np.array([float(row[key]) for row in mine])
                    distance = np.abs(ys[:, None] - numbers[None]).min(axis=1)
                    assert distance.max() == 0
                    assert np.abs(ys[:, None] - numbers[None]).min(axis=0).max() == 0
                checked += 1
    assert checked >= 4


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
    with pytest.raises(ValueError, match=r"decay_scale.jsonl has 11 rows where .* promises 12"):
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


def test_results_are_not_overwritten_silently(tmp_path):
    folder = new_folder(tmp_path / "new", "demo")
    assert folder.is_dir()
    (folder / "run.json").write_text("{}", "utf-8")
    (folder / "mine.txt").write_text("kept", "utf-8")
    with pytest.raises(ValueError, match="is not empty; choose another --out or add --overwrite"):
        new_folder(folder, "demo")
    new_folder(folder, "demo", overwrite=True)
    assert [p.name for p in folder.iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="no earlier results"):
        new_folder(folder, "demo", overwrite=True)
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ValueError, match="cannot make the folder"):
        new_folder(tmp_path / "file" / "below", "demo")


def test_default_folder_is_new_every_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = {new_folder(None, "demo") for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent.name == "adamw-jax-results" for folder in folders)
