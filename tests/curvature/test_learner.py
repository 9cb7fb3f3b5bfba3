"""Learning rate and momentum from the spectrum, by hand and into a running optimizer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import adamw_jax as aj
from adamw_jax.curvature import lr_momentum_from_spectrum
from adamw_jax.diagnostics import learn_rates
from adamw_jax.extend import Domain, Kind, Stage, Step, declare, stage

pytestmark = pytest.mark.quick

SPECTRUM = np.array([1.0, 4.0, 9.0, 100.0])
KEY, LEAST = jax.random.key(0), "non_bulk_min"
RATES = jax.jit(lr_momentum_from_spectrum, static_argnames=("method", "mu"))


def loss_fn(params: Any, batch: Any) -> jax.Array:
    return 0.5 * (jnp.sum(batch[:2] * params["a"] ** 2) + jnp.sum(batch[2:] * params["b"] ** 2))


def run(learning_rate: float, momentum: float, nesterov: bool = False, steps: int = 200) -> float:
    """The distance from the minimum, in NumPy."""
    x, m = np.ones(4), np.zeros(4)
    for _ in range(steps):
        g = SPECTRUM * x
        m = momentum * m + g
        x = x - learning_rate * (g + momentum * m if nesterov else m)
    return float(np.linalg.norm(x))


def test_the_rules_on_a_quadratic() -> None:
    """After 200 steps: descent at its rate (L - mu) / (L + mu), momentum far below."""
    with jax.enable_x64(True):
        rates = {
            method: tuple(map(float, lr_momentum_from_spectrum(SPECTRUM, method=method, mu=LEAST)))
            for method in ("sgd", "heavy_ball", "nesterov")
        }
    np.testing.assert_allclose(run(*rates["sgd"]), np.sqrt(2) * (99 / 101) ** 200, rtol=1e-6)
    assert run(*rates["heavy_ball"]) < 1e-13
    assert run(*rates["nesterov"], nesterov=True) < 1e-7
    assert run(2.001 / 100, 0.0) > 1.0  # the largest step of descent is a real limit


@given(st.lists(st.floats(0.01, 100), min_size=5, max_size=5), st.floats(0.1, 10))
def test_scale(values: list[float], scale: float) -> None:
    """A loss times c wants a learning rate over c and the same momentum."""
    for method in ("sgd", "heavy_ball", "nesterov"):
        one = RATES(np.array(values), method=method)
        other = RATES(np.multiply(values, scale), method=method)
        np.testing.assert_allclose(other.learning_rate * scale, one.learning_rate, rtol=1e-5)
        np.testing.assert_allclose(other.momentum, one.momentum, rtol=1e-3, atol=1e-6)


@given(st.permutations(range(5)))
def test_weights_go_with_their_values(order: list[int]) -> None:
    """In any order, signs away; the bulk is dropped, and what weighs nothing."""
    values = np.array([-20.0, 0.001, 0.3, 6.0, 50.0])[order]
    weights = np.array([0.1, 0.7, 0.1, 0.1, 0.0])[order]
    least = RATES(values, weights, mu=LEAST)
    np.testing.assert_allclose(least.learning_rate, 2 / 20.3, rtol=1e-6)
    median = RATES(values, weights)
    np.testing.assert_allclose(median.learning_rate, 2 / 23.15, rtol=1e-6)


def test_one_value_is_all_there_is() -> None:
    found = lr_momentum_from_spectrum([4.0], [1.0], method="heavy_ball", mu=LEAST)
    assert tuple(map(float, found)) == (0.25, 0.0)


def test_training_with_learned_rates() -> None:
    """Learned between steps, written into the state, under a wrapper; nothing compiles anew."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    batch = jnp.asarray(SPECTRUM, jnp.float32)
    tx, traces = optax.chain(optax.identity(), aj.sgdw(1e-4, 0.5)), []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for i in range(200):
        if i % 100 == 10:
            state, rates = learn_rates(state, loss_fn, params, batch, key=KEY, mu=LEAST)
            np.testing.assert_allclose(rates.learning_rate, (2 / 11) ** 2, rtol=1e-4)
            np.testing.assert_allclose(rates.momentum, (9 / 11) ** 2, rtol=1e-4)
        params, state = step(params, state)
    assert len(traces) == 1
    assert float(optax.tree.norm(params)) < 1e-10
    held = aj.hyperparams(state)
    np.testing.assert_allclose(held["momentum"], (9 / 11) ** 2, rtol=1e-4)
    state = aj.clear_hyperparams(state)
    _, state = step(params, state)
    np.testing.assert_allclose(aj.hyperparams(state)["learning_rate"], 1e-4)


