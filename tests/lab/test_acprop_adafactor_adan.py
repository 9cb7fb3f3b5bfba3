"""ACProp's map, Adafactor's jump, Adan's batches: theory, and verdicts on numbers made up."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax import adafactor, adam, scale_by_adafactor
from adamw_jax.lab.experiments import (
    acprop,
    adafactor as adafactor_lab,
    adafactor_runs,
    adan as adan_lab,
)
from adamw_jax.lab.theory import reddi_drift

pytestmark = pytest.mark.quick

NOISE = (0.002, -0.001, 0.001, -0.002)


def words(result):
    return [verdict.word for verdict in result.verdicts]


# ACProp


@pytest.mark.parametrize(("period", "b2"), [(5, 0.5), (31, 0.9), (101, 0.99)])
def test_drift_of_adam_is_the_closed_form(period, b2):
    closed = reddi_drift(0.9, b2, period, 1.0, period, amsgrad=False)
    drift = acprop.drift(acprop.ADAM, acprop.DENSE, period, 0.9, b2, 0.0)
    assert drift == pytest.approx(closed)


@pytest.mark.parametrize("problem", list(acprop.TITLES))
@pytest.mark.parametrize("name", list(acprop.KINDS))
def test_drift_is_that_of_the_library(name, problem):
    """The mean update of a period, long after the start, where x has no say in the gradient."""
    period, b1, b2, eps = 7, 0.8, 0.7, 1e-3
    tx = acprop.optimizer(name, 1.0, b1, b2, eps)
    g = jnp.tile(jnp.asarray(acprop.gradients(problem, period), jnp.float32), 60)

    def step(state, g):
        update, state = tx.update(g, state, jnp.zeros_like(g))
        return state, update

    _, updates = jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g))(g)
    expected = acprop.drift(name, problem, period, b1, np.array([b2]), eps)
    assert np.asarray(updates)[-period:].mean() == pytest.approx(expected[0], rel=2e-4)


@pytest.mark.parametrize("problem", list(acprop.TITLES))
def test_the_best_point_of_both_problems_is_the_left_one(problem):
    for period in (5, 31):
        g = acprop.gradients(problem, period)
        assert len(g) == period
        assert g.mean() > 0 > g.min()


def map_rows(s, wrong=()):
    """x goes right but for Adam and AdaBelief at the longest period, and for ``wrong`` cells."""
    rows = []
    for name in acprop.KINDS:
        for problem in acprop.TITLES:
            for period in s.periods:
                for b2 in s.b2:
                    drift = acprop.drift(name, problem, period, s.b1, b2, s.eps)
                    end = float(np.sign(drift))
                    if (name, problem, period, b2) in wrong:
                        end = -end
                    rows.append({"series": name, "problem": problem, "period": period, "b2": b2,
                                 "learning_rate": s.learning_rate, "end": end})  # fmt: skip
    return rows


def test_verdicts_on_the_map():
    s = acprop.EXPERIMENT.settings("tiny")
    assert words(acprop.analyse(s, map_rows(s))) == ["shown", "shown", "shown"]
    # A single cell on the wrong side, as a broken optimizer makes it, is noticed.
    dense = ("ACProp", acprop.DENSE, 31, 0.99)
    assert words(acprop.analyse(s, map_rows(s, {dense}))) == [
        "contradicted",
        "shown",
        "contradicted",
    ]
    sparse = ("ACProp", acprop.SPARSE, 5, 0.5)
    assert words(acprop.analyse(s, map_rows(s, {sparse}))) == [
        "shown",
        "equivalent",
        "contradicted",
    ]
    both = {sparse, ("ACProp", acprop.SPARSE, 31, 0.99)}
    assert words(acprop.analyse(s, map_rows(s, both)))[1] == "contradicted"


def test_steps_fit_into_the_box_at_the_end():
    s = acprop.EXPERIMENT.settings("demo")
    for b2 in (0.3, 0.999):
        rate = acprop.rate_of(s, acprop.ACPROP, acprop.DENSE, 101, b2)
        steps = acprop.directions(acprop.ACPROP, acprop.DENSE, 101, s.b1, b2, s.eps)
        longest = np.abs(steps).max() * rate / np.sqrt(s.steps + s.offset)
        assert longest == pytest.approx(s.longest) or rate == s.learning_rate
        assert longest <= s.longest * 1.0001


# Adafactor


@pytest.mark.parametrize("b2", [0.9, 0.999])
def test_exponent_makes_adafactors_second_moment_that_of_adam(b2):
    ours = scale_by_adafactor(**adafactor_runs.arguments(jnp.float32(b2), None))
    theirs = adam(1.0, b1=0.0, b2=b2, eps=1e-20)
    g = jnp.asarray(np.random.default_rng(0).normal(size=(60, 8)), jnp.float32)

    def run(tx):
        def step(state, g):
            update, state = tx.update(g, state, jnp.zeros_like(g))
            return state, update

        return np.asarray(jax.jit(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(g))

    np.testing.assert_allclose(run(ours), -run(theirs), rtol=2e-3)


def test_exponent_of_the_schedule_is_the_papers():
    rate = adafactor_runs.exponent(jnp.float32(0))
    assert [float(rate(jnp.int32(n))) for n in (0, 1, 500)] == pytest.approx([0.8] * 3)
    adafactor(0.1, decay_rate=rate)  # is a schedule as the library wants it


def test_expected_rms():
    # Two equal weights: by symmetry each has half of the sum.
    assert adafactor_lab.newest_weight(1 - 1e-9, np.array([2.0]))[0] == pytest.approx(0.5)
    assert adafactor_lab.expected_rms(1 - 1e-9, np.ones(2)) == pytest.approx(1.0, rel=1e-3)
    # The first step after a huge jump sees nothing but the newest square.
    sizes = np.array([1.0] * 50 + [1e6])
    expected = 1 / np.sqrt(adafactor_lab.newest_weight(0.9, np.array([51.0]))[0])
    assert adafactor_lab.expected_rms(0.9, sizes) == pytest.approx(expected, rel=1e-3)
    draws = np.random.default_rng(0).normal(size=(200_000, 12)) * np.array([1.0] * 10 + [3.0] * 2)
    v = np.zeros(len(draws))
    for t, weight in enumerate(adafactor_lab.newest_weight(0.0, np.arange(1.0, 13.0))):
        v = (1 - weight) * v + weight * draws[:, t] ** 2
    simulated = np.sqrt(np.mean(draws[:, -1] ** 2 / v))
    sizes = np.array([1.0] * 10 + [3.0] * 2)
    assert adafactor_lab.expected_rms(0.0, sizes) == pytest.approx(simulated, rel=0.01)


def adafactor_rows(s, *, scale=1.0, slow_peak=3.0, clipped=0.9, free=0.8, full=0.9):
    rows = []
    for b2 in (*s.b2, 0.0):
        for seed in s.seeds:
            for n in (1, 10):
                sizes = adafactor_runs._sizes(s)[: s.before + n]
                rms = scale * adafactor_lab.expected_rms(b2, sizes)
                rows.append({"part": "jump", "decay": adafactor_lab.label(b2), "seed": seed,
                             "step": n, "rms": rms, "clipped": min(rms, 1.0)})  # fmt: skip
    forms = [*itertools.product((s.b2[-1], 0.0), (False, True), (True,)), (0.0, True, False)]
    for b2, clipping, factored in forms:
        for rate in s.learning_rates:
            for seed, e in zip(s.seeds, NOISE, strict=True):
                accuracy = (clipped if clipping else free) + (e if clipping else -e)
                accuracy = accuracy if factored else full
                rows.append({
                        "part": "training", "decay": adafactor_lab.label(b2), "clipping": clipping,
                        "factored": factored, "learning_rate": rate, "seed": seed,
                        "peak": (slow_peak if b2 else 2.0) + e, "path": [1.0] * s.points,
                        "train_loss": 0.5, "validation_loss": rate, "validation_accuracy": 0.5,
                        "test_loss": 0.5, "test_accuracy": accuracy,
                    })  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["shown", "shown", "shown", "shown", "shown"]),
        ({"scale": 1.1}, ["contradicted", "shown", "shown", "shown", "shown"]),
        ({"slow_peak": 1.5}, ["shown", "contradicted", "shown", "shown", "shown"]),
        ({"slow_peak": 2.0}, ["shown", "equivalent", "shown", "shown", "shown"]),
        ({"clipped": 0.7}, ["shown", "shown", "contradicted", "contradicted", "contradicted"]),
        ({"clipped": 0.8, "full": 0.8}, ["shown", "shown", "equivalent", "equivalent", "shown"]),
        ({"full": 0.95}, ["shown", "shown", "shown", "shown", "contradicted"]),
    ],
)
def test_verdicts_on_adafactor(changes, expected):
    s = dataclasses.replace(adafactor_lab.EXPERIMENT.settings("tiny"), seeds=(0, 1, 2, 3))
    assert words(adafactor_lab.analyse(s, adafactor_rows(s, **changes))) == expected


# Adan


def batch_rows(s, accuracy, rates=(0.01, 0.03)):
    """Rows with this test accuracy by contender and batch; the first rate is the best."""
    rows = []
    for (group, batch), value in accuracy.items():
        for rate in rates:
            for seed, e in zip(s.seeds, NOISE, strict=True):
                got = value + (e if group == "Adan" else -e) - (rate - rates[0])
                rows.append({
                    "task": "digits", "arm": f"{group} {rate}", "group": group,
                    "learning_rate": rate, "weight_decay": 0.1, "seed": seed, "step": 4,
                    "epoch": 2.0, "batch": batch, "train_loss": 0.5, "validation_loss": 0.5,
                    "validation_accuracy": got, "test_loss": 0.5, "test_accuracy": got,
                })  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("adan", "adamw", "expected"),
    [
        ((0.9, 0.9), (0.9, 0.8), ["shown", "equivalent", "shown"]),
        ((0.9, 0.8), (0.9, 0.8), ["equivalent", "equivalent", "equivalent"]),
        ((0.9, 0.7), (0.8, 0.8), ["contradicted", "shown", "contradicted"]),
    ],
)
def test_verdicts_on_batches(adan, adamw, expected):
    s = dataclasses.replace(adan_lab.EXPERIMENT.settings("tiny"), seeds=(0, 1, 2, 3))
    (batches,) = s.batches
    accuracy = {
        (group, batch): value
        for group, values in (("Adan", adan), ("AdamW", adamw))
        for batch, value in zip(batches, values, strict=True)
    }
    result = adan_lab.analyse(s, batch_rows(s, accuracy))
    assert words(result) == expected
    # Both were best at the lower end of the grid, and the report says so.
    assert "lr 0.01" in result.remarks[0]
    assert [row["x"] for row in result.figures[0].panels[0].rows] == list(batches) * 2
