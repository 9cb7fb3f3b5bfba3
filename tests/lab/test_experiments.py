"""The experiments: their registry, and their verdicts on numbers made up for the purpose."""

import dataclasses
import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.lab.experiments import (
    DEMO,
    NETWORK_PRESETS,
    PRESETS,
    decoupled_decay,
    get_experiment,
    list_experiments,
    settings_hash,
)
from adamw_jax.lab.experiments.decoupled_decay import DECOUPLED, L2, drift
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.recipes import Carrier, tables
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
    rows += rows_of("the article's 1cycle", 0.8) + rows_of("the article's plateau", 0.8)
    result = get_experiment("one_cycle").analyse(settings_of("one_cycle"), rows)
    assert [verdict.word for verdict in result.verdicts] == [word, "equivalent", "equivalent"]


def test_best_setting_is_chosen_on_validation_and_reported_on_test():
    lucky = rows_of("1cycle", 0.95, learning_rate=0.03)
    for each in lucky:
        each["validation_accuracy"] = 0.1  # brilliant on test data, which must not count
    rows = rows_of("1cycle", 0.7) + lucky + rows_of("constant", 0.8)
    rows += rows_of("the article's 1cycle", 0.8) + rows_of("the article's plateau", 0.8)
    result = get_experiment("one_cycle").analyse(settings_of("one_cycle"), rows)
    assert result.verdicts[0].word == "contradicted"
    assert "70.0" in result.verdicts[0].evidence


def test_loss_counts_downwards():
    rows = rows_of("AMSGrad", 0.8, loss=0.3) + rows_of("Adam", 0.8, loss=0.5)
    accuracy, loss = get_experiment("amsgrad").analyse(settings_of("amsgrad"), rows).verdicts
    assert accuracy.word == "equivalent"
    assert loss.word == "shown"
    assert "+0.200" in loss.evidence


COEFFICIENTS = {DECOUPLED: (0.0003, 0.001, 0.01), L2: (0.0003, 0.001, 0.01)}


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
    same_place, moved, tuned, apart = result.verdicts
    assert same_place.word == place
    assert moved.word == moves
    assert tuned.word == "equivalent"
    assert apart.word in ("shown", "contradicted")


@pytest.mark.parametrize(
    ("l2", "word"), [(0.0003, "shown"), (0.001, "shown"), (0.01, "contradicted")]
)
def test_the_best_coefficients_are_compared_times_the_learning_rate(l2, word):
    """The best decay of 0.001 at learning rate 0.01 is a coefficient of 0.1."""
    rows = []
    for rate, value in itertools.product((0.003, 0.01), COEFFICIENTS[L2]):
        best = 0.9 if rate == 0.01 else 0.8
        numbers = {"learning_rate": rate, "weight_decay": value, "l2": 0.0}
        rows += rows_of(DECOUPLED, best if value == 0.001 else 0.7, **numbers)
        numbers = {"learning_rate": rate, "weight_decay": 0.0, "l2": value}
        rows += rows_of(L2, best if value == l2 else 0.7, **numbers)
    result = get_experiment("decoupled_decay").analyse(settings_of("decoupled_decay"), rows)
    assert result.verdicts[3].word == word
    assert "in PyTorch's form 0.1; " in result.verdicts[3].evidence
    assert len(result.remarks) == (l2 != 0.001)  # the best L2 is an end of the grid


def test_the_decay_is_the_papers_form():
    """Without a gradient a step removes the share decay x lr_t / lr_0, whatever the peak lr_0."""
    for forms in (decoupled_decay.ADAM_FORMS, decoupled_decay.SGD_FORMS):
        for peak in (0.01, 0.1):
            rates, momenta = tables("article", peak, 40)
            carrier = Carrier(jnp.asarray(rates), jnp.asarray(momenta))
            tx = forms.recipe.build(carrier, {"weight_decay": 0.1, "l2": 0.0})
            one = jnp.ones(())
            update, _ = tx.update(jnp.zeros(()), tx.init(one), one)
            assert float(update) == pytest.approx(-0.1 * rates[0] / peak, rel=1e-5)


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
    assert best == [[(0.003, 0.001), (0.01, 0.01)], [(0.003, 0.01), (0.01, 0.001)]]
    for cell in figure.panels[0].rows:
        top = {0.003: 0.001, 0.01: 0.01}[cell["y"]]
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


def test_what_diverged_and_what_is_saturated_is_said():
    rows = rows_of("AMSGrad", 0.985) + rows_of("Adam", 0.98)
    rows[0]["train_loss"] = None
    accuracy, _ = get_experiment("amsgrad").analyse(settings_of("amsgrad"), rows).verdicts
    assert "1 of 4 runs of AMSGrad diverged." in accuracy.evidence
    assert "Saturated: both are above 97 %." in accuracy.evidence
    for each in rows:
        each["train_loss"] = None if each["group"] == "Adam" else each["train_loss"]
    accuracy, _ = get_experiment("amsgrad").analyse(settings_of("amsgrad"), rows).verdicts
    assert accuracy.word == "does not apply"


def test_the_best_settings_are_judged_on_fresh_seeds_and_from_the_same_runs():
    """Settings are chosen by the first stage; loss and accuracy come from the second alone."""
    rows = rows_of("AMSGrad", 0.9, loss=0.2, learning_rate=0.03)
    rows += rows_of("AMSGrad", 0.7, loss=0.1) + rows_of("Adam", 0.8, loss=0.5)
    second = rows_of("AMSGrad", 0.6, loss=0.3, learning_rate=0.03) + rows_of("Adam", 0.8, loss=0.5)
    rows += [each | {"stage": "fresh", "seed": 1000 + each["seed"]} for each in second]
    result = get_experiment("amsgrad").analyse(settings_of("amsgrad"), rows)
    accuracy, loss = result.verdicts
    assert (accuracy.word, loss.word) == ("contradicted", "shown")
    assert "AMSGrad 60.0" in accuracy.evidence
    assert "4 fresh seeds" in accuracy.rule
    assert "AMSGrad 0.300" in loss.evidence
    assert {row["seed"] for row in result.figures[0].panels[0].rows} == {1000, 1001, 1002, 1003}
    chosen = [row for row in result.tables[0].rows if row["chosen"]]
    assert [row["test_accuracy_mean"] for row in chosen] == pytest.approx([0.9, 0.8])


def test_fresh_seeds_are_trained_at_the_best_setting_only():
    experiment = get_experiment("lookahead")
    settings = dataclasses.replace(experiment.settings("tiny"), fresh=3)
    rows = experiment.measure(settings, Runner(Silent()))
    ends = [each for each in rows if each["step"] == 20]
    fresh = [each for each in ends if each.get("stage") == "fresh"]
    assert sorted({each["group"] for each in fresh}) == ["AdamW", "Lookahead(AdamW)"]
    assert len(fresh) == 6
    assert not {each["seed"] for each in fresh} & set(settings.seeds)
    for group in ("AdamW", "Lookahead(AdamW)"):
        arms = {e["arm"] for e in ends if e["group"] == group and e.get("stage") != "fresh"}
        mean = {arm: np.mean([e["validation_accuracy"] for e in ends
                              if e["arm"] == arm and e.get("stage") != "fresh"])
                for arm in arms}  # fmt: skip
        assert {e["arm"] for e in fresh if e["group"] == group} == {max(mean, key=mean.get)}


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
    assert tuple(experiment.presets) in (PRESETS, NETWORK_PRESETS)
    for preset in experiment.presets:
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
