"""Averages of iterates, KOALA, Lookahead's variance: theory, and verdicts on numbers made up."""

import dataclasses
import itertools

import numpy as np
import pytest

from adamw_jax.lab.experiments import gadam, koala, lookahead_variance as variance
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.stats import Interval, as_good
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick

SEEDS = (0, 1, 2, 3)
NOISE = (0.002, -0.001, 0.001, -0.002)


def tiny(module, **changes):
    return dataclasses.replace(module.EXPERIMENT.settings("tiny"), **changes)


def row(group, seed, validation, test, **more):
    return {
        "task": "digits", "arm": f"{group} {sorted(more.items())}", "group": group, "seed": seed,
        "learning_rate": 0.01, "weight_decay": 0.0, "step": 20, "epoch": 2.0, "train_loss": 0.5,
        "validation_loss": 0.5, "validation_accuracy": validation, "test_loss": 0.5,
        "test_accuracy": test, **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "mean", "word"),
    [(-0.009, 0.0, "shown"), (-0.02, -0.005, "undecided"),
     (-0.02, -0.016, "contradicted"),
     (float("nan"), float("nan"), "does not apply")],
)  # fmt: skip
def test_as_good_as(low, mean, word):
    assert as_good(Interval(mean, low, 2 * mean - low, 4), 0.01) == word


# Lookahead


@pytest.mark.parametrize("pull", [0.03, 0.5, 1.3])
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_variance_is_the_fixed_point_and_the_papers_formula(alpha, k, pull):
    q, sgd = (1 - pull) ** k, variance.sgd_variance(pull)
    w = sgd
    for _ in range(3000):
        w = (1 - alpha * (1 - q)) ** 2 * w + alpha**2 * (1 - q**2) * sgd
    ratio = variance.variance_ratio(alpha, k, pull)
    assert w / sgd == pytest.approx(ratio)
    top = alpha**2 * (1 - q**2)
    assert ratio == pytest.approx(top / (top + 2 * alpha * (1 - alpha) * (1 - q)))


def test_lookahead_with_alpha_1_is_sgd():
    a = np.array([1.0, 0.2])
    plain = variance.loss_path(0.3, 1.0, 1, a, 5.0, 20)
    np.testing.assert_allclose(variance.loss_path(0.3, 1.0, 4, a, 5.0, 20), plain[3::4])
    square = (0.7**2 * 25.0 + 0.3**2, 0.94**2 * 25.0 + 0.06**2)  # one step by hand
    assert plain[0] == pytest.approx(0.5 * (square[0] + 0.2 * square[1]))


def test_both_end_at_the_same_loss():
    s = tiny(variance)
    a = 1 / np.arange(1, s.curvatures + 1)
    rate = variance.equal_rate(s, 1.0)
    assert 0 < rate < 1
    ends = [variance.loss_path(r, alpha, k, a, 1.0, 5000)[-1]
            for r, alpha, k in ((1.0, *s.compared), (rate, 1.0, 1))]  # fmt: skip
    assert ends[0] == pytest.approx(ends[1])


def test_steps_to_a_goal():
    assert variance.steps_to([3.0, 1.0, 2.0], 1.5, 5) == 10
    assert variance.steps_to([3.0], 1.5, 5) == float("inf")


def variance_rows(s, off=1.0, flat=False, slower=1):
    rows = []
    for seed, e in zip(SEEDS, NOISE, strict=True):
        for k, alpha in itertools.product(s.periods, s.step_sizes):
            value = variance.variance_ratio(alpha, k, s.pull) * variance.sgd_variance(s.pull)
            value = variance.sgd_variance(s.pull) * (1 + e * alpha) if flat else value * off
            rows.append({"kind": "variance", "k": k, "alpha": alpha, "seed": seed,
                         "variance": value * (1 + e)})  # fmt: skip
        for rate in s.rates:
            for name in (variance.LOOKAHEAD, variance.SGD):
                late = 10 if name == variance.LOOKAHEAD else 10 * slower
                rows += [
                    {"kind": "speed", "series": name, "rate": rate, "seed": seed,
                     "step": step, "loss": 0.0 if step >= late + 5 * (seed == 1) else 1e9}
                    for step in range(5, s.speed_steps + 1, 5)
                ]  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slower": 4}, ["shown", "shown", "shown"]),
        ({"off": 1.1}, ["contradicted", "shown", "equivalent"]),
        ({"flat": True}, ["contradicted", "equivalent", "equivalent"]),
    ],
)
def test_verdicts_on_lookahead(changes, words):
    s = tiny(variance, seeds=SEEDS)
    result = variance.EXPERIMENT.analyse(s, variance_rows(s, **changes))
    assert [verdict.word for verdict in result.verdicts] == words


