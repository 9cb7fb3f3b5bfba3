"""Properties that the papers' equations have: invariances, propositions, limits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st

from adamw_jax import (
    adabelief,
    adam,
    adamax,
    adamw,
    amsgrad,
    compose,
    eval_params,
    lookahead,
    radam,
    sgdw,
)
from adamw_jax._core.record import Clock
from adamw_jax.moments._rectify_variance import rectifier
from tests.catalogue import PLAIN, Entry, assert_close, assert_equal, rows, run

pytestmark = pytest.mark.quick

table = pytest.mark.parametrize("entry", rows(PLAIN))

# Properties of the formulas.

finite = st.floats(2.0**-7, 128.0, width=32)
vectors = st.lists(st.tuples(finite, st.sampled_from([-1.0, 1.0])), min_size=24, max_size=24).map(
    lambda pairs: np.array([a * s for a, s in pairs], np.float32).reshape(6, 4)
)
VECTOR = jnp.array([1.0, -2.0, 0.5, 3.0])


@functools.cache
def trajectory(label_: str) -> Any:
    """A compiled ``gradients -> displacement`` of an entry without eps and without decay."""
    entry = next(e for e in PLAIN if e.label == label_)
    options = entry.exact(weight_decay=None)

    @jax.jit
    def displaced(gradients: Any) -> Any:
        return run(entry.make(**options), jnp.zeros_like(VECTOR), gradients)[0]

    return displaced


@table
@given(gradients=vectors, power=st.integers(-12, 12))
def test_scale_of_the_gradient(entry: Entry, gradients: Any, power: int) -> None:
    """Adaptive steps do not see it (bit by bit for powers of two), momentum steps are linear."""
    if entry.degree is None:
        pytest.skip("its step is no power of the gradient's scale")
    move = trajectory(entry.label)
    got, expected = move(gradients * np.float32(2.0**power)), move(gradients)
    if entry.degree in (0, 1) and entry.scope == "element":
        assert_equal(got, expected * 2.0 ** (power * entry.degree))
    else:
        assert_close(got, expected * 2.0 ** (power * entry.degree), rtol=1e-4, atol=1e-6)


@table
@given(gradients=vectors, order=st.permutations(range(4)))
def test_permutation(entry: Entry, gradients: Any, order: list[int]) -> None:
    """Elements do not see each other."""
    move = trajectory(entry.label)
    assert_close(move(gradients[:, order]), move(gradients)[np.array(order)], rtol=1e-6)


@table
@given(gradients=vectors)
def test_reflection(entry: Entry, gradients: Any) -> None:
    """Opposite gradients, opposite way."""
    move = trajectory(entry.label)
    assert_equal(move(-gradients), -move(gradients))


FIRST_STEP = {
    adam: 1.0,
    functools.partial(adamw, weight_decay=None): 1.0,
    adamax: 1.0,
    amsgrad: 1.0,
    functools.partial(amsgrad, maximum="corrected"): 1.0,
    functools.partial(adabelief, eps_root=0.0): 1 / 0.9,
    radam: 0.0,
}


@pytest.mark.parametrize("factory", FIRST_STEP)
def test_the_first_step_is_the_sign(factory: Any) -> None:
    """lr sign(g), for gradients of any size, and nothing where there is no gradient."""
    gradient = jnp.array([1e-9, -3.0, 0.0, 2e8, -1e-4])
    tx = factory(0.01, eps=0.0)
    updates, _ = jax.jit(tx.update)(gradient, tx.init(gradient))
    np.testing.assert_allclose(updates, -0.01 * FIRST_STEP[factory] * np.sign(gradient), rtol=2e-6)


@given(rate=st.floats(1e-3, 0.5), decay=st.floats(1e-4, 0.1), gradients=vectors)
def test_proposition_1(rate: float, decay: float, gradients: Any) -> None:
    """For SGD, decay lambda is L2 with lambda / alpha (Loshchilov & Hutter)."""
    decoupled, coupled = _propositions()[:2]
    arguments = [np.float32(x) for x in (rate, decay)]
    assert_close(decoupled(*arguments, gradients), coupled(*arguments, gradients), 1e-4, 1e-4)


@given(
    rate=st.floats(1e-3, 0.5),
    decay=st.floats(1e-4, 0.1),
    l2=st.floats(0.0, 100.0),
    gradients=vectors,
)
def test_proposition_2(rate: float, decay: float, l2: float, gradients: Any) -> None:
    """For Adam no L2 coefficient gives decay: its first step is at most alpha for each of them."""
    along = np.sign(np.asarray(VECTOR)) * np.abs(gradients)  # the gradient points away from 0
    decoupled, coupled = _propositions()[2:]
    start = np.asarray(VECTOR)
    a = np.asarray(decoupled(np.float32(rate), np.float32(decay), along[:1])) - start
    b = np.asarray(coupled(np.float32(rate), np.float32(l2), along[:1])) - start
    np.testing.assert_allclose(np.abs(b), rate, rtol=1e-2)
    np.testing.assert_allclose(np.abs(a), rate + decay * np.abs(start), rtol=1e-2)


@functools.cache
def _propositions() -> tuple[Any, ...]:
    def compiled(make: Any) -> Any:
        return jax.jit(lambda rate, decay, gradients: run(make(rate, decay), VECTOR, gradients)[0])

    return (
        compiled(lambda a, d: sgdw(a, momentum=None, weight_decay=d, decay="fixed")),
        compiled(lambda a, d: sgdw(a, momentum=None, l2=d / a)),
        compiled(lambda a, d: adamw(a, weight_decay=d, decay="fixed")),
        compiled(lambda a, d: adam(a, l2=d)),
    )


@pytest.mark.parametrize("form", ["tail", "wrapper", "pullback"])
@given(gradients=vectors)
def test_lookahead_with_alpha_1_is_the_inner_optimizer(form: str, gradients: Any) -> None:
    """slow + 1 (fast - slow) = fast."""
    moved, plain = _lookaheads(form)[:2]
    assert_close(moved(gradients), plain(gradients), 1e-5, 1e-6)


@pytest.mark.parametrize("form", ["tail", "wrapper"])
@given(gradients=vectors)
def test_lookahead_with_period_1_scales(form: str, gradients: Any) -> None:
    """A sync at every step takes alpha of each step."""
    _, plain, scaled = _lookaheads(form)
    expected = np.asarray(VECTOR) + 0.25 * (np.asarray(plain(gradients)) - np.asarray(VECTOR))
    assert_close(np.asarray(scaled(gradients)), expected, 1e-5, 1e-6)


@functools.cache
def _lookaheads(form: str) -> tuple[Any, ...]:
    def build(period: int, alpha: float) -> Any:
        if form == "tail":
            return compose(adam(0.05), lookahead(sync_period=period, slow_step_size=alpha))
        return lookahead(
            adam(0.05), period, alpha, inner_state="pullback" if form == "pullback" else "keep"
        )

    return tuple(
        jax.jit(lambda gradients, tx=tx: run(tx, VECTOR, gradients)[0])
        for tx in (build(2, 1.0), adam(0.05), build(1, 0.25))
    )


def test_lookahead_syncs_by_the_formula() -> None:
    """phi <- phi + alpha (theta - phi) after steps k and 2k, fast weights equal to slow then."""
    gradients = jnp.asarray(np.random.default_rng(3).normal(size=(6, 4)), jnp.float32)
    tx = compose(sgdw(0.1, momentum=None), lookahead(sync_period=3, slow_step_size=0.5))
    theta = slow = np.asarray(VECTOR, np.float64)
    for t in range(6):
        theta = theta - 0.1 * np.asarray(gradients[t])
        if t % 3 == 2:
            slow = slow + 0.5 * (theta - slow)
            theta = slow
        got, state = run(tx, VECTOR, gradients[: t + 1])
        np.testing.assert_allclose(got, theta, rtol=1e-5)
        np.testing.assert_allclose(eval_params(state, got), slow, rtol=1e-5)


@given(gradients=vectors)
def test_amsgrad_steps_are_no_longer_than_adams(gradients: Any) -> None:
    """Its denominators are at least Adam's."""
    steps = _amsgrad_and_adam()(gradients)
    assert np.all(np.abs(steps[0]) <= np.abs(steps[1]) * (1 + 1e-6))


