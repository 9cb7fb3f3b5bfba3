"""What the papers promise: regret, sparse and moving gradients, invariances, propositions."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import (
    adam,
    amsgrad,
    theory_decay,
)
from tests.catalogue import PLAIN, Entry, label, run

pytestmark = pytest.mark.quick

table = pytest.mark.parametrize("entry", PLAIN, ids=label)
# A trust ratio moves a leaf by a share of its length, which is no measure of these answers.
alone = pytest.mark.parametrize("entry", [e for e in PLAIN if e.scope != "leaf"], ids=label)
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


SPARSE_RATES = {"adan": 0.02, "generalized_signsgd": 0.02, "lion": 0.004, "pnm": 0.3}
MOVING_RATES = {"pnm": 0.3}
"""Rates that differ: PNM takes a fifth of each gradient, and the noise of Adan, generalized SignSGD
and Lion needs a smaller rate to settle."""

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


AS_IN_THE_PAPER = functools.partial(amsgrad, bias_correction_mu=False, bias_correction_nu=False)


@pytest.mark.parametrize(
    "factory", [adam, amsgrad, AS_IN_THE_PAPER], ids=["adam", "amsgrad", "amsgrad of the paper"]
)
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


@alone
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
        return SPARSE_RATES.get(entry.name, 0.1) * (1.0 - count.astype(jnp.float32) / steps)

    _, answer = play(entry.make(falling), loss, (there, noise), jnp.zeros(4))
    np.testing.assert_allclose(answer, goal, atol=0.05)


# Schedule-free gradients are taken near the mean of the whole past, which does not follow.
@pytest.mark.parametrize(
    "entry", [e for e in PLAIN if not {e.scope, *e.keywords} & {"leaf", "interpolation"}], ids=label
)
def test_a_moving_answer_is_followed(entry: Entry) -> None:
    """Non-stationary: the answer turns slowly on a circle and the parameters keep near it."""
    steps = 1200
    angle = 2 * np.pi * np.arange(steps) / 400
    answers = jnp.asarray(0.8 * np.stack([np.cos(angle), np.sin(angle)], -1), jnp.float32)

    def loss(x: jax.Array, answer: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum((x - answer) ** 2)

    suffered, _ = play(entry.make(MOVING_RATES.get(entry.name, 0.05)), loss, answers, jnp.zeros(2))
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