# Gadam

NAMES = {0: gadam.ADAMW, 1: gadam.GADAM, 2: gadam.SPARSE}


def gadam_rows(s, gain, sparse=0.0, sgd=0.9):
    """``gain`` is a function of learning rate and decay; the iterate's test accuracy is 0.8."""
    rows = []
    for seed, e in zip(SEEDS, NOISE, strict=True):
        for rate, decay in itertools.product(s.rates, s.decays[0]):
            best = rate == max(s.rates) and decay > 0
            for i, name in NAMES.items():
                test = 0.8 + (i > 0) * (gain(rate, decay) + e) + (i == 2) * sparse
                numbers = {"learning_rate": rate, "weight_decay": decay}
                rows.append(row(name, seed, 0.9 if best else 0.8, test, **numbers))
        rows.append(row(gadam.SGD, seed, 0.8, sgd + 2 * e * (1 + seed)))
    return rows


@pytest.mark.parametrize(
    ("gain", "sparse", "sgd", "words"),
    [
        (lambda rate, decay: rate * (2 + decay), 0.0, 0.8,
         ["shown", "shown", "shown", "shown", "shown", "shown"]),
        (lambda rate, decay: 0.0 * rate, -0.02, 0.8,
         ["equivalent", "equivalent", "equivalent", "contradicted", "undecided", "shown"]),
        (lambda rate, decay: -rate * (2 + decay), 0.0, 0.9,
         ["contradicted", "contradicted", "contradicted", "shown", "contradicted", "contradicted"]),
    ],
)  # fmt: skip
def test_verdicts_on_averages(gain, sparse, sgd, words):
    s = tiny(gadam, seeds=SEEDS)
    rows = gadam_rows(s, gain, sparse, sgd)
    result = gadam.EXPERIMENT.analyse(s, rows)
    assert [verdict.word for verdict in result.verdicts] == words
    (cells,) = (panel.rows for panel in result.figures[0].panels)
    for cell in cells:
        assert cell["mean"] == pytest.approx(gain(cell["y"], cell["x"]), abs=1e-9)


def test_gain_is_taken_seed_by_seed_at_the_end():
    rows = []
    for seed, value in ((0, 0.7), (1, 0.8)):
        rows += [row(gadam.ADAMW, seed, 0.5, 0.6), row(gadam.GADAM, seed, 0.5, value)]
    early = [each | {"step": 1, "test_accuracy": 0.0} for each in rows]
    assert gadam.gain(early + rows, 0.01, [0.0]) == pytest.approx([0.1, 0.2])


def test_stopping_looks_at_validation_only():
    rows = [row(gadam.ADAMW, 0, v, t, step=i) for i, (v, t) in enumerate(((0.5, 0.9), (0.7, 0.3)))]
    assert gadam.stopped(rows) == [0.3]


# KOALA


@pytest.mark.parametrize(
    ("q", "noise", "norm"), [(1.0, 0.1, 3.0), (0.1, 10.0, 1.0), (1.0, 1.0, 1.0)]
)
def test_share_of_polyaks_step_is_the_fixed_point(q, noise, norm):
    p, ahead = 0.1, 0.0
    for _ in range(2000):
        ahead = p + q
        p = ahead * noise / (ahead * norm**2 + noise)
    share = ahead * norm**2 / (ahead * norm**2 + noise)
    assert koala.polyak_share(q * norm**2 / noise) == pytest.approx(share)


def test_usable_rates_are_counted_below_the_seeds_own_best():
    rows = [
        row("any", seed, best - off, 0.0, learning_rate=rate)
        for seed, best in ((0, 0.9), (1, 0.5))
        for rate, off in ((0.1, 0.0), (0.3, 0.015), (1.0, 0.1 * seed))
    ]
    assert koala.usable(rows, 0.5) == [1.5, 1.0]


