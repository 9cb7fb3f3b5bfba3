"""The experiments: their registry, and their verdicts on numbers made up for the purpose."""

import dataclasses
import json

import numpy as np
import pytest

from adamw_jax.lab.experiments import DEMO, PRESETS, get_experiment, list_experiments, settings_hash
from adamw_jax.lab.experiments.decoupled_decay import DECOUPLED, L2, drift
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.theory import l2_decay_kept, reddi_drift
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick

NOISE = np.array([0.002, -0.001, 0.001, -0.002])


def row(group, seed, accuracy, loss, **more):
    """A row as the runner makes it, for one evaluation at the end."""
    return {
        "task": "digits", "arm": f"{group} {sorted(more.items())}", "group": group,
        "recipe": "adam",
        "schedule": "constant", "learning_rate": 0.01, "b2": 0.99, "l2": 0.0, "weight_decay": 0.1,
        "seed": seed, "step": 20, "epoch": 2.0, "train_loss": loss, "validation_loss": loss,
        "validation_accuracy": accuracy, "test_loss": loss, "test_accuracy": accuracy, **more,
    }  # fmt: skip


def rows_of(group, accuracy, loss=0.5, noise=NOISE, **more):
    return [row(group, i, accuracy + e, loss - e, **more) for i, e in enumerate(noise)]


def settings_of(name, **changes):
    tiny = get_experiment(name).settings("tiny")
    return dataclasses.replace(tiny, seeds=(0, 1, 2, 3), points=1, **changes)


@pytest.mark.parametrize(
    ("gain", "noise", "word"),
    [
        (0.05, NOISE, "shown"),
        (0.001, 3 * NOISE[::-1], "equivalent"),
        (0.05, 60 * NOISE[::-1], "undecided"),
        (-0.05, NOISE, "contradicted"),
    ],
)
def test_comparison_of_contenders(gain, noise, word):
    rows = rows_of("1cycle", 0.8 + gain, noise=noise) + rows_of("constant", 0.8)
    result = get_experiment("one_cycle").analyse(settings_of("one_cycle"), rows)
    assert [verdict.word for verdict in result.verdicts] == [word]


def test_best_setting_is_chosen_on_validation_and_reported_on_test():
    lucky = rows_of("1cycle", 0.95, learning_rate=0.03)
    for each in lucky:
        each["validation_accuracy"] = 0.1  # brilliant on test data, which must not count
    rows = rows_of("1cycle", 0.7) + lucky + rows_of("constant", 0.8)
    result = get_experiment("one_cycle").analyse(settings_of("one_cycle"), rows)
    assert result.verdicts[0].word == "contradicted"
    assert "70.0" in result.verdicts[0].evidence


def test_loss_counts_downwards():
    rows = rows_of("AMSGrad", 0.8, loss=0.3) + rows_of("Adam", 0.8, loss=0.5)
    accuracy, loss = get_experiment("amsgrad").analyse(settings_of("amsgrad"), rows).verdicts
    assert accuracy.word == "equivalent"
    assert loss.word == "shown"
    assert "+0.200" in loss.evidence


COEFFICIENTS = {DECOUPLED: (0.03, 0.1, 1.0), L2: (0.0003, 0.001, 0.01)}


def decay_rows(best_decoupled, best_l2, cost=0.05):
    """A grid of two rates by three coefficients; accuracy falls off parabolically from the best."""
    out = []
    for i, rate in enumerate((0.003, 0.01)):
        for group, key, best in (
            (DECOUPLED, "weight_decay", best_decoupled[i]),
            (L2, "l2", best_l2[i]),
        ):
            for value in COEFFICIENTS[group]:
                off = np.log10(value / COEFFICIENTS[group][best])
                numbers = {"weight_decay": 0.0, "l2": 0.0, key: value, "learning_rate": rate}
                out += rows_of(group, 0.8 - cost * off**2, **numbers)
    return out


@pytest.mark.parametrize(
    ("decoupled", "l2", "place", "moves"),
    [
        ((1, 1), (2, 1), "shown", "shown"),
        ((1, 1), (1, 1), "equivalent", "equivalent"),
        ((2, 1), (1, 1), "contradicted", "contradicted"),
        ((2, 1), (2, 1), "contradicted", "equivalent"),
    ],
)
def test_place_of_the_best_decay(decoupled, l2, place, moves):
    experiment = get_experiment("decoupled_decay")
    result = experiment.analyse(settings_of("decoupled_decay"), decay_rows(decoupled, l2))
    same_place, moved, tuned = result.verdicts
    assert same_place.word == place
    assert moved.word == moves
    assert tuned.word == "equivalent"


@pytest.mark.parametrize("decades", [-0.5, 0.0, 0.3])
def test_drift_finds_the_tops_of_parabolas(decades):
    rates, coefficients = (0.001, 0.01), (0.01, 0.03, 0.1, 0.3)
    rows = [
        {
            "learning_rate": rate,
            "l2": c,
            "validation_accuracy": 0.9
            - (np.log10(c) + 1.2 - decades * (np.log10(rate) + 2.5)) ** 2,
        }
        for rate in rates
        for c in coefficients
    ]
    assert drift(rows, rates, "l2") == pytest.approx(decades)


