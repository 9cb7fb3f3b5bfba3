"""The command line, in this process, on settings that take seconds."""

import ast
import csv
import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import adamw_jax
from adamw_jax import list_optimizers
from adamw_jax.lab.cli import main
from adamw_jax.lab.cli.catalogue import show_list
from adamw_jax.lab.cli.commands import COMMANDS
from adamw_jax.lab.cli.parsing import axes, axis, count, names, rates
from adamw_jax.lab.comparison import Comparison
from adamw_jax.lab.experiments import list_experiments
from adamw_jax.lab.experiments.compare import _remarks
from adamw_jax.lab.results import Column, Table
from adamw_jax.lab.runs import grid_of
from adamw_jax.lab.settings import Settings
from adamw_jax.lab.spaces import log_uniform, uniform
from adamw_jax.lab.tasks import TASKS

pytestmark = pytest.mark.quick

PACKAGE = Path(adamw_jax.__file__).parent


def said(capsys):
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_list(capsys):
    assert main(["list"]) == 0
    text = said(capsys)
    assert all(name in text for name in list_optimizers())
    assert "mnist1d" in text
    assert "decoupled_decay" in text
    assert main(["list", "adam?"]) == 0
    text = said(capsys)
    assert "adamw" in text
    assert "radam" not in text
    assert main(["list", "dig*"]) == 0
    text = said(capsys)
    assert "digits_noisy" in text
    assert "scikit-learn" in text
    assert "Optimizers" not in text
    assert "Experiments" not in text


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"adamw-jax {adamw_jax.__version__}\n"


def test_names_are_whole_in_80_columns(capsys):
    show_list("*", Console(width=80))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = set(text.split())
    assert {*list_optimizers(), *TASKS, *list_experiments()} <= words
    shown = [{"optimizer": name, "mean": 0.5, "note": "a sentence that may go over several lines"}
             for name in ("schedule_free_adamw", "lookahead_generalized_signsgd")]  # fmt: skip
    columns = [Column("optimizer", "optimizer"), Column("mean", "mean", "{:.3f}"),
               Column("note", "a note"), Column("note", "another note")]  # fmt: skip
    Console(width=80).print(grid_of(Table("t", "Title", columns, shown)))
    text = capsys.readouterr().out
    assert all(row["optimizer"] in text for row in shown)
    assert "…" not in text


@pytest.mark.parametrize("command", list(COMMANDS.values()))
def test_every_option_has_a_sentence(command):
    """Options begin with a capital letter and end with a full stop, so that help reads as text."""
    text = inspect.cleandoc(command.__doc__)
    described = re.findall(r"^ {2}(\w+): (.+(?:\n {4}.+)*)", text, re.MULTILINE)
    assert {name for name, _ in described} == {f.name for f in dataclasses.fields(command)}
    for _, text in described:
        assert text[0].isupper()
        assert text.endswith(".")


def test_where_every_run_diverged_the_remark_says_so():
    settings = Settings(task="t", optimizers=("a", "b"), seeds=2, tuning_seeds=1, trials=4,
                        steps=1, evaluations=1)  # fmt: skip
    rows = [{"optimizer": name, "stage": stage, "trial": trial, "seed": seed, "step": 1,
             "learning_rate": 0.1, "weight_decay": 0.1 * (trial + 1), "train_loss": 0.5,
             **{f"{split}_accuracy": None if name == "a" or trial == 1 else 0.5 + trial / 10
                for split in ("train", "validation", "test")}}
            for name in "ab" for trial in range(4)
            for stage, seed in (("tune", 0), ("confirm", 1), ("confirm", 2))
            if stage == "tune" or trial == (0 if name == "a" else 3)]  # fmt: skip
    said = list(_remarks(Comparison(settings, rows)))
    assert "a: every run diverged. Give it smaller learning rates." in said
    assert any(line.startswith("b: 1 of 4 tuning runs and 0 of 2") for line in said)
    assert [line.split()[0] for line in said if "edge" in line] == ["b"]


@pytest.mark.parametrize("name", list_optimizers())
def test_info_shows_every_field(name, capsys):
    assert main(["info", name]) == 0
    text = said(capsys)
    record = adamw_jax.info(name)
    assert record.title in text
    assert record.citation[:20] in text
    assert "learning_rate" in text


