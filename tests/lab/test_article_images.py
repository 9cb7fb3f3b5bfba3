"""The article's experiments on images: verdicts on made-up numbers, and small runs."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from adamw_jax.lab.data import CIFAR10, cache
from adamw_jax.lab.experiments import article_cars, article_cifar, get_experiment
from adamw_jax.lab.experiments.article_cifar import ADAMW, CHANGED, COSINE, FULL, L2, SHORT, TUNED
from adamw_jax.lab.experiments.article_judge import Judge
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.recipes import tables
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick

CPU = get_experiment("article_cifar").settings("cpu")
NOISE = (0.002, -0.001, 0.001, -0.002)
PHOTOGRAPHS = pytest.mark.skipif(
    not importlib.util.find_spec("skimage"), reason="needs scikit-image"
)


def rows_of(group, stage, accuracy, seeds, epochs, **numbers):
    """Rows of a run, evaluated twice an epoch; the accuracy rises evenly to the last."""
    out = []
    for seed, noise in zip(seeds, NOISE, strict=False):
        for step in range(1, 2 * epochs + 1):
            now = (accuracy + noise) * step / (2 * epochs)
            out.append({
                "group": group, "stage": stage, "seed": seed, "epochs": epochs, "step": step,
                "steps": 2 * epochs, "epoch": step / 2, "seconds": 1.0, "learning_rate": 0.01,
                "train_loss": 1 - now, "test_loss": 1 - now, "validation_accuracy": now,
                "test_accuracy": now, "test_accuracy_augmented": now + 0.02 + noise / 2, **numbers,
            })  # fmt: skip
    return out


def made_up(adamw=0.8, others=0.7, decay=0.3, l2=3e-4):
    """Rows of the whole experiment, in which AdamW differs from all others."""
    rows = []
    for group, one in TUNED.items():
        for rate, value in getattr(CPU, one.pairs):
            best = value == (l2 if one.pairs != "decoupled" else decay) and rate == 0.01
            numbers = {"learning_rate": rate, one.key: value}
            rows += rows_of(group, "tuning", 0.6 if best else 0.5, CPU.tuning_seeds, 3, **numbers)
    for group, one in {**TUNED, **CHANGED}.items():
        level = adamw if group == ADAMW else others
        rows += rows_of(group, "final", level, CPU.seeds, CPU.epochs, **{one.key: 0.1})
    for group in (L2, ADAMW):
        rows += rows_of(group, SHORT, adamw - 0.015 if group == ADAMW else others, CPU.seeds,
                        CPU.short, **{TUNED[group].key: 0.1})  # fmt: skip
    return rows


def test_verdicts_follow_the_numbers():
    found = get_experiment("article_cifar").analyse(CPU, made_up())
    words = [verdict.word for verdict in found.verdicts]
    assert words == ["shown", "contradicted", "contradicted", "shown", "shown", "shown", "shown",
                     "shown", "shown", "shown", "shown", "shown", "shown", "shown"]  # fmt: skip
    worse = get_experiment("article_cifar").analyse(CPU, made_up(adamw=0.6, decay=3e-4))
    words = [verdict.word for verdict in worse.verdicts]
    assert words == ["contradicted", "shown", "shown", "contradicted", "shown", "shown",
                     "contradicted", "contradicted", "contradicted", "contradicted", "contradicted",
                     "contradicted", "contradicted", "contradicted"]  # fmt: skip
    equal = get_experiment("article_cifar").analyse(CPU, made_up(adamw=0.7))
    assert equal.verdicts[0].word == "equivalent"


def test_epochs_to_the_target_count_a_miss_as_one_more_than_all():
    judge = Judge(CPU, made_up(adamw=0.8, others=0.4))
    epochs, missed = judge.first_epochs(ADAMW)
    assert missed == 0
    assert epochs == [3.5] * 4  # 0.56 of 0.8 after 7 of 10 evaluations
    assert judge.first_epochs(COSINE) == ([CPU.epochs + 1.0] * 4, 4)


def test_the_full_size_chooses_nothing_and_is_that_of_the_article():
    assert FULL.steps(FULL.epochs) == 30 * 390
    assert (FULL.blocks, FULL.width, FULL.short, len(FULL.seeds)) == (3, 6, 18, 5)
    assert article_cifar._chosen(FULL, [])[ADAMW] == (3e-3, 0.1)
    cars = article_cars.FULL
    assert (cars.steps(0), cars.steps(1)) == (20 * 63, 40 * 63)
    assert article_cars._chosen(cars, [])[article_cars.L2] == 1e-3


def test_a_step_decay_warms_up_and_drops_twice():
    rates, momenta = tables("step_decay", 1.0, 100)
    assert rates[4] == pytest.approx(0.5)
    assert rates[[9, 49]].tolist() == [1, 1]
    np.testing.assert_allclose(rates[[50, 74, 75, 99]], [0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    assert set(momenta.tolist()) == {np.float32(0.9)}


def test_real_data_that_is_missing_is_named_offline(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    monkeypatch.setenv(cache.OFFLINE, "1")
    for name, message in (
        ("article_cifar", CIFAR10.remote.name),
        ("article_cars", r"cannot read the annotations of Stanford Cars .* Put the data set into"),
    ):
        experiment = get_experiment(name)
        with pytest.raises(ValueError, match=message):
            experiment.measure(experiment.settings("full"), Runner(Silent(), workers=1))


@pytest.mark.slow
def test_a_trial_of_the_full_size_on_a_twin():
    """With a smaller network, so that it ends soon."""
    experiment = get_experiment("article_cifar")
    settings = dataclasses.replace(experiment.settings("trial"), blocks=1, width=1)
    rows = experiment.measure(settings, Runner(Silent()))
    assert len(rows) == settings.limit
    (table,) = experiment.analyse(settings, rows).tables
    assert table.rows[0]["whole"] == 5 * (8 * 30 + 2 * 18) * 390


@pytest.mark.slow
@PHOTOGRAPHS
@pytest.mark.parametrize("name", ["article_cifar", "article_cars"])
def test_tiny_presets_run_and_judge(name):
    experiment = get_experiment(name)
    settings = experiment.settings("tiny")
    rows = experiment.measure(settings, Runner(Silent()))
    result = experiment.analyse(settings, rows)
    assert len(result.verdicts) == {"article_cifar": 14, "article_cars": 4}[name]
    ends = [row for row in rows if row["step"] == row["steps"] and row["stage"] == "final"]
    assert {row["seed"] for row in ends} == set(settings.seeds)
    assert all(0 <= row["test_accuracy_augmented"] <= 1 for row in ends)
    assert all(np.isfinite(row["train_loss"]) for row in rows)
