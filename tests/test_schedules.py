"""Schedules: where they peak and end, that they compile once, and what they refuse."""

from __future__ import annotations

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import Phase, adamw, one_cycle, phases, theory_decay, warm_restarts
from adamw_jax.schedules import inverse_root, wsd
from adamw_jax.schedules._presets import PRESETS

pytestmark = pytest.mark.quick

# Presets without a lead of the momentum, and those whose momentum runs one batch ahead.
TOGETHER = ("fastai_v1", "fastai_v2", "pytorch", "article", "article_plateau", "optax_linear")
AHEAD = ("fastai_07", "slanted_triangle")


def series(schedule, steps: int) -> np.ndarray:
    """The values at counts 0 to steps - 1."""
    # One length for all calls, so that no operation compiles twice.
    return np.asarray(schedule(jnp.arange(1300, dtype=jnp.int32)))[:steps]


def falls(values: np.ndarray) -> bool:
    """Whether values never rise, up to rounding."""
    return bool(np.all(np.diff(values) <= 1e-6 * np.abs(values[:-1]) + 1e-12))


# One cycle.


def peak_of(preset: str, steps: int) -> tuple[float, float]:
    """First and last real-valued step of the peak at the default options."""
    if preset == "pytorch":
        return 0.3 * steps - 1, 0.3 * steps - 1
    if preset == "article":
        return steps * (1 - 0.075) / 2, steps * (1 - 0.075) / 2
    if preset == "article_plateau":
        return steps / 12, steps / 2
    whole = {
        "fastai_v1": int(0.3 * steps),
        "fastai_v2": 0.25 * steps,
        "fastai_07": int(steps * (1 - 0.1) / 2),
        "slanted_triangle": steps // 10,
        "optax_linear": int(0.3 * steps),
    }
    return whole[preset], whole[preset]


@hypothesis.given(
    preset=st.sampled_from(sorted(PRESETS)),
    steps=st.integers(20, 400),
    top=st.floats(1e-5, 10.0),
    low=st.floats(0.0, 0.9),
)
def test_one_cycle_rises_to_its_peak_and_falls(preset, steps, top, low):
    cycle = one_cycle(top, steps, preset, momentum=(0.95, low))
    rates, momenta = series(cycle.learning_rate, steps), series(cycle.momentum, steps)
    begin, end = peak_of(preset, steps)
    rising, falling = rates[: math.floor(begin) + 1], rates[math.ceil(end - 1e-9) :]
    assert falls(-rising)
    assert falls(falling)
    assert rates.max() <= top * (1 + 1e-6)
    # The real-valued peak lies between two steps, so that one of them is near the top.
    assert rates.max() >= 0.85 * top
    assert begin - 1 <= np.argmax(rates) <= end + 1
    assert np.all((momenta >= low - 1e-6) & (momenta <= 0.95 + 1e-6))


@hypothesis.given(preset=st.sampled_from(TOGETHER), steps=st.integers(20, 400))
def test_momentum_moves_against_the_learning_rate(preset, steps):
    cycle = one_cycle(1.0, steps, preset)
    rates, momenta = series(cycle.learning_rate, steps), series(cycle.momentum, steps)
    opposite = np.sign(np.diff(rates)) * np.sign(np.diff(momenta))
    # A step may hold the turn, at which one of the two can already go the other way.
    assert np.sum(opposite > 0) <= 2
    assert np.corrcoef(rates, momenta)[0, 1] < -0.9


