"""The learning-rate range test: what it runs, where it stops, what it suggests and writes."""

from __future__ import annotations

import csv
import math
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax import adam, lr_range_test
from adamw_jax.schedules import _suggestions as suggestions

pytestmark = pytest.mark.quick


def descend(w, learning_rate, batch):
    """Gradient descent on the sum of squares, stable for learning rates below 1."""
    return w - learning_rate * 2 * w, jnp.sum(w**2)


def replay(losses, **options):
    """A range test of a step that returns the given losses in turn."""
    values = [float(loss) for loss in losses]
    return lr_range_test(
        lambda index, rate, batch: (index + 1, values[index]),
        0,
        [None],
        num_steps=len(values),
        **options,
    )


def test_runs_the_step_at_growing_rates(x64):
    found = lr_range_test(jax.jit(descend), jnp.ones(3), [None], 1e-3, 10.0, 60)
    rates = 1e-3 * (10.0 / 1e-3) ** (np.arange(60) / 60)
    np.testing.assert_allclose(found.learning_rates, rates[: len(found.losses)], rtol=1e-12)
    w, losses, average, smoothed = 1.0, [], 0.0, []
    for step, rate in enumerate(found.learning_rates):
        losses.append(3 * w * w)
        w -= 2 * rate * w
        average = 0.98 * average + 0.02 * losses[-1]
        smoothed.append(average / (1 - 0.98 ** (step + 1)))
    np.testing.assert_allclose(found.losses, losses, rtol=1e-9)
    np.testing.assert_allclose(found.smoothed, smoothed, rtol=1e-9)
    # It ends at the first smoothed loss above four times the least so far.
    blown = [s > 4 * min(smoothed[:i], default=math.inf) for i, s in enumerate(smoothed)]
    assert found.stopped
    assert found.stopped_at == blown.index(True) == len(losses) - 1
    assert set(found.suggestions) == {"valley", "steep", "minimum", "slide"}
    assert all(1e-3 < found.suggestions[rule] < 1.0 for rule in ("valley", "steep", "minimum"))


def test_linear_spacing_starts_at_zero():
    found = lr_range_test(descend, jnp.ones(2), [None], 1e-3, 0.5, 50, "linear")
    np.testing.assert_allclose(found.learning_rates, np.arange(50) * 0.01, rtol=1e-12)
    assert found.stopped_at is None
    assert not found.stopped
    assert found.suggestions["valley"] > 0


def test_a_jitted_step_compiles_once_and_batches_go_round():
    traces, seen = [], []

    @jax.jit
    def step(state, learning_rate, batch):
        traces.append(learning_rate.dtype)
        return state + batch, jnp.sum(state) * 0 + 1.0 + learning_rate

    def recorded(state, learning_rate, batch):
        seen.append(float(batch))
        return step(state, learning_rate, batch)

    generator = (jnp.asarray(value, jnp.float32) for value in (1.0, 2.0, 3.0))
    lr_range_test(recorded, jnp.zeros(()), generator, end=1e-2, num_steps=7)
    assert traces == [jnp.float32]
    assert seen == [1, 2, 3, 1, 2, 3, 1]


