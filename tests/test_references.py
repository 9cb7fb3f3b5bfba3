"""The equations once more, in plain NumPy and float64, where no recorded trajectory exists.

An average is written as what it means: a sum of all values so far with their weights,

    average_t = sum_i w_ti value_i,    w_ti = (1 - b_i) b_{i+1} ... b_t,

whose sum corrects the bias and whose mean age gives the length of the average.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj

STEPS = 60
RNG = np.random.default_rng(7)
GRADIENTS = RNG.normal(size=(STEPS, 6)) * np.array([1e-4, 1e-1, 1.0, 1.0, 30.0, 1e3])
GRADIENTS[:10, 2] = 0.0
GRADIENTS[::3, 3] = 0.0
START = RNG.normal(size=6)
COUNT = np.arange(STEPS)
RATE = 1e-2 * (1 + np.cos(np.pi * COUNT / STEPS)) / 2 + 1e-4
STEADY = {"b1": np.full(STEPS, 0.9), "b2": np.full(STEPS, 0.99)}
MOVING = {
    "b1": 0.9 + 0.05 * np.cos(0.2 * COUNT),
    "b2": 0.985 + 0.01 * np.sin(0.3 * COUNT),
}
BETAS = {"steady": STEADY, "moving": MOVING}


@dataclasses.dataclass(frozen=True)
class Average:
    """Weighted sums over the past, one row a step; the two sums are columns."""

    value: np.ndarray
    weight_sum: np.ndarray
    weighted_age: np.ndarray
    rate: np.ndarray

    @property
    def hat(self) -> np.ndarray:
        return self.value / self.weight_sum

    @property
    def length(self) -> np.ndarray:
        return 2 * self.weighted_age / self.weight_sum + 1


def average(values: np.ndarray, b: np.ndarray, floor: float = 0.0) -> Average:
    """A moving average, to which every step adds ``floor``."""
    kept = np.zeros((STEPS, STEPS))
    for t in range(STEPS):
        for i in range(t + 1):
            kept[t, i] = np.prod(b[i + 1 : t + 1])
    weights = kept * (1 - b)
    ages = COUNT[:, None] - COUNT[None, :]
    return Average(
        weights @ values + floor * kept.sum(axis=1, keepdims=True),
        weights.sum(axis=1, keepdims=True),
        (weights * ages).sum(axis=1, keepdims=True),
        b[:, None],
    )


def moments(betas: dict[str, np.ndarray]) -> tuple[Average, Average]:
    return average(GRADIENTS, betas["b1"]), average(GRADIENTS**2, betas["b2"])


def schedule(array: np.ndarray) -> Callable[[Any], jax.Array]:
    return lambda count: jnp.asarray(array)[count]


def descend(direction: np.ndarray) -> np.ndarray:
    return START - np.cumsum(RATE[:, None] * direction, axis=0)


def run(tx: optax.GradientTransformation) -> np.ndarray:
    """Parameters after every step."""

    def step(carry: Any, gradient: jax.Array) -> Any:
        params, state = carry
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    start = jnp.asarray(START)
    return np.asarray(jax.lax.scan(step, (start, tx.init(start)), jnp.asarray(GRADIENTS))[1])


def assert_same(tx: optax.GradientTransformation, expected: np.ndarray) -> None:
    assert np.ptp(expected, axis=0).min() > 0
    np.testing.assert_allclose(run(tx), expected, rtol=1e-9, atol=1e-12)


pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.quick]
with_betas = pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)


def scheduled(betas: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: schedule(array) for name, array in betas.items()}


# Adam


@with_betas
@pytest.mark.parametrize("eps_root", [0.0, 1e-4])
def test_adam_divides_by_the_sum_of_the_weights(betas: Any, eps_root: float) -> None:
    m, v = moments(betas)
    direction = m.hat / (np.sqrt(v.hat + eps_root) + 1e-3)
    tx = aj.adam(schedule(RATE), eps=1e-3, eps_root=eps_root, **scheduled(betas))
    assert_same(tx, descend(direction))


@with_betas
def test_adam_with_eps_hat(betas: Any) -> None:
    m, v = moments(betas)
    direction = m.hat * np.sqrt(v.weight_sum) / (np.sqrt(v.value) + 1e-3)
    assert_same(
        aj.adam(schedule(RATE), eps=1e-3, eps_hat=True, **scheduled(betas)), descend(direction)
    )


@with_betas
def test_adam_with_the_correction_of_pytorch(betas: Any) -> None:
    m, v = moments(betas)
    t = COUNT[:, None] + 1
    direction = (m.value / (1 - m.rate**t)) / (np.sqrt(v.value / (1 - v.rate**t)) + 1e-8)
    tx = aj.adam(schedule(RATE), bias_correction="current", **scheduled(betas))
    assert_same(tx, descend(direction))


def test_adam_with_the_decaying_b1_of_the_theory() -> None:
    b1 = 0.9 * 0.95**COUNT
    m, v = average(GRADIENTS, b1), average(GRADIENTS**2, STEADY["b2"])
    direction = m.hat / (np.sqrt(v.hat) + 1e-8)
    assert_same(aj.adam(schedule(RATE), aj.theory_decay(0.9, 0.95), 0.99), descend(direction))


def nesterov_first(b1: float) -> np.ndarray:
    """optax's look-ahead: the corrected average of the next step, were its gradient 0, and this."""
    m = average(GRADIENTS, np.full(STEPS, b1))
    t = COUNT[:, None] + 1
    return b1 * m.value / (1 - b1 ** (t + 1)) + (1 - b1) * GRADIENTS / (1 - b1**t)


