"""The small tasks: none is solved at its start, all can be solved, attempts are counted rightly."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.experiments.small_tasks import (
    GOAL,
    attempts,
    begin,
    functions,
    spirals,
    together,
)
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_solved_at_its_start(seed):
    for name, one in functions().items():
        x, which = begin(name, seed)
        found = together().metrics(jnp.asarray(x), jnp.asarray(which), None)["error"]
        assert found == pytest.approx(float(one.error(x)), rel=1e-4)
        assert found > 5 * GOAL
    task = spirals()
    wrong = task.metrics(task.init(jax.random.key(seed)), None, task.data.validation)["error"]
    assert wrong.mean() > 5 * GOAL


@pytest.mark.parametrize("name", functions())
def test_the_minimum_has_no_error_and_no_mean_slope(name):
    one, best = functions()[name], jnp.full(16, 1.0 if name == "bend" else 0.0)
    assert one.error(best) == 0
    for seed in range(3) if name != "tails" else ():  # whose slope there is noise of mean 0
        assert not jax.grad(one.loss)(best, jax.random.key(seed)).any()


def test_the_first_rate_that_succeeds_is_counted():
    rows = [
        {"seed": seed, "attempt": attempt, "success": (seed, attempt) in {(0, 3), (0, 2), (2, 1)}}
        for seed in range(3)
        for attempt in (3, 1, 2)
    ]
    assert attempts(rows) == [2, None, 1]


def test_rates_and_attempts_follow_from_the_runs():
    experiment = get_experiment("small_tasks")
    settings = experiment.settings("tiny")
    rows = experiment.measure(settings, Runner(Silent()))
    assert len(rows) == 2 * 2 * settings.attempts * len(settings.seeds)
    assert all(row["success"] == (row["error"] is not None and row["error"] <= GOAL)
               for row in rows)  # fmt: skip
    lines = {row["optimizer"]: row for row in experiment.analyse(settings, rows).tables[0].rows}
    assert lines["sgdw"]["rare"] == 1.0
    assert lines["sgdw"]["rate"] == (lines["sgdw"]["rare"] + lines["sgdw"]["valley"]) / 2
    none = experiment.analyse(settings, [{**row, "success": False} for row in rows])
    assert {row["rate"] for row in none.tables[0].rows} == {0.0}
    assert {row["attempts"] for row in none.tables[0].rows} == {None}


def test_all_attempts_are_in_one_order():
    """More attempts begin with the same learning rates, so their number only grows."""
    experiment = get_experiment("small_tasks")
    few = dataclasses.replace(experiment.settings("tiny"), tasks=("rare",), steps=2)
    rates = [
        [row["learning_rate"] for row in experiment.measure(s, Runner(Silent()))[: s.attempts]]
        for s in (few, dataclasses.replace(few, attempts=8))
    ]
    assert rates[1][:4] == rates[0]
