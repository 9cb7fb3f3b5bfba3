"""Runs of networks: the same numbers step by step, continued from the log, after one another."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.lab import Data, Task
from adamw_jax.lab.engine import Engine, Lane
from adamw_jax.lab.experiments.parts import where
from adamw_jax.lab.network_runs import Run, train_runs, trial, trial_result
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.recipes import ADAM, Arm, settings, tables
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick

ARM = Arm("AdamW", ADAM, "article", 0.05, settings(b2=0.99, weight_decay=0.1))


def line(**options):
    """A task with a state and with noise in its loss; 37 examples are evaluated in portions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = x @ np.array([1, -2, 3], np.float32)

    def loss(params, state, batch, key):
        noise = 0.1 * jax.random.normal(key, ())
        return ((batch[0] @ params["w"] - batch[1] + noise) ** 2, state + 1)

    def evaluate(params, state, batch):
        return {"loss": (batch[0] @ params["w"] - batch[1]) ** 2}

    return Task(
        lambda key: ({"w": jax.random.normal(key, (3,))}, jnp.zeros(())), loss,
        Data((x, y), (x[:37], y[:37]), (x[37:], y[37:]), batch_size=20), evaluate,
        stateful=True, name="line", lanes=1, **options,
    )  # fmt: skip


def run(seed=0, **options):
    return Run(options.pop("task", None) or line(), ARM, seed, steps=12, points=3, **options)


def numbers(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.sample(1)
@pytest.mark.parametrize("options", [{"steps_per_call": 1}, {"steps_per_call": 5},
                                     {"steps_per_call": 4, "evaluated": 10}])  # fmt: skip
def test_a_loop_over_steps_gives_the_numbers_of_one_program(options):
    lane = Lane(3, *tables("article", 0.05, 12), dict(ARM.settings))
    made, ends = [], []
    for task in (line(), line(**options)):
        last = {}
        keep = functools.partial(lambda into, _, p, s: into.update(p=p, s=s), last)
        rows = Engine(1).train(task, ADAM, [lane], (4, 12), 1, at_end=keep)
        made.append(rows[0])
        ends.append(last)
    for mine, theirs in zip(*made, strict=True):
        del mine["seconds"], theirs["seconds"]
        assert mine == pytest.approx(theirs, rel=2e-5)
    np.testing.assert_allclose(ends[0]["p"]["w"], ends[1]["p"]["w"], rtol=1e-5)
    assert float(ends[1]["s"]) == 12


class Log:
    """A log of rows as ``LiveLog`` keeps them, once through JSON."""

    def __init__(self, rows=()):
        self.rows = json.loads(json.dumps(list(rows)))
        self.added = []

    def add(self, rows):
        self.added += rows


def test_runs_in_the_log_are_not_trained_again():
    runs = [run(seed, labels={"form": ("a", 1)}) for seed in (0, 1)]
    runner = Runner(Silent(), workers=1)
    runner.log = Log()
    rows = train_runs(runner, runs)
    assert numbers(runner.log.added) == numbers(rows)
    assert [(row["seed"], row["step"]) for row in rows] == [
        (seed, step) for seed in (0, 1) for step in (4, 8, 12)
    ]
    assert rows[0]["epoch"] == pytest.approx(4 / 3)
    again = Runner(Silent(), workers=1)
    again.log = Log(rows[:4])  # the second run was cut off
    same = train_runs(again, runs)
    assert {row["seed"] for row in again.log.added} == {1}
    assert numbers(json.loads(json.dumps(same))) == numbers(json.loads(json.dumps(rows)))
    longer = dataclasses.replace(runs[0], steps=15)
    train_runs(again, [longer])
    assert {row["steps"] for row in again.log.added} == {12, 15}


def test_a_run_after_another_begins_with_its_weights():
    task = line()
    still = dataclasses.replace(run(task=task), arm=dataclasses.replace(ARM, learning_rate=1e-12))
    weights = {}

    def look(name):
        return lambda params, state: weights.update({name: params["w"]}) or {"norm": 1.5}

    first = dataclasses.replace(run(task=task), at_end=look("first"))
    second = dataclasses.replace(still, after=first, at_end=look("second"), labels={"phase": 2})
    rows = train_runs(Runner(Silent(), workers=1), [second])
    np.testing.assert_allclose(weights["first"], weights["second"], rtol=1e-6)
    assert {row["phase"] for row in rows} == {2}
    assert [row.get("norm") for row in rows] == [None, None, 1.5]


def test_a_trial_measures_steps_and_extrapolates():
    rows = trial(dataclasses.replace(run(), steps=100), 4, whole=7200)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["parameters"] == 3
    assert rows[0]["bytes"] > 0
    result = trial_result([row | {"seconds": 0.5} for row in rows])
    (first,) = result.tables[0].rows
    assert first["hours"] == pytest.approx(1.0)
    assert "extrapolated" in result.remarks[0]
    worse = [row | {"train_loss": float(row["step"])} for row in rows]
    assert trial_result(worse).verdicts[0].word == "contradicted"
    assert where(rows, group="AdamW") == rows