@pytest.mark.parametrize("preset", AHEAD)
def test_momentum_one_batch_ahead(preset, x64):
    cycle = one_cycle(1.0, 100, preset, div=1e6)
    first, last = (45, 90) if preset == "fastai_07" else (10, 100)
    expected = np.interp(np.arange(100) + 1, [0, first, last], [0.95, 0.85, 0.95])
    np.testing.assert_allclose(series(cycle.momentum, 100), expected, rtol=1e-12)
    # Without the lead the momentum would mirror the learning rate.
    ramp = series(cycle.learning_rate, first)
    np.testing.assert_allclose(0.95 - 0.1 * ramp[1:], expected[: first - 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("preset", "options", "first", "last", "counts"),
    [
        ("fastai_v1", {}, 1 / 25, 1 / 25e4, 1200),
        ("fastai_v1", {"div": 5, "final_div": 50}, 1 / 5, 1 / 50, 1200),
        ("fastai_v2", {}, 1 / 25, 1 / 1e5, 1200),
        ("pytorch", {}, 1 / 25, 1 / 25e4, 1199),
        ("pytorch", {"three_phase": True, "div": 4}, 1 / 4, 1 / 4e4, 1199),
        ("pytorch", {"shape": "linear", "final_div": 10}, 1 / 25, 1 / 250, 1199),
        ("article", {}, 1 / 10, 1 / 1000, 1200),
        ("article", {"div": 20, "linear_end": False}, 1 / 20, 0, 1200),
        ("article_plateau", {}, 1 / 10, 0, 1200),
        ("article_plateau", {"linear_end": True}, 1 / 10, 1 / 1000, 1200),
        ("fastai_07", {}, 1 / 10, 1 / 1000, 1200),
        ("slanted_triangle", {}, 1 / 32, 1 / 32, 1200),
        ("optax_linear", {}, 1 / 25, 1 / 25e4, 1200),
    ],
)
def test_ends_of_the_cycle(preset, options, first, last, counts, x64):
    cycle = one_cycle(3.0, 1200, preset, **options)
    found = [float(cycle.learning_rate(count)) / 3.0 for count in (0, counts, counts + 1, 10**6)]
    np.testing.assert_allclose(found, [first, last, last, last], rtol=1e-12, atol=1e-30)


@hypothesis.given(
    top=st.floats(1e-4, 1.0),
    steps=st.integers(10, 300),
    pct=st.floats(0.15, 0.8),
    div=st.floats(1.0, 100.0),
    final=st.floats(1.0, 1e5),
)
def test_equal_to_optax(top, steps, pct, div, final):
    with jax.enable_x64(True):
        # optax's own need promotion, and a float count for double precision.
        counts = jnp.arange(400, dtype=jnp.float64)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            cosine = jax.vmap(optax.cosine_onecycle_schedule(steps, top, pct, div, final))(counts)
            linear = optax.linear_onecycle_schedule(steps, top, pct, 0.9, div, final)
            linear = jax.vmap(linear)(counts)
        # optax counts final_div_factor from the start, this library from the peak.
        ours = one_cycle(top, steps, pct_start=pct, div=div, final_div=div * final)
        np.testing.assert_allclose(series(ours.learning_rate, 400), cosine, rtol=1e-9, atol=1e-15)
        ours = one_cycle(
            top, steps, "optax_linear", pct_start=pct, pct_final=0.9, div=div, final_div=final
        )
        np.testing.assert_allclose(series(ours.learning_rate, 400), linear, rtol=1e-9, atol=1e-15)


def test_pytorch_form_stepped_by_its_definition(x64):
    steps, top = 50, 0.1
    cycle = one_cycle(top, steps, "pytorch", three_phase=True, pct_start=0.35)
    peak = 0.35 * steps - 1
    knots = [(0, top / 25), (peak, top), (2 * peak, top / 25), (steps - 1, top / 25 / 1e4)]
    expected = []
    for step in range(steps):
        (a, start), (b, end) = next(
            pair for pair in itertools.pairwise(knots) if step <= pair[1][0]
        )
        expected.append(end + (start - end) / 2 * (1 + math.cos(math.pi * (step - a) / (b - a))))
    np.testing.assert_allclose(series(cycle.learning_rate, steps), expected, rtol=1e-9)
    tail = series(cycle.momentum, steps)[math.ceil(2 * peak) :]
    np.testing.assert_allclose(tail, 0.95, rtol=1e-12)


def test_article_form_is_its_phases(x64):
    cycle = one_cycle(3e-3, 30 * 4, "article", pct_end=0.075)
    plan = phases(
        [
            Phase(epochs=13.875, learning_rate=(3e-4, 3e-3), momentum=(0.95, 0.85)),
            Phase(epochs=13.875, learning_rate=(3e-3, 3e-4), momentum=(0.85, 0.95)),
            Phase(epochs=2.25, learning_rate=(3e-4, 3e-6), momentum=0.95),
        ],
        steps_per_epoch=4,
    )
    assert plan.total_steps == cycle.total_steps == 120
    for name in ("learning_rate", "momentum"):
        np.testing.assert_allclose(
            series(getattr(cycle, name), 130), series(getattr(plan, name), 130), rtol=1e-12
        )


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_momentum_ends_where_it_is_told(preset):
    cycle = one_cycle(1.0, 60, preset, momentum=(0.95, 0.8, 0.9))
    two = one_cycle(1.0, 60, preset, momentum=(0.95, 0.8))
    momenta, halfway = series(cycle.momentum, 61), np.argmin(series(cycle.momentum, 61))
    assert momenta[0] == pytest.approx(0.95, abs=0.03)
    assert momenta[-1] == pytest.approx(0.9)
    np.testing.assert_array_equal(momenta[:halfway], series(two.momentum, 61)[:halfway])
    assert series(two.momentum, 61)[-1] == pytest.approx(0.95)
    three = one_cycle(1.0, 60, preset, momentum=(0.95, 0.8, 0.95))
    np.testing.assert_array_equal(series(three.momentum, 61), series(two.momentum, 61))


def test_fastai_v2_by_its_own_formula():
    """``combined_cos(pct, *moms)``: half a cosine to each of the momenta."""
    cycle = one_cycle(1.0, 80, "fastai_v2", momentum=(0.95, 0.85, 0.9))

    def formula(position):
        ends = (0.95, 0.85) if position < 0.25 else (0.85, 0.9)
        part = position / 0.25 if position < 0.25 else (position - 0.25) / 0.75
        return ends[0] + (1 + math.cos(math.pi * (1 - part))) * (ends[1] - ends[0]) / 2

    expected = [formula(t / 80) for t in range(80)]
    np.testing.assert_allclose(series(cycle.momentum, 80), expected, rtol=1e-5)


def test_no_momentum_where_none_is_wanted():
    assert one_cycle(0.1, 50, momentum=None).momentum is None


# Precision, dtypes, transformations.

SCHEDULES = {
    **{f"one_cycle {name}": one_cycle(1e-2, 100_000, name) for name in PRESETS},
    "one_cycle three phases": one_cycle(1e-2, 100_000, "pytorch", three_phase=True),
    "wsd": wsd(1e-2, 100_000, warmup_steps=1000),
    "wsd cosine": wsd(1e-2, 100_000, warmup_steps=0, shape="cosine", min_learning_rate=1e-5),
    "inverse root": inverse_root(1e-2, 30_000),
    "restarts": warm_restarts(0.1, 50_000, 1),
    "restarts 2": warm_restarts(0.1, 1000.0, 2, min_learning_rate=1e-6),
    "phases": phases(
        [
            Phase(steps=33_333.3, learning_rate=(1e-4, 1.0), shape="exponential"),
            Phase(steps=33_333.3, learning_rate=(1.0, 0.0), shape="polynomial", power=2.0),
        ]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_float32_keeps_its_digits_to_the_end(name):
    schedule = SCHEDULES[name].learning_rate
    counts = np.unique(np.geomspace(1, 100_000, 60).astype(np.int32))
    counts = np.concatenate([[0], counts, 100_000 - counts, 50_000 - counts[counts < 50_000]])
    counts = jnp.asarray(counts, jnp.int32)
    single = np.asarray(schedule(counts), np.float64)
    with jax.enable_x64(True):
        double = np.asarray(schedule(counts))
    np.testing.assert_allclose(single, double, rtol=3e-6, atol=1e-30)


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_trace_and_the_default_dtype(name):
    schedule = SCHEDULES[name].learning_rate
    traces = []

    @jax.jit
    def value(count):
        traces.append(1)
        return schedule(count)

    values = [value(jnp.asarray(count, jnp.int32)) for count in (0, 7, 5000, 2**31 - 1)]
    assert len(traces) == 1
    for jitted, count in zip(values, (0, 7, 5000, 2**31 - 1), strict=True):
        plain = schedule(count)
        for scalar in (jitted, plain):
            assert scalar.shape == ()
            assert scalar.dtype == jnp.float32
            assert not scalar.weak_type
        np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-30)
    with jax.enable_x64(True):
        assert schedule(3).dtype == jnp.float64
        assert jax.jit(schedule)(jnp.asarray(3, jnp.int64)).dtype == jnp.float64


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", SCHEDULES)
def test_array_vmap_and_scan_agree_with_scalars(name):
    schedule = SCHEDULES[name].learning_rate
    counts = jnp.asarray([0, 1, 29_999, 30_000, 99_999, 123_456], jnp.int32)
    scalars = np.asarray([schedule(count) for count in counts])
    _, scanned = jax.lax.scan(lambda carry, count: (carry, schedule(count)), 0, counts)
    for found in (schedule(counts), jax.vmap(schedule)(counts), scanned):
        np.testing.assert_allclose(found, scalars, rtol=1e-5, atol=1e-30)


def test_equal_cycles_are_one_static_argument():
    assert one_cycle(0.1, 50) == one_cycle(0.1, 50)
    assert hash(one_cycle(0.1, 50)) == hash(one_cycle(0.1, 50))
    assert one_cycle(0.1, 50) != one_cycle(0.1, 51)
    assert inverse_root(0.1, 50) == inverse_root(0.1, 50) != inverse_root(0.1, 51)


# Phases.


def stepped(plan: list[Phase], steps_per_epoch: int, name: str) -> list[float]:
    """The values a trainer uses that goes through the phases batch by batch."""
    values, batch, ending = [], 0, 0.0
    for phase in plan:
        start, end = getattr(phase, name)
        length = phase.epochs * steps_per_epoch
        ending += length
        inside = 0
        while batch < ending - 1e-9:
            share = inside / length
            values.append(
                {
                    "linear": start + share * (end - start),
                    "cosine": end + (start - end) / 2 * (1 + math.cos(math.pi * share)),
                    "exponential": start * (end / start) ** share,
                    "polynomial": end + (start - end) * (1 - share) ** phase.power,
                }[phase.shape if name == "learning_rate" else phase.momentum_shape]
            )
            inside, batch = inside + 1, batch + 1
    return values


RATE, BETA = st.floats(1e-4, 1.0), st.floats(0.1, 0.95)
SHAPE = st.sampled_from(["linear", "cosine", "exponential", "polynomial"])


@hypothesis.given(
    plan=st.lists(
        st.builds(
            Phase,
            epochs=st.floats(0.3, 4.0),
            learning_rate=st.tuples(RATE, RATE),
            momentum=st.tuples(BETA, BETA),
            shape=SHAPE,
            momentum_shape=SHAPE,
            power=st.floats(0.5, 3.0),
        ),
        min_size=1,
        max_size=4,
    ),
    steps_per_epoch=st.integers(1, 9),
)
def test_phases_follow_a_trainer_batch_by_batch(plan, steps_per_epoch):
    with jax.enable_x64(True):
        made = phases(plan, steps_per_epoch)
        for name in ("learning_rate", "momentum"):
            expected = stepped(plan, steps_per_epoch, name)
            assert len(expected) == made.total_steps
            np.testing.assert_allclose(
                series(getattr(made, name), made.total_steps), expected, rtol=1e-9
            )


def test_phases_give_what_they_set():
    made = phases(
        [
            Phase(steps=10, learning_rate=0.1, b2=(0.9, 0.99), weight_decay=0.1),
            Phase(steps=10, learning_rate=0.3, b2=0.99, weight_decay=0.2, decay_form="l2"),
        ]
    )
    assert made.momentum is None
    assert made.max_learning_rate == 0.3
    counts = (0, 9, 10, 19, 50)
    assert made.b2 is not None
    np.testing.assert_allclose([made.b2(c) for c in counts], [0.9, 0.981, 0.99, 0.99, 0.99], 1e-6)
    assert made.weight_decay is not None
    np.testing.assert_allclose([made.weight_decay(c) for c in counts], [0.1, 0.1, 0, 0, 0], 1e-6)
    assert made.l2 is not None
    np.testing.assert_allclose([made.l2(c) for c in counts], [0, 0, 0.2, 0.2, 0.2], 1e-6)


def test_phases_of_one_decay_form_leave_the_other_alone():
    l2 = phases([Phase(steps=5, weight_decay=0.1, decay_form="l2")])
    assert l2.weight_decay is None
    assert float(l2.l2(0)) == pytest.approx(0.1)
    decoupled = phases([Phase(steps=5, weight_decay=0.1), Phase(steps=5, weight_decay=0.0)])
    assert decoupled.l2 is None
    assert [float(decoupled.weight_decay(c)) for c in (0, 5)] == [pytest.approx(0.1), 0.0]
    # An explicit zero is a decision: it must take the place of the optimizer's default.
    assert float(phases([Phase(steps=5, weight_decay=0.0)]).weight_decay(0)) == 0.0
    assert phases([Phase(steps=5)]).weight_decay is None


# Warm restarts.


@hypothesis.given(
    first=st.integers(1, 40),
    factor=st.integers(1, 4),
    floor=st.floats(0.0, 0.09),
    steps=st.integers(1, 300),
)
def test_warm_restarts_by_their_definition(first, factor, floor, steps):
    with jax.enable_x64(True):
        made = warm_restarts(0.1, first, factor, min_learning_rate=floor, normalized_decay=0.05)
        rates, lengths, since, length = [], [], 0, first
        for _ in range(steps):
            rates.append(floor + (0.1 - floor) * (1 + math.cos(math.pi * since / length)) / 2)
            lengths.append(length)
            since += 1
            if since == length:
                since, length = 0, length * factor
        np.testing.assert_allclose(series(made.learning_rate, steps), rates, rtol=1e-10)
        np.testing.assert_allclose(series(made.multiplier, steps), np.asarray(rates) / 0.1, 1e-10)
        assert made.weight_decay is not None
        expected = 0.05 / np.sqrt(lengths)
        np.testing.assert_allclose(series(made.weight_decay, steps), expected, rtol=1e-12)
        assert made.base_learning_rate == 0.1


def test_restarts_count_epochs_in_steps():
    steps = warm_restarts(0.1, 30, normalized_decay=0.1)
    epochs = warm_restarts(0.1, 1.5, steps_per_epoch=20, normalized_decay=0.1)
    for name in ("learning_rate", "weight_decay"):
        np.testing.assert_array_equal(
            series(getattr(steps, name), 100), series(getattr(epochs, name), 100)
        )


def test_restarts_are_exact_at_any_count_an_int32_holds():
    made = warm_restarts(1.0, 1000, 2)
    for period in range(22):
        begin = 1000 * (2**period - 1)
        if begin < 2**31:
            assert float(made.learning_rate(begin)) == 1.0
        if 0 < begin < 2**31:
            # The last step of a period of T steps is at sin^2(pi / 2T).
            last = math.sin(math.pi / 2 / (1000 * 2 ** (period - 1))) ** 2
            assert float(made.learning_rate(begin - 1)) == pytest.approx(last, rel=1e-5)
    assert 0 < float(made.learning_rate(2**31 - 1)) < 1


def test_restarts_of_the_authors(x64):
    made = warm_restarts(
        1.0, 10, steps_per_epoch=10, normalized_decay=1.0, convention="authors", total_steps=320
    )
    eta = series(made.multiplier, 320)
    # It advances before the first batch, reaches 0 within the period, and restarts with one batch
    # of T_cur = 0.
    assert eta[0] == pytest.approx((1 + math.cos(math.pi / 100)) / 2, rel=1e-12)
    assert eta[:105].min() < 1e-20
    (restarts,) = np.nonzero(eta == 1.0)
    assert len(restarts) == 2
    assert 100 <= restarts[0] <= 101
    assert 300 <= restarts[1] <= 302
    updates = 1 / series(made.weight_decay, 320) ** 2
    np.testing.assert_allclose(updates[: restarts[0]], 100)
    np.testing.assert_allclose(updates[restarts[0] : restarts[1]], 200)
    assert float(made.multiplier(10**6)) == eta[-1]


def test_restarts_of_fastai_07(x64):
    made = warm_restarts(0.1, 40, 2, convention="fastai07", total_steps=120)
    paper = warm_restarts(0.1, 40, 2)
    rates = series(made.learning_rate, 120)
    np.testing.assert_allclose(rates[:2], 0.001, rtol=1e-12)
    np.testing.assert_allclose(rates[2:], series(paper.learning_rate, 120)[2:], rtol=1e-10)


# Warm-up, and what comes after it.


def test_runs_of_any_length_are_one_until_they_cool_down():
    short, long = (wsd(0.1, steps, warmup_steps=50) for steps in (500, 1000))
    np.testing.assert_array_equal(series(short.learning_rate, 401), series(long.learning_rate, 401))
    assert (short.total_steps, short.max_learning_rate) == (500, 0.1)
    np.testing.assert_allclose(short.learning_rate(425), 0.05, rtol=1e-6)  # 1 - sqrt(1 / 4)
    assert short.learning_rate(500) == 0


def test_phases_that_have_no_step_are_left_out():
    plain = series(wsd(0.1, 50, warmup_steps=0, pct_end=0.0).learning_rate, 60)
    np.testing.assert_array_equal(plain, np.full(60, np.float32(0.1)))
    edges = series(wsd(0.1, 50, warmup_steps=40, div=1.0).learning_rate, 51)
    np.testing.assert_array_equal(edges[:41], np.full(41, np.float32(0.1)))


def test_inverse_root_of_t5_and_of_a_quarter():
    t5 = series(inverse_root(0.1, 100, div=1.0).learning_rate, 1300)
    np.testing.assert_allclose(t5, 1 / np.sqrt(np.maximum(np.arange(1300), 100)), rtol=1e-6)
    late = inverse_root(0.1, 100).learning_rate(jnp.int32(2**31 - 1))
    np.testing.assert_allclose(late, 0.1 * math.sqrt(100 / 2**31), rtol=1e-6)


def test_the_peak_is_lr_0_of_the_decay_that_needs_it():
    for plan in (wsd(0.1, 50, warmup_steps=5), inverse_root(0.1, 5)):
        adamw(plan, decay="corrected").init(jnp.zeros(2))


# What is refused.


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "preset must be one of", lambda: one_cycle(0.1, 50, "fastai")),
        (TypeError, "no option pct_final; it has div", lambda: one_cycle(0.1, 50, pct_final=0.5)),
        (ValueError, "max_learning_rate must be a number > 0", lambda: one_cycle(0.0, 50)),
        (ValueError, r"learning_rate=one_cycle\(0.001, 50\)", lambda: one_cycle([1e-4, 1e-3], 50)),
        (ValueError, "max_learning_rate .* got nan", lambda: one_cycle(math.nan, 50)),
        (ValueError, "max_learning_rate .* got inf", lambda: one_cycle(math.inf, 50)),
        (ValueError, "max_learning_rate .* got <function", lambda: one_cycle(lambda c: 0.1, 50)),
        (ValueError, "total_steps must be a whole number", lambda: one_cycle(0.1, 0)),
        (ValueError, "total_steps .* got 10.5", lambda: one_cycle(0.1, 10.5)),
        (ValueError, "total_steps .* got True", lambda: one_cycle(0.1, True)),
        (ValueError, "total_steps .* got None", lambda: one_cycle(0.1, None)),
        (ValueError, r"from 1 to 2\*\*31 - 1", lambda: one_cycle(0.1, 2**31)),
        (
            ValueError,
            "pct_start must be a number > 0 and < 1",
            lambda: one_cycle(1, 9, pct_start=1),
        ),
        (ValueError, "div must be a number >= 1", lambda: one_cycle(0.1, 50, div=0.5)),
        (
            ValueError,
            "cut_div must be a whole number",
            lambda: one_cycle(0.1, 50, "slanted_triangle", cut_div=2.5),
        ),
        (ValueError, "shape must be one of", lambda: one_cycle(1, 9, "pytorch", shape="constant")),
        (
            ValueError,
            "three_phase must be True or False",
            lambda: one_cycle(0.1, 50, "pytorch", three_phase="yes"),
        ),
        (ValueError, "momentum must be .start, lowest", lambda: one_cycle(1, 9, momentum=0.9)),
        (ValueError, "lowest value second", lambda: one_cycle(0.1, 50, momentum=(0.85, 0.95))),
        (ValueError, "lowest value second", lambda: one_cycle(0.1, 50, momentum=(0.9, 0.85, 0.8))),
        (ValueError, "momentum must be a number", lambda: one_cycle(0.1, 50, momentum=(1.0, 0.9))),
        (ValueError, "total_steps=3 leaves no step", lambda: one_cycle(0.1, 3)),
        (ValueError, "leaves no step", lambda: one_cycle(0.1, 3, "pytorch")),
        (
            ValueError,
            "pct_start=0.6",
            lambda: one_cycle(0.1, 50, "pytorch", three_phase=True, pct_start=0.6),
        ),
        (
            ValueError,
            "pct_end=0.6",
            lambda: one_cycle(0.1, 50, "article_plateau", pct_start=0.5, pct_end=0.6),
        ),
        (ValueError, "cut_div=1", lambda: one_cycle(0.1, 50, "slanted_triangle", cut_div=1)),
        (ValueError, "leaves no step", lambda: one_cycle(0.1, 2, "fastai_07", pct_end=0.5)),
        (ValueError, "pct_final=0.2", lambda: one_cycle(0.1, 50, "optax_linear", pct_final=0.2)),
        (ValueError, "either steps or epochs", lambda: Phase()),
        (ValueError, "either steps or epochs", lambda: Phase(steps=1, epochs=1)),
        (ValueError, "steps must be a number > 0", lambda: Phase(steps=0)),
        (ValueError, "learning_rate must be a number >= 0", lambda: Phase(1, learning_rate=-0.1)),
        (ValueError, "learning_rate .* got None", lambda: Phase(1, learning_rate=(0.1, None))),
        (ValueError, "number or .start, end", lambda: Phase(1, learning_rate=(1, 2, 3))),
        (ValueError, "momentum must be .* < 1", lambda: Phase(1, momentum=1.5)),
        (ValueError, "b2 must be .* < 1", lambda: Phase(1, b2=(0.9, 1.0))),
        (ValueError, "weight_decay must be a number", lambda: Phase(1, weight_decay=(0.1, 0.2))),
        (ValueError, "decay_form must be one of", lambda: Phase(1, decay_form="L2")),
        (ValueError, "shape must be one of", lambda: Phase(1, shape="cos")),
        (ValueError, "shape='cosine' needs both ends", lambda: Phase(1, shape="cosine")),
        (
            ValueError,
            "start of an exponential ramp must be a number > 0",
            lambda: phases([Phase(1, learning_rate=(0.0, 1.0), shape="exponential")]),
        ),
        (ValueError, "power must be a number > 0", lambda: Phase(1, power=0)),
        (ValueError, "at least one Phase", lambda: phases([])),
        (TypeError, "list of Phase", lambda: phases([0.1])),
        (ValueError, "needs steps_per_epoch", lambda: phases([Phase(epochs=1)])),
        (ValueError, "steps_per_epoch must be", lambda: phases([Phase(epochs=1)], 0)),
        (
            ValueError,
            "momentum is set in some phases",
            lambda: phases([Phase(1, momentum=0.9), Phase(1)]),
        ),
        (
            ValueError,
            "weight_decay is set in some phases",
            lambda: phases([Phase(1, weight_decay=0.1), Phase(1)]),
        ),
        (ValueError, "learning_rate must be a number > 0", lambda: warm_restarts(-1, 10)),
        (ValueError, "first_period must be a number > 0", lambda: warm_restarts(0.1, 0)),
        (ValueError, "first_period must be a whole", lambda: warm_restarts(0.1, 1.5)),
        (
            ValueError,
            "first_period . steps_per_epoch must be a whole",
            lambda: warm_restarts(0.1, 0.3, steps_per_epoch=5),
        ),
        (ValueError, "multiplier must be a whole", lambda: warm_restarts(0.1, 10, 1.5)),
        (
            ValueError,
            "min_learning_rate must be a number >= 0 and < 0.1",
            lambda: warm_restarts(0.1, 10, min_learning_rate=0.2),
        ),
        (
            ValueError,
            "normalized_decay must be",
            lambda: warm_restarts(0.1, 10, normalized_decay=-1),
        ),
        (ValueError, "convention must be one of", lambda: warm_restarts(0.1, 9, convention="lua")),
        (
            ValueError,
            "convention='authors' needs total_steps",
            lambda: warm_restarts(0.1, 10, convention="authors"),
        ),
        (
            ValueError,
            "first_period must be a whole",
            lambda: warm_restarts(
                0.1, 1.5, steps_per_epoch=4, convention="authors", total_steps=10
            ),
        ),
        (
            ValueError,
            "first_period >= 2",
            lambda: warm_restarts(0.1, 1, convention="fastai07", total_steps=10),
        ),
        (
            ValueError,
            "warmup_steps=45 and the cool-down of 10 steps are longer than total_steps=50",
            lambda: wsd(0.1, 50, warmup_steps=45),
        ),
        (ValueError, "warmup_steps must be a whole", lambda: wsd(0.1, 50, warmup_steps=-1)),
        (ValueError, "pct_end must be", lambda: wsd(0.1, 50, warmup_steps=1, pct_end=1.0)),
        (ValueError, "shape must be one of", lambda: wsd(1, 9, warmup_steps=1, shape="sqrt")),
        (ValueError, "div must be", lambda: inverse_root(0.1, 50, div=0.5)),
        (ValueError, "warmup_steps must be a whole", lambda: inverse_root(0.1, 0)),
        (ValueError, "b1 must be", lambda: theory_decay(1.0, 0.5)),
        (ValueError, "decay must be", lambda: theory_decay(0.9, 1.0)),
    ],
)
def test_refused(error, message, make):
    with pytest.raises(error, match=message):
        make()


def test_theory_decay_is_geometric():
    schedule = theory_decay(0.9, 0.5)
    np.testing.assert_allclose(series(schedule, 5), 0.9 * 0.5 ** np.arange(5), rtol=1e-6)


def test_theory_decay_of_the_paper_decays_in_float32():
    schedule = theory_decay(0.9, 1 - 1e-8)
    assert float(schedule(10**8)) == pytest.approx(0.9 / math.e, rel=1e-6)
