"""The analysis papers: their problems, their verdicts on made-up numbers, and tiny runs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.curvature import hessian_diag
from adamw_jax.lab.experiments import (
    batch_size_rules,
    edge_of_stability,
    invariant_measures,
    layer_norm_scaling,
    layer_norm_warmup,
    local_geometry,
    moment_estimation,
)
from adamw_jax.lab.experiments.common import where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.train import Runner
from adamw_jax.lab.transformer import POST, PRE, Shape, Transformer

pytestmark = [pytest.mark.slow, pytest.mark.quick]


def tiny(module, **changes):
    return dataclasses.replace(module.EXPERIMENT.settings("tiny"), **changes)


def words(module, s, rows):
    return [verdict.word for verdict in module.EXPERIMENT.analyse(s, rows).verdicts]


# Edge of stability


def edge_rows(s, ratios):
    """Ratios by seed that hold in the last steps; before them training is far below."""
    stride = s.steps // s.points
    return [
        {"series": name, "rate": rate, "b1": b1, "threshold": 4.0, "seed": seed, "step": step,
         "loss": 0.1, "ratio": ratio if step > s.steps - s.last else 0.1}
        for name, rate, b1 in s.lanes()
        for seed, ratio in zip(s.seeds, ratios, strict=True)
        for step in range(stride, s.steps + 1, stride)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "word"),
    [((1.09, 0.91), "shown"), ((1.11, 1.0), "contradicted"), ((0.3, 0.3), "contradicted")],
)
def test_edge_verdicts(ratios, word):
    s = tiny(edge_of_stability)
    assert words(edge_of_stability, s, edge_rows(s, ratios)) == [word] * len(s.lanes())


def test_a_diverged_run_is_not_at_the_edge():
    s = tiny(edge_of_stability)
    rows = [row | {"ratio": None} for row in edge_rows(s, (1.0, 1.0))]
    assert set(words(edge_of_stability, s, rows)) == {"contradicted"}


# Local geometry


def test_diagonal_of_two_linear_layers():
    s = tiny(local_geometry, size=6, examples=20)
    params, (moment, goal) = local_geometry.problem(s, 0)
    found = hessian_diag(local_geometry.loss_of, params, (jnp.asarray(moment), jnp.asarray(goal)))
    first, second = params["first"], params["second"][0]
    np.testing.assert_allclose(found["first"], np.outer(second**2, np.diag(moment)), rtol=1e-4)
    np.testing.assert_allclose(found["second"][0], np.diag(first @ moment @ first.T), rtol=1e-4)


@pytest.mark.parametrize(
    ("uneven", "even", "found"),
    [
        ((12.0, 15.0), (1.3, 1.0), ("shown", "shown")),
        ((12.0, 7.0), (1.3, 3.0), ("contradicted", "contradicted")),
        ((20.0, 8.0), (2.0, 1.0), ("equivalent", "equivalent")),
    ],
)
def test_geometry_verdicts_go_by_the_worse_layer(uneven, even, found):
    s = tiny(local_geometry)
    rows = []
    for name in local_geometry.contenders(s):
        ratios = uneven if name in local_geometry.UNEVEN else even
        rows += [
            {"series": name, "seed": seed, "step": s.steps, "loss": 0.0,
             "first": ratios[0] * (1 + e), "second": ratios[1] * (1 + e)}
            for seed, e in zip(s.seeds, (0.0, 0.001, -0.001), strict=True)
        ]  # fmt: skip
    assert words(local_geometry, s, rows) == [found[0]] * 2 + [found[1]] * 2


def test_geometry_is_that_of_the_mean():
    """One seed below the bound is told, and does not decide."""
    s = tiny(local_geometry, seeds=(0, 1, 2, 3))
    ends = [
        {"series": "Adam", "seed": seed, "first": 20.0, "second": second}
        for seed, second in zip(s.seeds, (7.0, 14.0, 14.0, 28.0), strict=True)
    ]
    uneven = local_geometry._verdict(s, ends, local_geometry.MOMENTUM)
    assert uneven.claim.endswith("above 8 in the geometric mean over seeds")
    assert "the smaller of the two 12.87 [" in uneven.evidence
    assert "from 7.00 to 20.00 over seeds" in uneven.evidence
    low, high = map(float, uneven.evidence.partition("[")[2].partition("]")[0].split(", "))
    np.testing.assert_allclose(low * high, 12.87**2, rtol=2e-3)
    assert (low > 8) == (uneven.word == "shown")
    even = local_geometry._verdict(s, ends, local_geometry.ADAM)
    assert "the larger of the two 21.76 [" in even.evidence
    low, high = map(float, even.evidence.partition("[")[2].partition("]")[0].split(", "))
    assert low < 21.76 < high


# Invariant measures


def cycle_rows(s, gradients, drift, ratio):
    rows = [
        {"kind": invariant_measures.SINES, "rate": rate, "seed": seed, "gradient": gradient,
         "loss": -50.0, "drift": drift, "low": -90.0, "high": 10.0}
        for rate, gradient in zip(s.rates, gradients, strict=True)
        for seed in s.seeds
    ]  # fmt: skip
    rows += [
        {"kind": invariant_measures.QUADRATIC, "rate": rate, "seed": seed, "descent": ratio,
         "bend": 1.0}
        for rate in s.sgd_rates
        for seed in s.seeds
    ]  # fmt: skip
    path = [{"kind": "path", "rate": r, "step": 1, "loss": 0.0, "mean": 0.0} for r in s.rates]
    return rows + path


@pytest.mark.parametrize(
    ("gradients", "drift", "ratio", "found"),
    [
        ((0.0, 45.0), 1.0, 1.01, ["shown", "shown", "shown"]),
        ((0.1, 45.0), 6.0, 0.5, ["contradicted", "contradicted", "contradicted"]),
        ((0.0, 0.5), 0.0, 1.03, ["shown", "contradicted", "contradicted"]),
    ],
)
def test_invariant_measure_verdicts(gradients, drift, ratio, found):
    s = tiny(invariant_measures)
    rows = cycle_rows(s, gradients, drift, ratio)
    assert words(invariant_measures, s, rows) == found


# Batch size


def test_readings_of_a_curve():
    octaves = np.arange(-4.0, 3.0)
    parabola = np.exp(0.1 * (octaves + 1.3) ** 2 - 2)
    assert batch_size_rules.best(octaves, parabola) == pytest.approx(-1.3)
    losses = np.array([0.5, 0.3, 0.1, 0.2, 0.8, 2.0, 2.0])
    crossing = math.log(1.15 / 0.8) / math.log(2.0 / 0.8)
    assert batch_size_rules.largest(octaves, losses, 1.15) == pytest.approx(crossing)
    assert batch_size_rules.largest(octaves, losses / 2, 1.15) == 2.0  # nothing fails on the grid


def loss_rows(s, powers):
    """Parabolas whose lowest points move by these powers of the batch size, steep at the edge."""
    rows = []
    for name, batch in itertools.product(powers, s.batches):
        for seed, octave in itertools.product(s.seeds, s.grid(name)):
            lowest = s.grid(name)[0] + 1 + powers[name] * math.log2(batch / s.fitted[0])
            loss = 0.1 * math.exp(0.5 * (octave - lowest - 0.01 * seed) ** 2)
            rows.append({"series": name, "batch": batch, "octave": float(octave), "seed": seed,
                         "loss": loss if loss < 4 else None})  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("sgd", "adam", "found"),
    [
        (1.0, 0.5, ("shown", "shown")),
        (0.5, 1.0, ("contradicted", "contradicted")),
        (0.0, 0.0, ("contradicted", "contradicted")),
    ],
)
def test_batch_size_verdicts(sgd, adam, found):
    s = tiny(batch_size_rules, octaves=((-8, 1), (-10, -1)))
    rows = loss_rows(s, {batch_size_rules.SGD: sgd, batch_size_rules.ADAM: adam})
    assert words(batch_size_rules, s, rows) == [*found, *found]


def test_a_wide_interval_of_the_power_is_undecided():
    s = tiny(batch_size_rules)
    verdict = batch_size_rules._verdict(s, batch_size_rules.ADAM, batch_size_rules.BEST, [0.4, 0.7])
    assert verdict.word == "undecided"


def test_a_power_between_the_two_is_neither():
    """The bands do not meet, and an interval without the power is no tie."""
    s = tiny(batch_size_rules)
    for name in batch_size_rules.RULES:
        verdict = batch_size_rules._verdict(s, name, batch_size_rules.BEST, [0.74, 0.75, 0.76])
        assert verdict.word == "contradicted"
    close = batch_size_rules._verdict(s, batch_size_rules.SGD, batch_size_rules.BEST, [0.95, 0.951])
    assert close.word == "shown"


def test_what_becomes_of_the_power_is_told():
    s = tiny(batch_size_rules, octaves=((-8, 1), (-10, -1)), fitted=(8, 16), beyond=(32, 64))
    rows = loss_rows(s, {batch_size_rules.SGD: 1.0, batch_size_rules.ADAM: 0.5})
    (remark,) = batch_size_rules.EXPERIMENT.analyse(s, rows).remarks
    assert remark.startswith("From a batch size of 16 to 64 the power is 1.0")
    assert "0.50 for Adam's best learning rate." in remark


# Moment estimation


def test_noise_is_loud_in_its_share_of_the_steps():
    s = tiny(moment_estimation)
    for kind in (moment_estimation.PHASE, moment_estimation.SCATTERED):
        loud = moment_estimation.loudness(s, kind, 400, 0) == s.loud
        np.testing.assert_array_equal(loud.sum(axis=1), 40)
        starts = (np.diff(loud.astype(int), prepend=0, axis=1) == 1).sum(axis=1)
        assert np.all((starts == 1) == (kind == moment_estimation.PHASE))
    assert np.all(moment_estimation.loudness(s, moment_estimation.STEADY, 400, 0) == s.quiet)


def test_rates_have_the_same_bound_where_noise_is_steady():
    s = tiny(moment_estimation)
    steady, *others = moment_estimation.rates(s, np.full((2, 3, 100), s.quiet)).values()
    np.testing.assert_allclose(steady, s.distance / math.sqrt(100 * (1 + s.quiet**2)))
    for other in others:
        np.testing.assert_allclose(other, steady)


@pytest.mark.parametrize(
    ("estimated", "scattered", "found"),
    [
        (0.1, 0.4, ["shown", "shown", "shown", "shown"]),
        (0.8, 1.0, ["contradicted", "contradicted", "contradicted", "equivalent"]),
        (0.1, 1.5, ["shown", "shown", "shown", "contradicted"]),
    ],
)
def test_moment_estimation_verdicts(estimated, scattered, found):
    m, s = moment_estimation, tiny(moment_estimation)
    means = {m.WORST: 2.0, m.BEST: 1.0, m.ORACLE: 0.08}
    rows = []
    for kind, seed, steps in itertools.product(
        (m.PHASE, m.SCATTERED, m.STEADY), s.seeds, s.horizons
    ):
        own = {m.PHASE: estimated, m.SCATTERED: scattered, m.STEADY: 10 * estimated}[kind]
        all_means = means | {m.label(beta): own for beta in s.betas}
        rows += [
            {"kind": kind, "steps": steps, "series": name, "seed": seed,
             "error": mean * (1 + 0.001 * seed * (name == m.BEST))}
            for name, mean in all_means.items()
        ]  # fmt: skip
    assert words(m, s, rows) == found


# Transformers


def start_rows(s, power, growth, level):
    rows: Rows = []
    for placement, depth in itertools.product(power, s.depths):
        norm = depth ** power[placement]
        rows += [
            {"series": placement, "depth": depth, "seed": seed, "layer": layer,
             "square": 1 + growth * layer if placement == PRE else level,
             "norm": (1 + 0.001 * seed) * norm}
            for seed in s.seeds
            for layer in range(1, depth + 1)
        ]  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("power", "growth", "level", "found"),
    [
        ((-0.5, 0.2), 0.6, 1.45, ["shown", "shown", "shown", "shown"]),
        ((-0.3, -0.2), 0.4, 1.7, ["contradicted", "contradicted", "contradicted", "contradicted"]),
    ],
)
def test_scaling_verdicts(power, growth, level, found):
    s = tiny(layer_norm_scaling)
    rows = start_rows(s, dict(zip((PRE, POST), power, strict=True)), growth, level)
    assert words(layer_norm_scaling, s, rows) == found


def loss_rows_of(s, arm, loss):
    return [
        {"series": arm, "rate": rate, "seed": seed, "step": step, "loss": loss}
        for rate, seed, step in itertools.product(s.rates, s.seeds, (s.steps // 2, s.steps))
    ]


@pytest.mark.parametrize(
    ("pre", "warm", "found"),
    [(1.3, 2.0, ["shown", "shown"]), (2.701, 2.8, ["contradicted", "contradicted"])],
)
def test_warmup_verdicts(pre, warm, found):
    s = tiny(layer_norm_warmup)
    losses = {POST: 2.7, PRE: pre, layer_norm_warmup.WARM: warm}
    rows = [
        row | {"loss": row["loss"] + 1e-4 * row["seed"] * i}
        for i, (arm, loss) in enumerate(losses.items())
        for row in loss_rows_of(s, arm, loss)
    ]
    assert words(layer_norm_warmup, s, rows) == found


@pytest.mark.parametrize("placement", [PRE, POST])
def test_transformer_is_the_formula(placement):
    """One layer of uniform attention, by hand."""
    net = Transformer(Shape(placement, 1, 6, 6, 1, 5, 4, uniform=True))
    params = net.init(0)
    x = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
    mix, out, rise, fall = (
        params["layers"][name]["kernel"][0] for name in ("mix", "out", "rise", "fall")
    )

    def normal(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def attend(x):
        return np.broadcast_to((x @ mix @ out).mean(1, keepdims=True), x.shape)

    def feed(x):
        return np.maximum(x @ rise, 0) @ fall

    if placement == PRE:
        middle = x + attend(normal(x))
        total = middle + feed(normal(middle))
    else:
        middle = normal(x + attend(x))
        total = middle + feed(middle)
    logits, sums = net.run(params, jnp.asarray(x))
    np.testing.assert_allclose(sums[0], total, atol=1e-4)
    expected = normal(total) @ params["ends"]["output"]["kernel"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_token_does_not_see_those_behind_it():
    net = Transformer(Shape(PRE, 2, 8, 16, 2, 5, 6))
    params = net.init(1)
    assert params["layers"]["mix"]["kernel"].shape == (2, 8, 24)
    tokens = np.array([[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 1, 1]], np.int32)
    one, other = np.asarray(jax.jit(net.apply)(params, tokens))
    np.testing.assert_allclose(one[:4], other[:4], atol=1e-6)
    assert np.abs(one[4:] - other[4:]).max() > 1e-2


def test_training_lowers_the_loss_and_warms_up():
    s = tiny(layer_norm_warmup, steps=60, warmup=30, points=6, seeds=(0, 1))
    made = layer_norm_warmup.trainer(s, POST)
    losses = {}
    for arm in (POST, layer_norm_warmup.WARM):
        rows = layer_norm_warmup.train(s, made, arm)
        assert [row["step"] for row in rows if row["seed"] == 0] == [10, 20, 30, 40, 50, 60]
        losses[arm] = [row["loss"] for row in rows if row["seed"] == 0]
        assert losses[arm][-1] < losses[arm][0]
    assert losses[POST][0] < losses[layer_norm_warmup.WARM][0]  # it steps further at once


def test_an_unnormalised_stream_grows_and_a_normalised_one_does_not():
    s = tiny(layer_norm_scaling, width=64, depths=(3,))
    rows = layer_norm_scaling.start(s, PRE, 3)
    assert [(row["seed"], row["layer"]) for row in rows] == list(
        itertools.product((0, 1), (1, 2, 3))
    )
    squares = np.reshape([row["square"] for row in rows], (2, 3)).mean(0)
    layers = np.arange(1, 4)
    assert np.all((squares > 1 + layers / 2) & (squares < 1 + 1.5 * layers))
    assert all(row["norm"] > 0 for row in rows)


def test_measurements_of_transformers_are_put_together(monkeypatch):
    """Their compilations are long, so that the work itself is tested above."""
    made_up = start_rows(tiny(layer_norm_scaling), {PRE: -0.5, POST: 0.0}, 0.6, 1.5)
    monkeypatch.setattr(
        layer_norm_scaling, "start",
        lambda s, name, depth: where(made_up, series=name, depth=depth),
    )  # fmt: skip
    monkeypatch.setattr(
        layer_norm_warmup, "train",
        lambda s, made, arm: loss_rows_of(s, arm, made[0].shape.width),
    )  # fmt: skip
    for module in (layer_norm_scaling, layer_norm_warmup):
        check_run(module, module.EXPERIMENT.settings("tiny"))


def test_every_learning_rate_is_tried():
    s = tiny(batch_size_rules, fitted=(32,), beyond=(), seeds=(0, 1))
    rows = batch_size_rules.measure(s, Runner(Silent()))
    assert len(rows) == 2 * sum(len(s.grid(name)) for name in batch_size_rules.RULES)
    sgd = where(rows, series=batch_size_rules.SGD, seed=0)
    assert sgd[4]["loss"] < sgd[0]["loss"] < math.log(10)


def check_run(module, s):
    result = module.EXPERIMENT.analyse(s, module.EXPERIMENT.measure(s, Runner(Silent())))
    assert all(panel.rows for figure in result.figures for panel in figure.panels)
    assert all(table.rows for table in result.tables)
    return [verdict.word for verdict in result.verdicts]


@pytest.mark.parametrize(
    ("module", "changes", "found"),
    [
        (edge_of_stability, {"descent": ()}, None),
        (local_geometry, {}, ["shown"] * 4),
        (invariant_measures, {}, ["shown"] * 3),
        (moment_estimation, {}, None),
    ],
    ids=lambda value: value.EXPERIMENT.name if hasattr(value, "EXPERIMENT") else "",
)
def test_tiny_presets_run_and_judge(module, changes, found):
    """Where a verdict holds on any scale, it is the one expected."""
    judged = check_run(module, tiny(module, **changes))
    assert found is None or judged == found