def test_state_is_untouched_by_donation_and_by_writing():
    donated = jax.jit(descend, donate_argnums=0)
    state = jnp.ones(3)
    lr_range_test(donated, state, [None], num_steps=10)
    assert not state.is_deleted()
    np.testing.assert_array_equal(state, 1.0)

    def write(state, learning_rate, batch):
        state["w"] -= float(learning_rate) * 2 * state["w"]
        return state, float(np.sum(state["w"] ** 2))

    state = {"w": np.ones(3), "key": jax.random.key(0), "name": "written"}
    found = lr_range_test(write, state, [None], start=1e-2, num_steps=10)
    assert found.losses[3] < found.losses[0]
    np.testing.assert_array_equal(state["w"], 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_stops_at_a_loss_that_is_not_finite(bad):
    for at in (0, 5):
        losses = [1.0] * 10
        losses[at] = bad
        found = replay(losses)
        assert found.stopped_at == at
        assert len(found.losses) == len(found.learning_rates) == at + 1


def test_best_is_recorded_after_some_steps():
    losses = [0.1] + [1.0] * 60
    assert replay(losses, smoothing=0.0).stopped_at == 1
    assert replay(losses, smoothing=0.0, best_after=1).stopped_at is None
    assert replay([0.1, 0.1, 1.0], smoothing=0.0, best_after=1).stopped_at == 2
    # 0.7 looks at its best from the twelfth batch on, and compares from the one after.
    losses = [1.0] * 11 + [0.1, 1.0]
    assert replay(losses, smoothing=0.0, best_after=11).stopped_at == 12
    assert replay([0.1] * 11 + [1.0] * 5, smoothing=0.0, best_after=11).stopped_at is None


def test_stop_factor():
    losses = [1.0, 2.9, 3.1]
    assert replay(losses, smoothing=0.0, stop_factor=3).stopped_at == 2
    assert replay(losses, smoothing=0.0, stop_factor=2).stopped_at == 1
    assert replay([1.0, 1e30], smoothing=0.0, stop_factor=math.inf).stopped_at is None


def test_a_loss_below_zero_may_fall_and_must_not_explode():
    falling = np.linspace(-0.5, -3.0, 30)
    assert replay(falling, smoothing=0.0).stopped_at is None
    assert replay([-1.0, 1.9, 2.1], smoothing=0.0).stopped_at == 2


def test_a_short_run_suggests_what_it_can():
    assert replay([1.0] * 6).suggestions == {}
    assert replay([1.0, 2.0, math.nan]).suggestions == {}
    short = replay(np.linspace(3, 1, 20)).suggestions
    assert set(short) == {"valley", "steep", "minimum"}
    assert set(replay(np.linspace(3, 1, 40)).suggestions) == {*short, "slide"}


# Suggestions.

RATES = np.geomspace(1e-6, 10, 90)
DECADES = np.log10(RATES)


def test_rules_on_a_curve_with_known_answers():
    # Flat, falling between 1e-4 and 1e-2 with its steepest part at 1e-3, least at 0.1, then rising.
    losses = 2 - np.tanh(2 * (DECADES + 3)) + np.exp(6 * (DECADES - 0.2))
    losses -= 0.05 * np.clip(DECADES + 1.5, 0, 0.5)
    assert suggestions.steep(RATES, losses) == pytest.approx(1e-3, rel=0.25)
    least = RATES[np.argmin(losses)]
    assert suggestions.minimum(RATES, losses) == pytest.approx(least / 10)
    run = RATES[: np.argmin(losses) + 1]
    # A third and a sixth of the run, each rounded down, from the point before its first.
    middle = np.searchsorted(RATES, suggestions.valley(RATES, losses))
    assert middle == len(run) // 3 + len(run) // 6 - 1


def test_valley_of_the_longest_run():
    # Two falls of 10 and 50 points, the second starting higher than the first ended.
    losses = np.concatenate([np.linspace(1.0, 0.9, 10), np.linspace(5.0, 2.0, 50), [9.0] * 30])
    found = np.searchsorted(RATES, suggestions.valley(RATES, losses))
    assert 25 <= found <= 40


def test_valley_of_a_loss_that_never_falls_is_the_least_rate():
    assert suggestions.valley(RATES, np.arange(90.0)) == RATES[0]
    assert suggestions.valley(RATES, np.ones(90)) == RATES[0]


def test_slide_by_its_definition():
    losses = np.where(DECADES < 0, 1.0, 1 + 3 * np.maximum(DECADES, 0) ** 2)
    slopes = np.gradient(losses)
    right = len(losses) - 1
    while right >= 15 and abs(slopes[right] - slopes[right - 15]) > 0.005:
        right -= 1
    assert 15 < right < len(losses) - 1
    # The last position that still differed, fifteen points to the left.
    assert suggestions.slide(RATES, losses) == RATES[right + 1 - 15]


def test_slide_passes_slopes_that_differ_by_more_than_its_threshold():
    steps = np.arange(90.0)
    # The slope of c i^2 changes by 30 c over fifteen points, everywhere.
    assert suggestions.slide(RATES, 0.0070 / 30 * steps**2) == RATES[0]
    assert suggestions.slide(RATES, 0.0045 / 30 * steps**2) == RATES[-16]


def test_steep_measures_over_the_logarithm_of_the_rate():
    rates = np.asarray([1e-5, 1e-3, 1.1e-3, 1e-1, 2e-1])
    # Per point and per unit of rate the steepest falls are elsewhere.
    losses = np.asarray([5.0, 3.0, 2.5, 2.4, 2.35])
    assert suggestions.steep(rates, losses) == 1e-3


@hypothesis.given(
    losses=st.lists(st.integers(-50, 50), min_size=20, max_size=60),
    factor=st.sampled_from([0.25, 0.5, 2.0, 8.0]),
    offset=st.integers(-100, 100),
)
def test_rules_do_not_see_the_unit_of_the_loss(losses, factor, offset):
    curve = np.asarray(losses, float)
    rates = RATES[: len(curve)]
    for rule in (suggestions.valley, suggestions.minimum):
        assert rule(rates, curve) == rule(rates, factor * curve + offset)
    slopes = np.diff(curve) / np.diff(np.log(rates))
    assert suggestions.steep(rates, curve) == rates[np.argmin(slopes)]
    assert suggestions.valley(rates, curve) in rates


# On a network.


def test_suggestions_train_a_network_on_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    inputs = jnp.asarray(digits.data / 16.0, jnp.float32)
    labels = jnp.asarray(digits.target, jnp.int32)
    batches = [(inputs[i : i + 128], labels[i : i + 128]) for i in range(0, 1536, 128)]
    first, second = jax.random.split(jax.random.key(0))
    params = {
        "hidden": jax.random.normal(first, (64, 32), jnp.float32) * 0.1,
        "out": jax.random.normal(second, (32, 10), jnp.float32) * 0.1,
    }

    def loss_of(params, batch):
        inputs, labels = batch
        logits = jnp.tanh(inputs @ params["hidden"]) @ params["out"]
        chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen)

    @jax.jit
    def step(state, learning_rate, batch):
        params, inner = state
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, inner = adam(learning_rate).update(gradient, inner, params)
        return (jax.tree.map(jnp.add, params, updates), inner), loss

    def train(rate):
        state = params, adam(1e-3).init(params)
        for index in range(48):
            state, loss = step(state, jnp.asarray(rate, jnp.float32), batches[index % 12])
        return float(loss)

    found = lr_range_test(step, (params, adam(1e-3).init(params)), batches, 1e-6, 1e3)
    assert found.stopped
    assert found.losses[0] == pytest.approx(math.log(10), rel=0.1)
    for rule in ("valley", "steep", "minimum"):
        assert train(found.suggestions[rule]) < 0.5 * found.losses[0], rule
    assert train(found.learning_rates[-1]) > found.losses[0]