def test_nesterov_adam() -> None:
    v = average(GRADIENTS**2, STEADY["b2"])
    direction = nesterov_first(0.9) / (np.sqrt(v.hat) + 1e-8)
    assert_same(aj.adam(schedule(RATE), 0.9, 0.99, nesterov=True), descend(direction))


@with_betas
@pytest.mark.parametrize("inside", [True, False])
def test_adamax(betas: Any, inside: bool) -> None:
    m, u, rows = average(GRADIENTS, betas["b1"]), np.zeros(6), []
    for b2, g in zip(betas["b2"], GRADIENTS, strict=True):
        u = np.maximum(b2 * u, np.abs(g) + (1e-4 if inside else 0.0))
        rows.append(u)
    direction = m.hat / (np.stack(rows) + (0.0 if inside else 1e-4))
    tx = aj.adamax(schedule(RATE), eps=1e-4, eps_inside_max=inside, **scheduled(betas))
    assert_same(tx, descend(direction))


# AdaBelief


BELIEF = {"optax": (1e-16, 1e-16), "paper": (1e-8, 1e-8), "both seen": (1e-3, 1e-5)}


@with_betas
@pytest.mark.parametrize(("eps", "eps_root"), BELIEF.values(), ids=BELIEF)
def test_adabelief(betas: Any, eps: float, eps_root: float) -> None:
    """Its equation adds eps_root to the second moment at every step; the paper calls both eps."""
    m = average(GRADIENTS, betas["b1"])
    s = average((GRADIENTS - m.value) ** 2, betas["b2"], eps_root)
    direction = m.hat / (np.sqrt(s.hat) + eps)
    tx = aj.adabelief(schedule(RATE), eps=eps, eps_root=eps_root, **scheduled(betas))
    assert_same(tx, descend(direction))


def test_nesterov_adabelief() -> None:
    m = average(GRADIENTS, STEADY["b1"])
    s = average((GRADIENTS - m.value) ** 2, STEADY["b2"], 1e-8)
    direction = nesterov_first(0.9) / (np.sqrt(s.hat) + 1e-8)
    tx = aj.adabelief(schedule(RATE), 0.9, 0.99, 1e-8, 1e-8, nesterov=True)
    assert_same(tx, descend(direction))


# AMSGrad


