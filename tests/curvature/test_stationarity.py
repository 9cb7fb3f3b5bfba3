"""Where training stands: the report on problems with known answers, and the running measure."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from adamw_jax.curvature import Batches
from adamw_jax.diagnostics import RunningMeasure, StationarityReport, stationarity_report

pytestmark = pytest.mark.quick

CURVATURE = np.array([0.5, 1.0, 4.0], np.float32)
TRUE = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}


def quadratic(params: Any, batch: Any) -> jax.Array:
    """Curvature times squared distance from the mean of a batch of points."""
    w = jnp.concatenate([params["a"].astype(jnp.float32), params["b"].astype(jnp.float32)])
    return 0.5 * jnp.mean(jnp.sum(CURVATURE[None] * (w[None] - batch) ** 2, axis=1))


def points(batches: int, size: int = 4, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed).normal(size=(batches, size, 3))
    return draws.astype(np.float32)


def test_every_number_by_hand() -> None:
    """Sums over all pairs of batches, written out in NumPy."""
    data, w, rate = points(6), np.array([1.0, -2.0, 0.5]), 0.1
    found = stationarity_report(quadratic, TRUE, data, rate)
    g = CURVATURE * (w - data.mean(1))
    mean, n = g.mean(0), len(g)
    noise = np.sum((g - mean) ** 2) / (n - 1)
    pairs = [g[i] @ g[j] for i in range(n) for j in range(n) if i != j]
    bend = [g_ @ (CURVATURE * g_) for g_ in g[:-1]]

    def loss(x: np.ndarray, batch: np.ndarray) -> float:
        return 0.5 * float(np.mean(np.sum(CURVATURE * (x - batch) ** 2, axis=1)))

    changes = [loss(w - rate * g[i], data[i + 1]) - loss(w, data[i + 1]) for i in range(n - 1)]
    expected = {
        "loss": np.mean([loss(w, batch) for batch in data]),
        "grad_norm": np.linalg.norm(mean),
        "grad_norm_unbiased": np.sqrt(np.mean(pairs)),
        "noise_norm_batch": np.sqrt(noise),
        "noise_norm_example": np.sqrt(4 * noise),
        "rayleigh_g": np.mean([b / (x @ x) for b, x in zip(bend, g, strict=False)]),
        "one_step_change": np.mean(changes),
        "descent": rate * np.mean(pairs),
        "bend": rate**2 / 2 * np.mean(bend),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-4, err_msg=name)
    # The expected change of a quadratic is -descent + bend; of this sample to its own noise.
    np.testing.assert_allclose(found.balance, expected["descent"] / expected["bend"], rtol=1e-4)


def test_the_balance_of_a_quadratic_is_one() -> None:
    """In the long run of SGD with noise: E|grad|^2 = lr/2 E[g^T H g], with the factor 1/2."""
    rate = 0.2
    noise = jax.random.normal(jax.random.key(0), (200_000, 3))
    h = jnp.asarray(CURVATURE)

    def step(w: jax.Array, e: jax.Array) -> Any:
        g = h * w + e
        return w - rate * g, (jnp.sum((h * w) ** 2), jnp.sum(h * g * g))

    _, (square, bend) = jax.lax.scan(step, jnp.zeros(3), noise)
    np.testing.assert_allclose(np.mean(square) / (rate / 2 * np.mean(bend)), 1.0, rtol=0.02)


def test_reports_along_a_settled_run_average_to_one() -> None:
    """Through the public function: time averages of descent and bend, not of their ratio."""
    rng, rate, w = np.random.default_rng(1), 0.3, np.zeros(3, np.float32)
    sums = np.zeros(2)
    for t in range(1600):
        if t >= 100 and t % 5 == 0:
            batches = rng.normal(size=(8, 4, 3)).astype(np.float32)
            at = {"a": jnp.asarray(w[:2]), "b": jnp.asarray(w[2:])}
            found = stationarity_report(quadratic, at, batches, rate)
            sums += float(found.descent), float(found.bend)
        batch = rng.normal(size=(4, 3)).astype(np.float32)
        w = w - np.float32(rate) * CURVATURE * (w - batch.mean(0))
    np.testing.assert_allclose(sums[0] / sums[1], 1.0, atol=0.15)


def valley(params: jax.Array, batch: Any) -> jax.Array:
    del batch
    return 100 * jnp.sin(params[0]) * jnp.sin(params[1])


@functools.cache
def descend(rate: float) -> tuple[jax.Array, Any, Any]:
    """2000 steps from (-0.5, 0.5): the last point, and what was measured."""
    measure = RunningMeasure(window=800, blocks=8)

    def step(carry: Any, _: Any) -> Any:
        w, state = carry
        loss, g = jax.value_and_grad(valley)(w, None)
        state = measure.update(state, {"loss": loss, "gradient": jnp.sqrt(jnp.sum(g * g))})
        return (w - jnp.float32(rate) * g, state), loss

    start = jnp.array([-0.5, 0.5]), measure.init({"loss": 0.0, "gradient": 0.0})
    (w, state), losses = jax.lax.scan(step, start, length=2000)
    return w, measure.read(state), np.asarray(losses)


def test_a_stationary_point() -> None:
    """Below the stability limit of 2/100."""
    w, found, losses = descend(0.01)
    report = stationarity_report(valley, w, [None, None], 0.01)
    np.testing.assert_allclose(losses[-1], -100.0, rtol=1e-5)
    assert bool(found["loss"].settled)
    assert float(report.noise_norm_batch) == 0
    assert report.verdict(bool(found["loss"].settled)) == "stationary point"


def test_an_invariant_measure() -> None:
    """Above it losses swing, gradients stay, and the averages stand still."""
    w, found, losses = descend(0.04)
    assert np.ptp(losses[-500:]) > 50
    assert float(found["gradient"].window_mean) > 1
    assert bool(found["loss"].settled)
    assert abs(float(found["loss"].drift)) < 1.0
    report = stationarity_report(valley, w, [None, None], 0.04)
    assert report.verdict(True) != "stationary point"


def report_of(descent: float, bend: float, gradient: float = 1.0) -> StationarityReport:
    names = dict.fromkeys(StationarityReport._fields, jnp.float32(1.0))
    found = {"descent": descent, "bend": bend, "grad_norm_unbiased": gradient}
    return StationarityReport(**names | {k: jnp.float32(x) for k, x in found.items()})


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(
    ("descent", "bend", "balance", "settled", "running"),
    [
        (1.0, 1.0, 1.0, "invariant measure", "unclear"),
        (1.2, 1.0, 1.2, "invariant measure", "unclear"),
        (2.0, 1.0, 2.0, "descending", "descending"),
        (0.5, 1.0, 0.5, "unclear", "unclear"),
        (1.0, 0.0, np.inf, "descending", "descending"),
        (1.0, -1.0, np.inf, "descending", "descending"),
        (0.0, 1.0, 0.0, "unclear", "unclear"),
        (0.0, 0.0, 0.0, "unclear", "unclear"),
        (0.0, -1.0, 0.0, "unclear", "unclear"),
        (-1.0, 1.0, -1.0, "unclear", "unclear"),
        (-1.0, 0.0, -np.inf, "unclear", "unclear"),
        (-1.0, -1.0, -np.inf, "unclear", "unclear"),
        (-2.0, -1.0, -np.inf, "unclear", "unclear"),
    ],
)
def test_verdicts(
    descent: float, bend: float, balance: float, settled: str, running: str, unit: float
) -> None:
    """Of every sign, in any unit of the loss."""
    with jax.debug_nans(True):
        report = report_of(descent * unit, bend * unit)
        np.testing.assert_allclose(report.balance, balance, rtol=1e-6)
    assert report.verdict(True) == settled
    assert report.verdict(False) == running
    assert report._replace(grad_norm_unbiased=jnp.float32(0)).verdict(True) == "stationary point"
    assert report.verdict(True, balance_tolerance=10.0) != "invariant measure" or descent > 0


def test_what_is_not_a_number_is_unclear() -> None:
    for descent, bend in ((np.nan, 1.0), (1.0, np.nan), (np.nan, -1.0)):
        report = report_of(descent, bend)
        assert np.isnan(report.balance)
        assert report.verdict(True) == "unclear"


def test_other_optimizers_and_narrow_parameters() -> None:
    """The update of SGD given as a function is the learning rate; a Partial compiles once."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TRUE)
    traces = []

    def update(scale: jax.Array, gradient: Any) -> Any:
        traces.append(1)
        return jax.tree.map(lambda g: -scale.astype(g.dtype) * g, gradient)

    plain = stationarity_report(quadratic, params, iter(points(3)), 0.125)
    found = [
        stationarity_report(quadratic, params, points(3), update_fn=Partial(update, scale))
        for scale in (jnp.float32(0.125), jnp.float32(0.25))
    ]
    assert len(traces) == 2  # the first batch and the next ones
    for a, b in zip(plain, found[0], strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(found[1].descent, 2 * plain.descent, rtol=1e-5)
    np.testing.assert_allclose(found[1].bend, 4 * plain.bend, rtol=1e-5)


def test_batches_are_batches() -> None:
    report = stationarity_report(quadratic, TRUE, points(3), 0.1)
    found = stationarity_report(quadratic, TRUE, Batches(points(3)), 0.1)
    np.testing.assert_array_equal(jax.tree.leaves(found), jax.tree.leaves(report))


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (points(1), {"learning_rate": 0.1}, "batches must hold two or more, got 1"),
        ([], {"learning_rate": 0.1}, "batches must hold two or more, got 0"),
        (points(2), {}, "give either learning_rate, for SGD, or update_fn"),
        (points(2), {"learning_rate": 0.1, "update_fn": abs}, "give either learning_rate"),
        (points(2), {"learning_rate": 0.0}, "learning_rate must be a number > 0"),
    ],
)
def test_errors(batches: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stationarity_report(quadratic, TRUE, batches, **options)