@functools.cache
def _amsgrad_and_adam() -> Any:
    def updates(tx: Any, gradients: Any) -> Any:
        return jax.lax.scan(lambda state, g: tx.update(g, state)[::-1], tx.init(VECTOR), gradients)[
            1
        ]

    return jax.jit(lambda gradients: [updates(tx, gradients) for tx in (amsgrad(0.1), adam(0.1))])


@pytest.mark.parametrize(
    ("b", "steps"),
    [
        (0.0, 1),
        (0.5, 2),
        (0.999, 1),
        (0.999, 700),
        (0.999, 10**6),
        (0.9999, 10**5),
        (0.9999, 10**6),
        (0.99999, 10**5),
        (0.99999, 3 * 10**6),
    ],
)
def test_a_clock_does_not_stop_short(b: float, steps: int) -> None:
    """Neither the sum of the weights, by which bias is corrected, nor their age, in float32."""
    rate = np.float32(b)

    @jax.jit
    def after() -> Clock:
        return jax.lax.fori_loop(
            0, steps, lambda _, c: c.tick(jnp.float32(rate)), Clock.start(aged=True)
        )

    clock, rate = after(), np.float64(rate)
    weight_sum = 1.0 - rate**steps
    np.testing.assert_allclose(clock.weight_sum, weight_sum, rtol=3e-6)
    weighted_age = rate * weight_sum / (1 - rate) - steps * rate**steps
    np.testing.assert_allclose(clock.weighted_age, weighted_age, rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_the_rectifier_is_exact_in_float32(b2: float) -> None:
    """Against the closed form in float64 at the rounded b2, over 3000 steps."""
    rate = np.float32(b2)

    @jax.jit
    def single() -> Any:
        def tick(clock: Clock, _: None) -> Any:
            clock = clock.tick(jnp.float32(rate))
            length = 2.0 * clock.weighted_age / clock.weight_sum + 1.0
            return clock, (length, rectifier(length, 2.0 / (1.0 - jnp.float32(rate)) - 1.0))

        return jax.lax.scan(tick, Clock.start(aged=True), None, 3000)[1]

    length, factor = single()
    b, t = np.float64(rate), np.arange(1, 3001)
    limit = 2 / (1 - b) - 1
    power = np.exp(t * np.log(b))
    rho = limit - 2 * t * power / -np.expm1(t * np.log(b))
    np.testing.assert_allclose(length, rho, rtol=5e-6)
    used = rho > 4.5
    exact = np.sqrt(
        (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho),
        where=used,
        out=np.zeros(3000),
    )
    np.testing.assert_allclose(factor[used], exact[used], rtol=2e-5)
    assert np.all(np.asarray(factor)[rho < 4 - 1e-6] == 0)


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_radam_starts_at_the_sixth_step(b2: float) -> None:
    """Five skipped steps for every usual b2, in float32, decay included."""
    gradients = jnp.asarray(np.random.default_rng(4).normal(size=(6, 4)), jnp.float32)
    tx = radam(0.1, b2=b2, weight_decay=0.1)
    assert_equal(run(tx, VECTOR, gradients[:5])[0], VECTOR)
    assert np.all(np.asarray(run(tx, VECTOR, gradients)[0]) != np.asarray(VECTOR))


@pytest.mark.parametrize("b2", [0.5, 0.6])
def test_radam_with_a_short_memory_never_starts(b2: float) -> None:
    """b2 <= 0.6: the length never exceeds 4."""
    assert_equal(run(radam(0.1, b2=b2), VECTOR, jnp.ones((50, 4)))[0], VECTOR)
    params, _ = run(radam(0.1, b2=b2, below="momentum"), VECTOR, jnp.ones((50, 4)))
    np.testing.assert_allclose(params, np.asarray(VECTOR) - 5.0, rtol=1e-5)


def moving(low: float, high: float) -> Any:
    """A decay rate that jumps and swings."""
    return lambda count: jnp.where(
        count < 10, high, low + (high - low) * jnp.abs(jnp.sin(0.3 * count.astype(jnp.float32)))
    )


@pytest.mark.parametrize("factory", [adam, adamw, adamax, amsgrad], ids=lambda f: f.__name__)
def test_scheduled_betas_leave_a_constant_step(factory: Any) -> None:
    """Under a constant gradient every step is lr, however b1 and b2 move."""
    gradient = jnp.array([2.0, -0.5, 100.0, 1e-3])
    tx = factory(0.1, b1=moving(0.5, 0.95), b2=moving(0.9, 0.999), weight_decay=None)

    def body(state: Any, _: None) -> Any:
        updates, state = tx.update(gradient, state)
        return state, updates

    updates = jax.jit(lambda: jax.lax.scan(body, tx.init(gradient), None, 60)[1])()
    np.testing.assert_allclose(updates, np.tile(-0.1 * np.sign(gradient), (60, 1)), rtol=1e-4)


def test_the_current_convention_is_biased_where_the_exact_is_not() -> None:
    """PyTorch's 1 - b_t^t under a moving b: the difference the option stands for is there."""
    steps = []
    for convention in ("exact", "current"):
        tx = adam(0.1, b1=moving(0.5, 0.95), bias_correction=convention)
        steps.append(
            np.diff(np.asarray([run(tx, jnp.zeros(1), jnp.ones((n, 1)))[0][0] for n in (10, 11)]))
        )
    assert steps[0] == pytest.approx(-0.1, rel=1e-3)
    assert abs(steps[1] + 0.1) > 1e-3