def koala_rows(s, wide, accuracy, share=1.0, shrinks=0.1):
    """``wide``: whether KOALA is good at every rate; the rivals are at their usual one only."""
    rows = []
    for norm, noise, q in itertools.product(s.norms, s.noises, s.growths):
        value = share * float(koala.polyak_share(q * norm**2 / noise))
        rows.append({"kind": "limit", "norm": norm, "noise": noise, "q": q, "share": value})
    for seed, e in zip(SEEDS, NOISE, strict=True):
        for name, step in itertools.product(koala.NOISES, range(1, s.watched + 1)):
            length = shrinks ** (step / s.watched) * (1 + e)
            rows.append({"kind": "step", "task": "digits", "series": name, "seed": seed,
                         "step": step, "length": length, "share": 0.9 * share})  # fmt: skip
        for group, factor in itertools.product(koala.USUAL, s.factors):
            mine = group in koala.FILTERS
            good = factor == 1 or (mine and wide)
            value = (accuracy if mine else 0.9) + (e if mine else 0.0) if good else 0.5
            rate = round(koala.USUAL[str(group)] * float(factor), 8)
            rows.append({"kind": "training"} | row(group, seed, value, value, learning_rate=rate))
    return rows


@pytest.mark.parametrize(
    ("wide", "accuracy", "share", "shrinks", "words"),
    [
        (True, 0.9, 1.0, 0.1, ["shown"] * 8 + ["shown", "shown"]),
        (
            False,
            0.8,
            1.1,
            10.0,
            ["equivalent"] * 4 + ["contradicted"] * 4 + ["contradicted", "contradicted"],
        ),
    ],
)
def test_verdicts_on_koala(wide, accuracy, share, shrinks, words):
    s = tiny(koala, seeds=SEEDS)
    result = koala.EXPERIMENT.analyse(s, koala_rows(s, wide, accuracy, share, shrinks))
    assert [verdict.word for verdict in result.verdicts] == words


# All of them


def test_lookaheads_tiny_preset_runs_and_meets_theory():
    s = tiny(variance, step_sizes=(0.2, 1.0))
    rows = variance.EXPERIMENT.measure(s, Runner(Silent()))
    formula, smaller, *_ = variance.EXPERIMENT.analyse(s, rows).verdicts
    assert (formula.word, smaller.word) == ("shown", "shown"), formula.evidence


def test_koalas_filter_settles_where_theory_says(monkeypatch):
    s = tiny(koala)
    made_up = [
        {k: v for k, v in each.items() if k != "kind"}
        for each in koala_rows(s, wide=True, accuracy=0.9)
        if each["kind"] == "training" and each["seed"] in s.seeds
    ]
    monkeypatch.setattr(koala.common, "train_all", lambda *_: made_up)
    result = koala.EXPERIMENT.analyse(s, koala.EXPERIMENT.measure(s, Runner(Silent())))
    assert result.verdicts[-2].word == "shown", result.verdicts[-2].evidence
    assert all(panel.rows for figure in result.figures for panel in figure.panels)


def test_koala_trains():
    s = tiny(koala, seeds=(0,), factors=(1.0,))
    arms = [arm for arm in koala._arms(s) if arm.group == koala.V]
    (found,) = Runner(Silent()).train("digits", arms, s.plan("digits"))
    assert (found["group"], found["learning_rate"], found["step"]) == (koala.V, 1.0, 20)
    assert found["test_accuracy"] > 0.6


def test_gadams_tiny_preset_runs():
    s = tiny(gadam, rates=(0.003,), decays=((0.0, 1.0),), contenders=(gadam.GADAM,))
    rows = gadam.EXPERIMENT.measure(s, Runner(Silent()))
    half, end = (
        {(r["weight_decay"], r["group"]): r["test_loss"] for r in rows
         if r["step"] == step and r["seed"] == 0}
        for step in (10, 20)
    )  # fmt: skip
    # At step 10 averages begin; at 20 that of one iterate per epoch is the iterate.
    for decay in (0.0, 1.0):
        assert len({half[decay, name] for name in NAMES.values()}) == 1
        assert end[decay, gadam.GADAM] != end[decay, gadam.ADAMW] == end[decay, gadam.SPARSE]
    assert end[0.0, gadam.ADAMW] != end[1.0, gadam.ADAMW]
