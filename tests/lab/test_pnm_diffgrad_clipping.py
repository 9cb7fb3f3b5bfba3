"""PNM's noise, diffGrad's functions, clipping: theory, and verdicts on numbers made up."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.lab.experiments import clipping, diffgrad, pnm
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick


def tiny(module, **changes):
    return dataclasses.replace(module.EXPERIMENT.settings("tiny"), **changes)


# PNM


@pytest.mark.parametrize(("b0", "expected"), [(0.0, 1.0), (1.0, 5**0.5), (3.0, 5.0)])
def test_pnm_norm(b0, expected):
    assert pnm.norm(b0) == pytest.approx(expected)
    # Without averaging the direction is (1 + b0) g - b0 g_before.
    assert pnm.direction_noise(b0, 0.0, 2.0) == pytest.approx(2.0 * expected)


def test_noise_of_the_iterates_is_that_of_sgd_where_nothing_is_averaged():
    curvature, noise = 0.3, 2.0
    sgd = noise / math.sqrt(curvature * (2 - curvature))
    assert pnm.iterate_noise(0.0, 0.0, curvature, noise) == pytest.approx(sgd)


def noise_rows(s, direction=1.0, gain=1.0, iterates=1.0):
    """The numbers of the theory, each times a factor; ``iterates`` applies to the larger b0."""
    rows = []
    for seed, e in zip(s.noise_seeds, (0.001, -0.001, 0.002, 0.0), strict=False):
        for b0 in s.b0:
            mean = gain / pnm.norm(b0)
            deviation = direction * (1 + e) * mean * pnm.direction_noise(b0, s.b1, s.noise)
            rows.append({"curvature": 0.0, "b0": b0, "mean": mean, "deviation": deviation,
                         "seed": seed})  # fmt: skip
            for i, curvature in enumerate(s.curvatures):
                deviation = (1 + e) * (1.0 + i * b0 * iterates)
                rows.append({"curvature": curvature, "b0": b0, "mean": 0.0,
                             "deviation": deviation, "seed": seed})  # fmt: skip
    return [{"kind": "noise", **row} for row in rows]


def training_rows(pnm_accuracy, sgd_accuracy):
    return [
        {"kind": "training", "task": "digits", "arm": group, "group": group, "learning_rate": 0.1,
         "weight_decay": 0.0, "seed": seed, "step": 4, "epoch": 2.0, "train_loss": 0.5,
         "validation_loss": 0.5, "validation_accuracy": accuracy + 0.001 * seed, "test_loss": 0.5,
         "test_accuracy": accuracy + 0.001 * seed**i}
        for i, (group, accuracy) in enumerate(((pnm.PNM, pnm_accuracy), (pnm.SGD, sgd_accuracy)))
        for seed in (0, 1, 2, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["shown", "shown", "equivalent", "shown", "shown"]),
        ({"direction": 1.1}, ["contradicted", "shown", "equivalent", "shown", "shown"]),
        ({"gain": 0.9}, ["shown", "contradicted", "equivalent", "shown", "shown"]),
        ({"iterates": -0.2}, ["shown", "shown", "equivalent", "contradicted", "shown"]),
    ],
)
def test_pnm_verdicts(changes, words):
    s = tiny(pnm, noise_seeds=(0, 1, 2, 3))
    result = pnm.EXPERIMENT.analyse(s, noise_rows(s, **changes) + training_rows(0.9, 0.8))
    assert [verdict.word for verdict in result.verdicts] == words


def test_pnm_is_not_called_better_when_it_is_worse():
    s = tiny(pnm, noise_seeds=(0, 1, 2, 3))
    result = pnm.EXPERIMENT.analyse(s, noise_rows(s) + training_rows(0.8, 0.9))
    assert result.verdicts[-1].word == "contradicted"


# diffGrad


@pytest.mark.parametrize("valley", diffgrad.VALLEYS, ids=lambda valley: valley.name)
def test_slopes_are_those_of_the_values(valley):
    x = np.linspace(-1.45, 1.45, 997)
    h = 1e-5
    measured = (valley.value(x + h) - valley.value(x - h)) / (2 * h)
    kinks = np.array([-0.9, -0.5, -0.4, 0.0, 0.4, 0.5])
    smooth = np.min(np.abs(x[:, None] - kinks), axis=1) > 2 * h
    slope = np.asarray(valley.slope(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(slope[smooth], measured[smooth], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "x", "y"), [("F1", -0.3, 0.0), ("F2", -0.9, None), ("F3", 0.0, 0.0)]
)
def test_lowest_points(name, x, y):
    (valley,) = (valley for valley in diffgrad.VALLEYS if valley.name == name)
    found = diffgrad.best_point(valley)
    assert found[0] == pytest.approx(x, abs=1e-3)
    if y is not None:
        assert found[1] == pytest.approx(y, abs=1e-3)


def valley_rows(s, ends, shares):
    rows = []
    for valley in diffgrad.VALLEYS:
        for name, end in ends.items():
            rows += [
                {"kind": "path", "function": valley.name, "series": name, "step": i, "x": x,
                 "loss": 1.0, "best": 0.0}
                for i, x in enumerate((s.start, end))
            ]  # fmt: skip
        for name, values in shares.items():
            rows += [
                {"kind": "share", "function": valley.name, "series": name, "factor": factor,
                 "share": share}
                for factor, share in zip(s.factors, values, strict=True)
            ]  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("ends", "shares", "words"),
    [
        ((0.5, 0.0), ((0.3, 0.4), (0.0, 0.5)), ("shown", "shown")),
        ((0.0, 0.0), ((0.5, 0.4), (0.0, 0.5)), ("equivalent", "equivalent")),
        ((0.0, 0.5), ((0.7, 0.1), (0.0, 0.5)), ("contradicted", "contradicted")),
        ((0.5, 0.5), ((0.1, 0.7), (0.9, 0.5)), ("contradicted", "contradicted")),
    ],
)
def test_diffgrad_verdicts(ends, shares, words):
    s = tiny(diffgrad, factors=(0.5, 1.0))
    ends = {diffgrad.ADAM: ends[0], diffgrad.DIFFGRAD: ends[1], diffgrad.HALF: 0.2}
    shares = {diffgrad.ADAM: shares[0], diffgrad.DIFFGRAD: shares[1]}
    result = diffgrad.EXPERIMENT.analyse(s, valley_rows(s, ends, shares))
    assert [v.word for v in result.verdicts] == list(words) * len(diffgrad.VALLEYS)


# Clipping


def test_growth_is_the_power():
    sizes = np.array([10.0, 100.0, 1000.0])
    assert clipping.growth(sizes, 3 * sizes**0.7) == pytest.approx(0.7)
    assert clipping.growth(sizes, [1.0, math.inf, 3.0]) == math.inf


def test_every_start_has_its_first_gradient():
    s = tiny(clipping)
    for part, value, (c, smoothness, starts) in clipping.problems(s):
        slope = np.sinh(smoothness * starts) / smoothness
        largest = value if part == clipping.SIZE else s.size
        np.testing.assert_allclose(slope[:, 0], np.geomspace(1, largest, s.starts))
        assert c.shape == smoothness.shape == (s.dimension,)


def test_steps_are_counted_until_the_gradient_stays_small():
    """On a near quadratic each step of rate r leaves 1 - r of the distance."""
    s = tiny(clipping, rates=(0.5, 2.5), steps=200, starts=2, dimension=1)
    start = np.array([[0.21], [0.41]])
    posed = [(np.ones(1), np.full(1, 1e-2), start)]
    (needed,) = clipping.steps_to_target(s, clipping.contenders(s)[clipping.PLAIN], posed)
    assert needed[0] == 3  # 0.41, 0.205 and 0.1025 lie above 0.1, the fourth below
    assert needed[1] == math.inf


def step_rows(s, powers, sign_over_clip):
    rows = []
    for part, value, _ in clipping.problems(s):
        for name in clipping.contenders(s):
            steps = 10 * value ** powers[name] if part == clipping.SIZE else 100.0
            if part != clipping.SIZE and name == clipping.SIGN:
                steps *= sign_over_clip
            rows += [
                {"kind": part, "value": value, "series": name, "rate": rate, "steps": found}
                for rate, found in ((0.1, steps), (0.3, None))
            ]
    return rows


def noisy_rows(s, ratio):
    return [
        {"kind": "noise", "series": name, "b1": b1, "seed": seed,
         "left": (0.1 if b1 == s.b1 else 0.1 * ratio) * (1 + 0.01 * seed**(1 + b1))}
        for name in (clipping.SIGN, clipping.CLIPPED)
        for b1 in s.momenta
        for seed in s.seeds
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("plain", "other", "ratio", "noise", "words"),
    [
        (0.8, 0.2, 0.5, 3.0, ("shown", "shown", "shown")),
        (0.4, 0.2, 1.0, 1.0, ("contradicted", "equivalent", "equivalent")),
        (0.8, 0.5, 2.0, 0.3, ("contradicted", "contradicted", "contradicted")),
    ],
)
def test_clipping_verdicts(plain, other, ratio, noise, words):
    s = tiny(clipping)
    powers = dict.fromkeys(clipping.contenders(s), other) | {clipping.PLAIN: plain}
    rows = step_rows(s, powers, ratio) + noisy_rows(s, noise)
    found = [verdict.word for verdict in clipping.EXPERIMENT.analyse(s, rows).verdicts]
    assert found == [words[0]] * 3 + [words[1]] * 2 + [words[2]] * 2


@pytest.mark.parametrize("module", [pnm, diffgrad, clipping], ids=lambda m: m.EXPERIMENT.name)
def test_tiny_presets_run_and_judge(module, monkeypatch):
    made_up = training_rows(0.9, 0.8)  # training has tests of its own
    monkeypatch.setattr(pnm.common, "train_all", lambda *_: made_up)
    s = module.EXPERIMENT.settings("tiny")
    result = module.EXPERIMENT.analyse(s, module.EXPERIMENT.measure(s, Runner(Silent())))
    assert all(panel.rows for figure in result.figures for panel in figure.panels)
    assert all(table.rows for table in result.tables)
    if module is pnm:  # a broken direction would leave the formulas
        assert [verdict.word for verdict in result.verdicts[:2]] == ["shown", "shown"]