def test_without_momentum() -> None:
    params, batch = {"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.asarray(SPECTRUM, jnp.float32)
    state = aj.sgdw(0.1, momentum=None).init(params)
    state, _ = learn_rates(state, loss_fn, params, batch, key=KEY, method="sgd", mu=LEAST)
    np.testing.assert_allclose(aj.hyperparams(state)["learning_rate"], 2 / 101, rtol=1e-4)
    with pytest.raises(ValueError, match="unknown hyperparameter 'momentum'"):
        learn_rates(state, loss_fn, params, batch, key=KEY, mu=LEAST)
    with pytest.raises(ValueError, match="the curvature gives no learning rate"):
        learn_rates(state, loss_fn, params, 0.0 * batch, key=KEY, mu=LEAST)


def own_step(longest: float) -> Stage:
    """A stage whose hyperparameter declares that the step is not -lr m."""

    def apply(gradient: Any, state: Any, step: Step) -> tuple[Any, Any]:
        return jax.tree.map(lambda g: jnp.tanh(g / step["longest"]), gradient), state

    declared = declare(longest=Domain(0.0, brackets="(]", reshapes_step=True)(longest))
    return stage("own_step", Kind.GRADIENT, Kind.GRADIENT, apply, hyperparams=declared)


@pytest.mark.parametrize(
    "tx",
    [
        aj.adam(0.1),
        aj.adafactor(0.1),
        aj.koala_v(0.1),
        aj.norm_adaptive_sgd(0.1),
        aj.quantize_state(aj.adamax(0.1)),
        optax.chain(optax.identity(), aj.lamb(0.1)),
        aj.lars(0.1),
        aj.pnm(0.1),
        aj.clipped_sgd(0.1, max_step=1.0),
        aj.compose(own_step(2.0), aj.sgdw(0.1)),
    ],
    ids=[
        *("adam", "adafactor", "koala_v", "norm_adaptive_sgd", "quantized adamax", "chained lamb"),
        *("lars", "pnm", "clipped_sgd", "a stage of the user"),
    ],
)
def test_not_into_another_method(tx: Any) -> None:
    params, batch = {"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.asarray(SPECTRUM, jnp.float32)
    with pytest.raises(ValueError, match=r"learn_rates is for SGD, .*learning_rate.* of another"):
        learn_rates(tx.init(params), loss_fn, params, batch, key=KEY, method="sgd")


def test_into_the_sgd_beside_an_adaptive_method() -> None:
    params, batch = {"a": jnp.ones(2), "b": jnp.ones(2)}, jnp.asarray(SPECTRUM, jnp.float32)
    tx = optax.partition({"a": aj.sgdw(0.1), "b": aj.adam(0.1)}, {"a": "a", "b": "b"})
    state = tx.init(params)
    names = {name.rpartition("/")[2]: name for name in aj.hyperparams(state) if "/a/" in name}
    state, rates = learn_rates(
        state, loss_fn, params, batch, key=KEY,
        learning_rate=names["learning_rate"], momentum=names["momentum"],
    )  # fmt: skip
    assert float(aj.hyperparams(state)[names["learning_rate"]]) == float(rates.learning_rate)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0],), {"method": "adam"}, "method must be one of"),
        (([1.0],), {"mu": "mean"}, "mu must be one of"),
        ((np.ones((2, 2)),), {}, r"ritz_values must have shape \(k,\)"),
        (([1.0, 2.0], [0.2, 0.3, 0.5]), {}, "must have shapes that broadcast"),
        (([1.0, 2.0], [-0.5, 1.5]), {}, "ritz_weights must be >= 0 everywhere, got -0.5"),
    ],
)
def test_errors(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lr_momentum_from_spectrum(*arguments, **options)