def largest(values: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(values, axis=0)


EPS = 1e-3
AMSGRAD: dict[str, tuple[dict[str, Any], Callable[[Average, Average], np.ndarray]]] = {
    "PyTorch": ({}, lambda m, v: m.hat / (np.sqrt(largest(v.value) / v.weight_sum) + EPS)),
    "Keras": (
        {"eps_hat": True},
        lambda m, v: m.hat * np.sqrt(v.weight_sum) / (np.sqrt(largest(v.value)) + EPS),
    ),
    "optax": (
        {"maximum": "corrected"},
        lambda m, v: m.hat / (np.sqrt(largest(v.hat)) + EPS),
    ),
    "optax with eps_root": (
        {"maximum": "corrected", "eps_root": 1e-4},
        lambda m, v: m.hat / (np.sqrt(largest(v.hat) + 1e-4) + EPS),
    ),
    "paper": (
        {"bias_correction_mu": False, "bias_correction_nu": False},
        lambda m, v: m.value / (np.sqrt(largest(v.value)) + EPS),
    ),
    "first corrected": (
        {"bias_correction_nu": False},
        lambda m, v: m.hat / (np.sqrt(largest(v.value)) + EPS),
    ),
    "second corrected": (
        {"bias_correction_mu": False},
        lambda m, v: m.value / (np.sqrt(largest(v.value) / v.weight_sum) + EPS),
    ),
}


@with_betas
@pytest.mark.parametrize("form", AMSGRAD)
def test_amsgrad(form: str, betas: Any) -> None:
    options, equation = AMSGRAD[form]
    tx = aj.amsgrad(schedule(RATE), eps=EPS, **options, **scheduled(betas))
    assert_same(tx, descend(equation(*moments(betas))))


@with_betas
def test_adamw_has_the_same_amsgrad(betas: Any) -> None:
    expected = descend(AMSGRAD["PyTorch"][1](*moments(betas)))
    options = {"amsgrad": True, "weight_decay": None}
    assert_same(aj.adamw(schedule(RATE), eps=EPS, **options, **scheduled(betas)), expected)


# RAdam


@with_betas
@pytest.mark.parametrize("eps_hat", [False, True])
@pytest.mark.parametrize("threshold", [4.0, 5.0])
@pytest.mark.parametrize("below", ["skip", "decay", "momentum"])
def test_radam(below: str, threshold: float, eps_hat: bool, betas: Any) -> None:
    m, v = moments(betas)
    rho, limit = v.length, 2 / (1 - v.rate) - 1
    short = rho < threshold
    assert 2 < short.sum() < 10
    top, bottom = (rho - 4) * (rho - 2) * limit, (limit - 4) * (limit - 2) * rho
    gain = np.sqrt(np.where(short, 0.0, top / bottom))
    root = np.sqrt(v.value) if eps_hat else np.sqrt(v.hat)
    adaptive = gain * m.hat * (np.sqrt(v.weight_sum) if eps_hat else 1.0) / (root + EPS)
    direction = np.where(short, m.hat if below == "momentum" else 0.0, adaptive)
    tx = aj.radam(
        schedule(RATE),
        eps=EPS,
        threshold=threshold,
        below=below,
        eps_hat=eps_hat,
        **scheduled(betas),
    )
    assert_same(tx, descend(direction))


def test_the_length_of_an_average_is_that_of_the_paper() -> None:
    b2, t = 0.99, COUNT + 1
    closed = 2 / (1 - b2) - 1 - 2 * t * b2**t / (1 - b2**t)
    np.testing.assert_allclose(average(GRADIENTS, STEADY["b2"]).length[:, 0], closed, rtol=1e-10)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("below", ["skip", "decay", "momentum"])
def test_rectified_acprop_is_the_authors(below: str, fixed: bool, momentum: bool) -> None:
    """Their ``degenerated_to_sgd`` is "momentum", without it "decay"; the first step is lr g."""
    theta, m, s, rows, b1, b2 = START, np.zeros(6), np.zeros(6), [], 0.9, 0.99
    limit = 2 / (1 - b2) - 1
    for t, (g, rate, wd) in enumerate(zip(GRADIENTS, RATE, DECAY / 10, strict=True), 1):
        m = b1 * m + (1 - b1) * g
        s = s + EPS if t > 1 else s
        left = 1 - b2**t
        rho = limit - 2 * t * b2**t / left
        stays = below == "skip" and rho < 5 and t > 1
        decayed = theta * (1.0 if stays else 1 - (wd if fixed else rate * wd))
        if t == 1:
            step = g
        elif rho >= 5:
            top, bottom = (rho - 4) * (rho - 2) * limit, (limit - 4) * (limit - 2) * rho
            numerator = m / (1 - b1**t) if momentum else g
            step = np.sqrt(left * top / bottom) * numerator / (np.sqrt(s) + EPS)
        else:
            step = m / (1 - b1**t) if below == "momentum" else 0.0
        theta = decayed - rate * step
        s = b2 * s + (1 - b2) * (g - m) ** 2
        rows.append(theta)
    options = {"decay": "fixed" if fixed else "learning_rate", "below": below, "rectify": True}
    decay, word = schedule(DECAY / 10), "momentum" if momentum else "gradient"
    tx = aj.acprop(schedule(RATE), b1, b2, EPS, weight_decay=decay, numerator=word, **options)
    assert_same(tx, np.stack(rows))


# SGD with momentum


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dampening", [None, 0.3])
@pytest.mark.parametrize("momentum", [0.9, None])
def test_sgdw(momentum: float | None, dampening: float | None, nesterov: bool) -> None:
    """PyTorch's buffer: its first value is the first gradient, undamped."""
    if momentum is None and (dampening is not None or nesterov):
        with pytest.raises(ValueError, match="momentum"):
            aj.sgdw(1e-3, momentum, dampening=dampening, nesterov=nesterov)
        return
    buffer, rows = np.zeros(6), []
    for t, g in enumerate(GRADIENTS):
        buffer = (momentum or 0.0) * buffer + (1 - (dampening or 0.0) if t else 1.0) * g
        rows.append(g + (momentum or 0.0) * buffer if nesterov else buffer)
    tx = aj.sgdw(schedule(RATE), momentum, dampening=dampening, nesterov=nesterov)
    assert_same(tx, descend(np.stack(rows)))


# Decay


DECAY = 0.3 + 0.2 * np.sin(0.1 * COUNT)
FORMS: dict[str, Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]] = {
    "learning_rate": lambda p, d, rate, wd: p - rate * (d + wd * p),
    "schedule": lambda p, d, rate, wd: p - rate * d - rate / 0.5 * wd * p,
    "corrected": lambda p, d, rate, wd: p - rate * d - rate**2 / 0.5 * wd * p,
    "fixed": lambda p, d, rate, wd: p - rate * d - wd * p,
    "proximal": lambda p, d, rate, wd: (p - rate * d) / (1 + rate * wd),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_decay(form: str) -> None:
    m, v = moments(STEADY)
    theta, rows = START, []
    for d, rate, wd in zip(m.hat / (np.sqrt(v.hat) + 1e-8), RATE, DECAY, strict=True):
        theta = FORMS[form](theta, d, rate, wd)
        rows.append(theta)
    rates = {"weight_decay": schedule(DECAY), "base_learning_rate": 0.5}
    tx = aj.adamw(schedule(RATE), 0.9, 0.99, decay=form, **rates)
    assert_same(tx, np.stack(rows))


def test_l2_enters_the_moments() -> None:
    theta, m, v, rows = START, np.zeros(6), np.zeros(6), []
    for t, (gradient, rate, l2) in enumerate(zip(GRADIENTS, RATE, DECAY, strict=True), 1):
        g = gradient + l2 * theta
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        theta = theta - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        rows.append(theta)
    assert_same(aj.adam(schedule(RATE), 0.9, 0.99, l2=schedule(DECAY)), np.stack(rows))
