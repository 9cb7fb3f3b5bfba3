"""Users' own models of three libraries: by API, by command line, killed and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from adamw_jax.lab import Budget, compare, lr_find
from tests.lab import user_models

pytestmark = pytest.mark.quick
FILE = Path(user_models.__file__)
OPTIMIZERS = ["adamw", user_models.mine]
TASKS = {
    "conv": lambda: user_models.conv,
    "transformer": user_models.transformer,
    "regression": lambda: user_models.regression,
}
BUDGET = Budget(steps=12, trials=2, tuning_seeds=1, evaluations=2)


@pytest.fixture(autouse=True)
def promotion():
    """As on a user's machine: Flax and Equinox promote dtypes and ranks."""
    before = jax.config.jax_numpy_dtype_promotion, jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before[0])
    jax.config.update("jax_numpy_rank_promotion", before[1])


@pytest.mark.parametrize("name", ["conv", "regression"])  # the transformer: below
def test_a_model_of_ones_own_is_compared(name):
    task = TASKS[name]()
    found = compare(task, OPTIMIZERS, budget=BUDGET, seeds=2)
    assert found.settings.metric == {"conv": "accuracy", "regression": "mse"}[name]
    assert {line["optimizer"] for line in found.ranking()} == {"adamw", "mine"}
    assert all(row["train_loss"] is not None for row in found.rows)
    assert task.name in found.result().figures[0].title


@pytest.mark.slow  # a training that is long enough to learn
@pytest.mark.parametrize(("name", "better"), [("conv", 0.9), ("transformer", 3.5)])
def test_a_model_of_ones_own_is_learned(name, better):
    space = {"learning_rate": [0.03], "weight_decay": [0.01]}
    budget = Budget(steps=250, trials=1, tuning_seeds=1, evaluations=2)
    found = compare(TASKS[name](), OPTIMIZERS, budget=budget, seeds=2, space=space)
    mean = {line["optimizer"]: line["mean"] for line in found.ranking()}["adamw"]
    assert mean > better if name == "conv" else mean < better


def test_batch_norm_and_dropout_train_and_are_quiet_in_evaluation():
    task = user_models.conv
    params, state = task.start(jax.random.key(0))
    batch = jax.tree.map(lambda a: a[:16], task.data.train)
    first, new = task.losses(params, state, batch, jax.random.key(1))
    second, _ = task.losses(params, new, batch, jax.random.key(2))
    assert float(abs(first - second).max()) > 1e-4  # other dropout
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state, new)
    assert any(jax.tree.leaves(changed))  # the averages of batch norm, and the count of dropout
    once, again = (task.metrics(params, new, batch)["loss"] for _ in range(2))
    assert (once == again).all()


def test_lr_find_takes_each_model():
    assert len(lr_find(user_models.regression, "adamw", steps=25).losses) > 10


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory):
    """The processes compile quickly, and share what they have compiled."""
    ENVIRONMENT.update(
        XLA_FLAGS="--xla_backend_optimization_level=0", COLUMNS="100", PYTHONIOENCODING="cp1252",
        JAX_COMPILATION_CACHE_DIR=str(tmp_path_factory.mktemp("programs")),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )  # fmt: skip


ENVIRONMENT = dict(os.environ)


def run(*words, **options):
    command = [sys.executable, "-m", "adamw_jax.lab", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            encoding="cp1252", env=ENVIRONMENT, **options)  # fmt: skip


def compared(name, out, *more):
    return run(
        "compare", "--task", f"{FILE}:{name}", "--optimizers", f"adamw,{FILE}:mine",
        "--steps", "12", "--trials", "4", "--tuning-seeds", "4", "--seeds", "16",
        "--out", str(out), *more,
    )  # fmt: skip


def rows_of(out):
    text = (out / "logs" / "compare.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def wait_for_rows(process, out, count=1):
    log = out / "logs" / "compare.jsonl"
    for _ in range(1200):
        if log.exists() and log.read_text("utf-8").count("\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no rows were written")


@pytest.mark.slow  # each is a process that compiles a model, three times
@pytest.mark.parametrize("name", list(TASKS))
def test_killed_in_the_middle_and_continued_to_the_same_table(name, tmp_path):
    whole = compared(name, tmp_path / "whole")
    said, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    assert "gain over adamw" in said
    out = tmp_path / "killed"
    process = compared(name, out)
    wait_for_rows(process, out)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = rows_of(out)
    assert 0 < len(before) < len(rows_of(tmp_path / "whole"))
    again = compared(name, out, "--resume")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert rows_of(out) == rows_of(tmp_path / "whole")
    for file in ("tables/compare-trials.csv", "logs/compare.json"):
        text = [(place / file).read_text("utf-8") for place in (out, tmp_path / "whole")]
        assert len(text[0]) == pytest.approx(len(text[1]), abs=40)
    assert (out / "report.html").exists()


@pytest.mark.slow  # a process that compiles a model
def test_sigterm_keeps_what_is_finished(tmp_path):
    out = tmp_path / "stopped"
    process = compared("regression", out)
    wait_for_rows(process, out)
    process.send_signal(signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, (said, errors)
    assert re.search(r"interrupted; finished runs are kept in .*--resume --out", errors)
    report = run("report", str(out))
    said, errors = report.communicate(timeout=120)
    assert report.returncode == 0, errors
    assert "Not finished" in said


@pytest.mark.slow  # a process that compiles a model
def test_lr_find_on_the_command_line_takes_ones_own(tmp_path):
    process = run("lr-find", "--task", f"{FILE}:regression", "--optimizer", f"{FILE}:mine",
                  "--steps", "40", "--seeds", "1", "--out", str(tmp_path / "found"))  # fmt: skip
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "Suggested learning rates" in said