# What it writes and draws.


def test_csv_reads_back(tmp_path):
    found = lr_range_test(descend, jnp.ones(2), [None], num_steps=30)
    found.to_csv(tmp_path / "range.csv")
    with open(tmp_path / "range.csv", newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    assert header == ["learning_rate", "loss", "smoothed_loss"]
    expected = np.stack([found.learning_rates, found.losses, found.smoothed], axis=1)
    np.testing.assert_array_equal(np.asarray(rows, float), expected)


@pytest.mark.parametrize("mode", ["exponential", "linear"])
def test_plot_draws_the_curve_and_the_suggestions(mode):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    found = lr_range_test(descend, jnp.ones(2), [None], 1e-3, 0.9, 60, mode)
    assert found.plot(axes) is axes
    curve, *marks = axes.get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), found.smoothed)
    drawn = {mark.get_label().split(":")[0]: mark.get_xdata()[0] for mark in marks}
    assert drawn == found.suggestions
    assert axes.get_xscale() == ("log" if mode == "exponential" else "linear")
    figure.canvas.draw()


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="needs matplotlib: pip install"):
        replay([1.0] * 3).plot()


# What is refused.


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("start must be a number > 0", {"start": 0.0}),
        ("end must be a number > 0.1, got 0.1", {"start": 0.1, "end": 0.1}),
        ("end must be .* got nan", {"end": math.nan}),
        ("num_steps must be a whole number", {"num_steps": 0}),
        ("mode must be one of", {"mode": "log"}),
        ("smoothing must be a number >= 0 and < 1", {"smoothing": 1.0}),
        ("stop_factor must be a number > 1", {"stop_factor": 1.0}),
        ("best_after must be a number >= 0", {"best_after": -1}),
    ],
)
def test_options_out_of_range(message, options):
    with pytest.raises(ValueError, match=message):
        lr_range_test(descend, jnp.ones(2), [None], **options)


def test_no_batches():
    with pytest.raises(ValueError, match="batches is empty"):
        lr_range_test(descend, jnp.ones(2), [])


@pytest.mark.parametrize(
    "result",
    [
        None,
        1.0,
        (1.0,),
        (1.0, 2.0, 3.0),
        (1.0, {"loss": 1.0}),
        (1.0, jnp.ones(2)),
        (1.0, None),
    ],
)
def test_a_step_that_returns_something_else(result):
    with pytest.raises(TypeError, match=r"step_fn must return \(state, loss\) with a scalar loss"):
        lr_range_test(lambda *_: result, 0, [None])


def test_no_suggestion_is_past_the_turn_of_the_loss():
    """A loss that turns early and rises evenly, on which slide sees an even slope far too late."""
    steps = np.arange(90)
    losses = 1 + 0.03 * np.maximum(20 - steps, 0) + 0.001 * np.maximum(steps - 20, 0) ** 1.5
    turn = RATES[np.argmin(losses)]
    assert suggestions.slide(RATES, losses) > turn
    found = suggestions.suggest(RATES, losses)
    assert set(found) == {"valley", "steep", "minimum"}
    assert max(found.values()) <= turn