def test_doctor(capsys):
    assert main(["doctor"]) == 0
    text = said(capsys)
    for word in ("python", "jax", "optax", "cpu", "a step of adamw right", "commit"):
        assert word in text


def test_doctor_fails_where_the_library_is_wrong(capsys, monkeypatch):
    import optax

    from adamw_jax.lab.cli import doctor

    monkeypatch.setattr(doctor, "adamw", lambda *a, **k: optax.sgd(1.0))
    assert main(["doctor"]) == 1
    assert "wrong" in said(capsys)


def test_run_and_report(tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["run", "reddi", "--preset", "tiny", "--out", str(out)]) == 0
    text = said(capsys)
    assert "shown" in text
    assert "Reddi" in text
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").is_file()
    assert main(["run", "reddi", "--preset", "tiny", "--out", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_compare(tmp_path, capsys):
    out = tmp_path / "results"
    command = ["compare", "adamw", "sgdw", "lookahead_adamw", "--task", "digits",
               "--seeds", "3", "--tuning-seeds", "1", "--steps", "20", "--lr-grid", "0.003,0.03",
               "--space", "b2=0.99", "sgdw.weight_decay=none", "weight_decay=0.1",
               "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    text = said(capsys)
    assert "gain over adamw" in text
    assert "3 fresh seeds" in text
    rows = [json.loads(line) for line in (out / "logs" / "compare.jsonl").read_text().splitlines()]
    with open(out / "tables" / "compare-ranking.csv", encoding="utf-8") as file:
        ranking = {line["optimizer"]: line for line in csv.DictReader(file)}
    for name, line in ranking.items():
        mine = [r["test_accuracy"] for r in rows if r["optimizer"] == name
                and r["stage"] == "confirm" and r["step"] == 20]  # fmt: skip
        assert float(line["mean"]) == pytest.approx(sum(mine) / 3)
    trials = {(r["optimizer"], r["learning_rate"], r.get("weight_decay")) for r in rows}
    assert trials == {(name, rate, None if name == "sgdw" else 0.1)
                      for name in ranking for rate in (0.003, 0.03)}  # fmt: skip
    assert json.loads((out / "run.json").read_text("utf-8"))["command"].startswith(
        "adamw-jax compare adamw sgdw lookahead_adamw --task digits"
    )


def test_lr_find(tmp_path, capsys):
    out = tmp_path / "results"
    command = ["lr-find", "adamw", "--task", "digits", "--seeds", "2", "--out", str(out)]
    assert main(command) == 0
    text = said(capsys)
    assert "valley" in text
    rows = [json.loads(line) for line in (out / "logs" / "lr_find.jsonl").read_text().splitlines()]
    found = {r["rule"]: r["learning_rate"] for r in rows if r["kind"] == "suggestion"}
    assert 1e-5 < found["valley"] < 1
    assert {r["seed"] for r in rows} == {0, 1}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["info", "adamv"], "unknown optimizer 'adamv'; choose from acprop"),
        (["list", "zzz*"], "unknown name 'zzz*'; choose from"),
        (["list", "digts"], "unknown name 'digts'.*Did you mean 'digits'"),
        (["comapre"], "unknown command 'comapre'; choose from demo.*Did you mean 'compare'"),
        (["info", "Radam"], "Did you mean 'radam'"),
        (["info", "lookahead_radamm"], "Did you mean 'lookahead_radam'"),
        (["compare", "--task", "Mnist1D"], "Did you mean 'mnist1d'"),
        (["compare", "--lr-grid", "0,1"], "learning_rate of adamw must be above 0, got 0.0"),
        (
            ["compare", "--optimizers", "adamw,radm"],
            "unknown optimizer 'radm'.*Did you mean 'radam'",
        ),
        (["compare", "adamw", "radm"], "unknown optimizer 'radm'.*Did you mean 'radam'"),
        (["compare", "adamw", "--optimizers", "adam,radam"], "are given twice, as adamw and as"),
        (["lr-find", "adamw", "--optimizer", "adam"], "is given twice, as adamw and as"),
        (["compare", "--optimizers", "adamw"], "two or more with different names"),
        (["compare", "--optimizers", "adamw,adamw"], "must be different, got 'adamw' twice"),
        (["compare", "--task", "mnist"], "unknown task 'mnist'; choose from mnist1d, digits"),
        (["compare", "--task", "nothing.py:task"], "there is no file nothing.py"),
        (["compare", "--task", "json:loads"], "or a function that returns one, got function"),
        (["compare", "--task", "json:lods"], "unknown name in json 'lods'.*Did you mean 'loads'"),
        (["compare", "--task", "json:decoder"], "must be an adamw_jax.lab.Task .* got module"),
        (["compare", "--seeds", "1"], "seeds must be between 2 and"),
        (["compare", "--steps", "0"], "steps must be a whole number >= 1, got 0"),
        (["compare", "--trials", "0"], "trials must be a whole number >= 1, got 0"),
        (["compare", "--margin", "-1"], "margin must be a number >= 0"),
        (["compare", "--metric", "acuracy"], "unknown metric 'acuracy'.*Did you mean 'accuracy'"),
        (["compare", "--space", "b2"], "--space must be AXIS=VALUES"),
        (["compare", "--space", "sgd.b2=1"], "with an optimizer of adamw, radam"),
        (["compare", "--space", "radam.speed=1"], "unknown hyperparameter of radam 'speed'"),
        (["compare", "--space", "speed=1"], "no optimizer takes 'speed'"),
        (["compare", "--space", "b2=1..0"], "finite bounds low < high"),
        (["compare", "--space", "learning_rate=none"], "must have the axis learning_rate"),
        (["lr-find", "--end", "inf"], "0 < start < end"),
        (["compare", "--lr-grid", "0.1,x"], "--lr-grid must be numbers separated by commas"),
        (["lr-find", "--task", "cifar"], "unknown task 'cifar'"),
        (["lr-find", "--optimizer", "lookahead_"], "unknown optimizer 'lookahead_'"),
        (["lr-find", "--start", "1", "--end", "0.1"], "0 < start < end"),
        (["lr-find", "--steps", "3"], "steps must be 20 or more"),
        (["run", "radamm"], "unknown experiment 'radamm'.*Did you mean 'radam'"),
        (["run"], "one or more different experiments"),
        (["report", "nowhere"], "folder must hold results, but nowhere has no run.json"),
    ],
)
def test_bad_input_is_answered_in_words(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert re.search(message.replace("*'", r"\*'"), error), error
    assert not list(tmp_path.iterdir())  # nothing is left behind


@pytest.mark.parametrize("command", [["demo", "--fast"], ["compare", "--seeds", "four"]])
def test_unknown_commands_and_options_exit_with_an_error(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(command)
    assert exit_.value.code == 2


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "adamw_jax.lab.cli.commands", None)

    def refuse(name, *rest, **more):
        if name == "adamw_jax.lab.cli.commands":
            raise ModuleNotFoundError("No module named 'flax'", name="flax")
        return original(name, *rest, **more)

    original = __builtins__["__import__"]
    monkeypatch.setitem(__builtins__, "__import__", refuse)
    assert main(["doctor"]) == 2
    assert 'pip install "adamw-jax[demo]"' in capsys.readouterr().err


def test_lists_on_the_command_line():
    assert names("--x", " a, b ,,c") == ("a", "b", "c")
    assert rates("--x", "1e-2,0.001,1e-2") == (0.001, 0.01)
    assert count("--x", 3) == (0, 1, 2)
    assert axis("--x", "0.1..1") == log_uniform(0.1, 1)
    assert axis("--x", "0..1") == uniform(0, 1)
    assert axis("--x", "none") is None
    assert axes("--x", ["b2=0.9,0.99", "radam.b1=0"], ["radam"]) == {
        "": {"b2": (0.9, 0.99)}, "radam": {"b1": (0.0,)},
    }  # fmt: skip
    with pytest.raises(ValueError, match="--x must be names"):
        names("--x", " , ")


def test_the_library_never_imports_the_lab():
    for path in PACKAGE.rglob("*.py"):
        if "lab" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            imported = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""] + [f"{node.module}.{a.name}" for a in node.names]
            assert not any("lab" in name.split(".") for name in imported), path


def test_importing_the_library_loads_none_of_the_labs_needs():
    code = (
        "import sys, adamw_jax; "
        "print([m for m in ('flax', 'matplotlib', 'rich', 'sklearn', 'tyro', 'adamw_jax.lab') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
