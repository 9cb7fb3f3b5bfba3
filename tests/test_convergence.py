"""What the papers promise: regret, sparse and moving gradients, invariances, propositions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from adamw_jax import (
    adabelief,
    adam,
    adamax,
    adamw,
    amsgrad,
    compose,
    lookahead,
    radam,
    sgdw,
    theory_decay,
)
from adamw_jax.moments.record import Clock
from adamw_jax.moments.rectification import rectifier
from tests.catalogue import PLAIN, Entry, assert_close, assert_equal, label, run

table = pytest.mark.parametrize("entry", PLAIN, ids=label)
adaptive = pytest.mark.parametrize("entry", [e for e in PLAIN if e.adaptive], ids=label)

# Online convex optimisation: a loss per step, chosen without regard to the answer, and the regret
# against the best fixed answer in hindsight, on the box [-1, 1]^d.


def inverse_root(rate: float) -> Any:
    """The learning rate of the proofs, rate / sqrt(t)."""
    return lambda count: rate / jnp.sqrt(jnp.asarray(count + 1, jnp.float32))


def play(tx: Any, loss: Any, data: Any, start: Any) -> tuple[np.ndarray, np.ndarray]:
    """The losses suffered, step by step, with projection onto the box; and the last answer."""

    @jax.jit
    def game(data: Any) -> Any:
        def turn(carry: Any, datum: Any) -> Any:
            x, state = carry
            suffered, gradient = jax.value_and_grad(loss)(x, datum)
            updates, state = tx.update(gradient, state, x)
            x = jnp.clip(optax.apply_updates(x, updates), -1.0, 1.0)
            return (x, state), suffered

        (x, _), suffered = jax.lax.scan(turn, (start, tx.init(start)), data)
        return suffered, x

    suffered, x = game(data)
    return np.asarray(suffered, np.float64), np.asarray(x, np.float64)


def growth(regret: np.ndarray) -> float:
    """The exponent p of regret ~ T^p, from the last nine tenths of the game on a log scale."""
    t = np.arange(1, len(regret) + 1)
    late = slice(len(t) // 10, None)
    return float(np.polyfit(np.log(t[late]), np.log(np.maximum(regret[late], 1e-9)), 1)[0])


STEPS = 4000


@functools.cache
def targets() -> np.ndarray:
    """Noisy targets around an answer inside the box; a third of the features is rare."""
    rng = np.random.default_rng(0)
    return np.clip(np.array([0.6, -0.3, 0.1]) + rng.normal(size=(STEPS, 3)), -3, 3)


@functools.cache
def presence() -> np.ndarray:
    """Which features each step has."""
    return (np.random.default_rng(1).random((STEPS, 3)) < np.array([1.0, 0.5, 0.05])).astype(float)


def absolute(x: jax.Array, datum: Any) -> jax.Array:
    """Absolute error on the features that are there: convex, not smooth, no curvature to help."""
    target, there = datum
    return jnp.sum(there * jnp.abs(x - target))


def absolute_regret(tx: Any) -> np.ndarray:
    """Regret against the best fixed answer over the whole game so far."""
    data = jnp.asarray(targets(), jnp.float32), jnp.asarray(presence(), jnp.float32)
    suffered = np.cumsum(play(tx, absolute, data, jnp.full(3, -1.0))[0])
    candidates = np.linspace(-1, 1, 201)
    best = np.zeros(STEPS)
    for z, there in zip(targets().T, presence().T, strict=True):
        best += np.cumsum(there[:, None] * np.abs(candidates - z[:, None]), axis=0).min(axis=1)
    return suffered - best


THEORY = {"b1": theory_decay(0.9, 0.999), "b2": 0.99}
"""b1_t = b1 lambda^(t-1), and b1^2 / sqrt(b2) < 1."""


@pytest.mark.parametrize(
    "factory", [adam, amsgrad, functools.partial(amsgrad, bias_correction_mu=False, bias_correction_nu=False)],
    ids=["adam", "amsgrad", "amsgrad of the paper"],
)  # fmt: skip
def test_regret_grows_as_the_root_of_time(factory: Any) -> None:
    """R(T) = O(sqrt T): exponent about one half, and R(T) / sqrt(T) does not rise at the end."""
    regret = absolute_regret(factory(inverse_root(0.5), **THEORY))
    assert growth(regret) < 0.6
    scaled = regret / np.sqrt(np.arange(1, STEPS + 1))
    assert scaled[-1] <= 1.05 * scaled[STEPS // 4]


def test_the_measure_of_regret_can_fail() -> None:
    """With a learning rate that does not fall the regret is linear: the exponent says so."""
    regret = absolute_regret(adam(0.5, **THEORY))
    assert growth(regret) > 0.85


def reddi_regret(tx: Any) -> np.ndarray:
    """The synthetic example of Reddi et al.: one large gradient in three, the best answer is -1."""
    large = 4.0
    slopes = jnp.where(jnp.arange(STEPS) % 3 == 0, large, -1.0)
    suffered, _ = play(tx, lambda x, c: c * x, slopes, jnp.float32(0.0))
    return np.cumsum(suffered) - np.cumsum(-np.asarray(slopes, np.float64))


def test_amsgrad_converges_where_adam_does_not() -> None:
    """b1 = 0, b2 = 1 / (1 + C^2): Adam goes to the worst answer, AMSGrad's mean regret vanishes."""
    options = {"b1": 0.0, "b2": 1.0 / 17.0}
    failing = reddi_regret(adam(inverse_root(0.5), **options))
    assert growth(failing) > 0.95
    for maximum in ("raw", "corrected"):
        regret = reddi_regret(amsgrad(inverse_root(0.5), maximum=maximum, **options))
        assert growth(regret) < 0.6
        assert regret[-1] / STEPS < 0.05 * failing[-1] / STEPS