def test_heat_maps_mark_the_best_of_each_row():
    experiment = get_experiment("decoupled_decay")
    result = experiment.analyse(settings_of("decoupled_decay"), decay_rows((1, 2), (2, 1)))
    (figure,) = result.figures
    best = [[(c["y"], c["x"]) for c in panel.rows if c["best"]] for panel in figure.panels]
    assert best == [[(0.003, 0.1), (0.01, 1.0)], [(0.003, 0.01), (0.01, 0.001)]]
    for cell in figure.panels[0].rows:
        top = {0.003: 0.1, 0.01: 1.0}[cell["y"]]
        assert cell["gap"] == pytest.approx(0.05 * np.log10(cell["x"] / top) ** 2)


def test_robustness_to_the_learning_rate():
    s = settings_of("radam", learning_rates=(0.01, 0.1), b2=(0.99,))
    rows = []
    for rate, adamw, radam in ((0.01, 0.8, 0.8), (0.1, 0.1, 0.7)):
        rows += rows_of("AdamW, b2 0.99", adamw, learning_rate=rate)
        rows += rows_of("RAdam, b2 0.99", radam, learning_rate=rate)
    robust, tuned = get_experiment("radam").analyse(s, rows).verdicts
    assert (robust.word, tuned.word) == ("shown", "equivalent")
    assert "RAdam 75.0 %" in robust.evidence


def test_steadiness_is_judged_at_the_inner_optimizers_setting():
    rows = []
    for group, jump in (("AdamW", 0.1), ("Lookahead(AdamW)", 0.02)):
        for i in range(8):
            for each in rows_of(group, 0.8, loss=0.5 + jump * (-1) ** i):
                rows.append(each | {"step": i + 1})
    verdicts = get_experiment("lookahead").analyse(settings_of("lookahead"), rows).verdicts
    assert verdicts[1].word == "shown"
    assert "ratio 0.2" in verdicts[1].evidence


def test_a_diverged_contender_is_no_winner():
    rows = rows_of("AMSGrad", 0.8, loss=0.3) + rows_of("Adam", 0.8)
    for each in rows[:4]:
        each["test_loss"] = None
    loss = get_experiment("amsgrad").analyse(settings_of("amsgrad"), rows).verdicts[1]
    assert loss.word == "does not apply"


@pytest.mark.parametrize(("name", "key"), [("decay_scale", "kept"), ("reddi", "x")])
def test_theory_is_met_and_numbers_off_the_curve_are_not_called_shown(name, key):
    experiment = get_experiment(name)
    settings = experiment.settings("tiny")
    rows = experiment.measure(settings, Runner(Silent()))
    (verdict,) = experiment.analyse(settings, rows).verdicts
    assert verdict.word == "shown", verdict.evidence
    wrong = [each | {key: 0.8 * each[key]} for each in rows]
    assert experiment.analyse(settings, wrong).verdicts[0].word == "contradicted"


def test_analytic_curves_at_their_limits():
    strong = l2_decay_kept(steps=1000, learning_rate=1e-3, l2=0.2, noise=100.0)
    assert strong == pytest.approx(np.exp(-1000 * 1e-3 * 0.2 / 100), rel=1e-6)
    without_noise = l2_decay_kept(steps=400, learning_rate=1e-3, l2=0.2, noise=1e-9)
    assert without_noise == pytest.approx(1 - 400 * 1e-3, rel=1e-6)
    # Without averaging, AMSGrad divides every gradient by the same number.
    assert reddi_drift(0.0, 1e-12, 4.0, 1.0, 3, amsgrad=True) == pytest.approx(-(4 - 2) / 3 / 4)


@pytest.mark.parametrize("name", list_experiments())
def test_settings_survive_json(name):
    experiment = get_experiment(name)
    assert set(experiment.presets) == set(PRESETS)
    for preset in PRESETS:
        settings = experiment.settings(preset)
        stored = json.loads(json.dumps(dataclasses.asdict(settings)))
        assert experiment.settings_from(stored) == settings
        assert settings_hash(experiment.settings_from(stored)) == settings_hash(settings)


def test_demo_covers_both_tasks_with_four_seeds():
    for name in DEMO:
        settings = get_experiment(name).settings("demo")
        if hasattr(settings, "tasks"):
            assert {"mnist1d", "digits_noisy"} <= set(settings.tasks)
            assert len(settings.seeds) >= 4
    grid = get_experiment("decoupled_decay").settings("demo")
    assert len(grid.learning_rates) >= 3
    assert all(len(values) >= 4 for values in (*grid.decoupled, *grid.l2))


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown experiment 'radm'; .*radam.*Did you mean 'radam'"
    ):
        get_experiment("radm")
    with pytest.raises(ValueError, match="choose from demo, quick, tiny"):
        get_experiment("radam").settings("full")
    with pytest.raises(ValueError, match="unknown setting of radam 'epoch'"):
        get_experiment("radam").settings_from({"epoch": [1]})