@table
def test_sparse_gradients_converge(entry: Entry) -> None:
    """Each element has a gradient once in ten steps, with noise: all get there, none leaves."""
    rng = np.random.default_rng(2)
    steps, goal = 1500, jnp.array([0.7, -0.4, 0.2, -0.9])
    there = jnp.asarray(rng.random((steps, 4)) < 0.1, jnp.float32)
    noise = jnp.asarray(0.1 * rng.normal(size=(steps, 4)), jnp.float32)

    def loss(x: jax.Array, datum: Any) -> jax.Array:
        mask, shift = datum
        return 0.5 * jnp.sum(mask * (x - goal - shift) ** 2)

    def falling(count: jax.Array) -> jax.Array:
        return 0.1 * (1.0 - count.astype(jnp.float32) / steps)

    _, answer = play(entry.make(falling), loss, (there, noise), jnp.zeros(4))
    np.testing.assert_allclose(answer, goal, atol=0.05)


@table
def test_a_moving_answer_is_followed(entry: Entry) -> None:
    """Non-stationary: the answer turns slowly on a circle and the parameters keep near it."""
    steps = 1200
    angle = 2 * np.pi * np.arange(steps) / 400
    answers = jnp.asarray(0.8 * np.stack([np.cos(angle), np.sin(angle)], -1), jnp.float32)

    def loss(x: jax.Array, answer: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x - answer) ** 2)

    suffered, _ = play(entry.make(0.05), loss, answers, jnp.zeros(2))
    assert np.sqrt(2 * suffered[400:].max()) < 0.4


def test_a_fall_of_the_gradient_scale() -> None:
    """Gradients 100 times smaller: Adam's step recovers as its memory fades, AMSGrad's does not."""
    gradients = jnp.concatenate([jnp.full((100, 1), 100.0), jnp.ones((600, 1))])

    def last_step(tx: Any) -> float:
        before, _ = run(tx, jnp.zeros(1), gradients[:-1])
        after, _ = run(tx, jnp.zeros(1), gradients)
        return float((before - after)[0])

    forgotten = 1e4 * 0.99**600 * (1 - 0.99**100) + (1 - 0.99**600)
    assert last_step(adam(0.1, b2=0.99)) == pytest.approx(0.1 / np.sqrt(forgotten), rel=1e-3)
    remembered = 1e4 * (1 - 0.99**100)
    assert last_step(amsgrad(0.1, b2=0.99)) == pytest.approx(0.1 / np.sqrt(remembered), rel=1e-2)


# Properties of the cards.

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
    move = trajectory(entry.label)
    got, expected = move(gradients * np.float32(2.0**power)), move(gradients)
    assert_equal(got, expected if entry.adaptive else expected * 2.0**power)


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
        np.testing.assert_allclose(state.stages["lookahead"].slow, slow, rtol=1e-5)


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


@pytest.mark.parametrize("b2", [0.9, 0.99, 0.999, 0.9999])
def test_the_rectifier_is_exact_in_float32(b2: float) -> None:
    """Against the closed form in float64 at the rounded b2, over 3000 steps."""
    rate = np.float32(b2)

    @jax.jit
    def single() -> Any:
        def tick(clock: Clock, _: None) -> Any:
            clock = clock.tick(jnp.float32(rate))
            length = 2.0 * clock.age / clock.mass + 1.0
            return clock, (length, rectifier(length, 2.0 / (1.0 - jnp.float32(rate)) - 1.0))

        return jax.lax.scan(tick, Clock.start(), None, 3000)[1]

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
    gradient = jnp.ones(1)
    steps = []
    for convention in ("exact", "current"):
        tx = adam(0.1, b1=moving(0.5, 0.95), bias_correction=convention)
        steps.append(
            np.diff(np.asarray([run(tx, jnp.zeros(1), jnp.ones((n, 1)))[0][0] for n in (10, 11)]))
        )
    assert float(gradient[0]) == 1.0
    assert steps[0] == pytest.approx(-0.1, rel=1e-3)
    assert abs(steps[1] + 0.1) > 1e-3
