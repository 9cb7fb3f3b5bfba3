"""Percentile clipping against its equation, written out; its record is in ``golden_storage``."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import adamw_jax as aj
from adamw_jax.gradient import percentile_clipping
from tests.catalogue import assert_close, assert_equal, assert_finite, avals, one_step

pytestmark = pytest.mark.quick

STEPS = 25


def by_hand(norms: np.ndarray, percentile: float, history: int) -> np.ndarray:
    """The factor of every step of one leaf."""
    slots, factors = np.full(history, norms[0]), []
    for t, norm in enumerate(norms, 1):
        slots[t % history] = norm
        limit = np.sort(slots)[int(percentile * history / 100)]
        factors.append(min(1.0, limit / norm))
    return np.array(factors)


def sample() -> dict[str, np.ndarray]:
    """Gradients of two leaves whose sizes vary."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(size=(STEPS, 2)))
    return {
        "a": rng.normal(size=(STEPS, 3)) * sizes[:, :1],
        "b": rng.normal(size=(STEPS, 2, 2)) * sizes[:, 1].reshape(-1, 1, 1),
    }


@functools.cache
def clipped(**options: Any) -> Any:
    """The gradients of every step after the stage, and its last state, in one scan."""
    tx = percentile_clipping(**options)

    @jax.jit
    def run(gradients: Any) -> Any:
        state = tx.init(jax.tree.map(lambda g: g[0], gradients))
        state, seen = jax.lax.scan(lambda s, g: tx.update(g, s)[::-1], state, gradients)
        return seen, state

    return run


def norm(g: Any) -> np.ndarray:
    g = np.asarray(g, np.float64)
    return np.sqrt((g**2).reshape(len(g), -1).sum(1))


@pytest.mark.parametrize(("percentile", "history"), [(5, 7), (50, 8), (0, 3), (99, 10), (10, 1)])
@pytest.mark.usefixtures("x64")
def test_the_equation(percentile: float, history: int) -> None:
    gradients = sample()
    got, state = clipped(percentile=percentile, history=history)(gradients)
    for name, g in gradients.items():
        factors = by_hand(norm(g), percentile, history)
        expected = g * factors.reshape((-1,) + (1,) * (g.ndim - 1))
        np.testing.assert_allclose(got[name], expected, rtol=1e-12)
    assert state.memory.squares.shape == (2, history)
    last = np.sort(np.asarray(state.memory.squares)[0])
    if history <= STEPS:
        np.testing.assert_allclose(last, np.sort(norm(gradients["a"])[-history:] ** 2), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_one_norm_over_all_leaves() -> None:
    gradients = sample()
    got, state = clipped(percentile=30, history=6, whole_tree=True)(gradients)
    total = np.hypot(norm(gradients["a"]), norm(gradients["b"]))
    factors = by_hand(total, 30, 6)
    assert factors.min() < 0.9
    np.testing.assert_allclose(got["a"], gradients["a"] * factors[:, None], rtol=1e-12)
    np.testing.assert_allclose(norm(got["b"]), norm(gradients["b"]) * factors, rtol=1e-12)
    assert state.memory.squares.shape == (1, 6)


@given(
    st.lists(st.floats(-3, 3), min_size=STEPS, max_size=STEPS),
    st.integers(0, STEPS - 1),
    st.floats(-4, 4),
)
def test_properties(logs: list[float], place: int, scale: float) -> None:
    """Nothing grows, the first step stays, the scale cancels, and an outburst is cut down to what
    the run had seen."""
    run = clipped(percentile=50, history=5)
    sizes = np.exp(np.array(logs))
    g = np.zeros((STEPS, 4), np.float32)
    g[:, 1] = sizes
    got = norm(run(g)[0])
    assert np.all(got <= sizes * (1 + 1e-6))
    assert got[0] == pytest.approx(sizes[0], rel=1e-6)
    scaled = run(np.float32(2.0 ** round(scale)) * g)[0]
    np.testing.assert_allclose(norm(scaled), got * 2.0 ** round(scale), rtol=1e-6)
    g[place] *= 1e6
    loud = norm(run(g)[0])
    if place:
        assert loud[place] <= sizes[max(0, place - 5) : place + 1].max() * (1 + 1e-6)


def test_zeros_are_not_recorded() -> None:
    """Also when they come first, they do not stop what follows."""
    g = np.ones((6, 2), np.float32)
    g[[0, 1, 4]] = 0
    got, state = clipped(percentile=5, history=4)(g)
    np.testing.assert_array_equal(got, g)
    np.testing.assert_array_equal(state.memory.squares, np.full((1, 4), np.float32(2)))


def test_the_state_starts_finite() -> None:
    """Whoever asks whether all is finite is not told of a fault, also before a first zero."""
    with jax.debug_infs(True):
        tx = percentile_clipping(50, 3)
        state = tx.init(jnp.ones(2))
        _, state = tx.update(jnp.zeros(2), state)
    np.testing.assert_array_equal(state.memory.squares, np.zeros((1, 3)))


def test_what_is_not_finite() -> None:
    """A NaN stays in its element; squares that overflow are not recorded, their leaf is clipped."""
    g = np.ones((5, 2), np.float32)
    g[0, 0], g[2, 1], g[3] = np.nan, np.inf, 1e30
    got, state = clipped(percentile=50, history=4)(g)
    np.testing.assert_array_equal(got[0], [np.nan, 1])
    np.testing.assert_array_equal(got[1], [1, 1])
    assert got[2, 0] == 0
    assert not np.isfinite(got[2, 1])
    np.testing.assert_allclose(got[3], [1, 1], rtol=1e-6)
    np.testing.assert_array_equal(got[4], [1, 1])
    np.testing.assert_array_equal(state.memory.squares, np.full((1, 4), np.float32(2)))


def test_in_a_recipe() -> None:
    """One trace under donation, stable dtypes with bfloat16 and complex leaves, and gradients."""
    params = {"low": jnp.ones(4, jnp.bfloat16), "complex": jnp.ones(2, jnp.complex64), "none": None}
    tx = aj.compose(percentile_clipping(20, 10), aj.adamw(0.1))
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradient: Any) -> Any:
        traces.append(1)
        return one_step(tx)(params, state, gradient)

    state = tx.init(params)
    start = avals(state)
    assert avals(jax.eval_shape(tx.init, params)) == start
    g = jax.tree.map(lambda p: 0.5 * jnp.ones_like(p), params)
    for _ in range(3):
        params, state = step(params, state, g)
    assert len(traces) == 1
    assert avals(state) == start
    assert_finite(params)

    def size(g: jax.Array) -> jax.Array:
        tx = percentile_clipping(0, 2)
        _, state = tx.update(jnp.ones(3), tx.init(g))
        return jnp.sum(tx.update(g, state)[0] ** 2)

    derivative = jax.jit(jax.grad(size))
    # Clipped to a norm that does not change, and not clipped.
    np.testing.assert_allclose(derivative(jnp.full(3, 2.0)), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(derivative(jnp.full(3, 0.5)), np.ones(3), rtol=1e-6)
    assert_finite(derivative(jnp.zeros(3)))


def test_in_the_state_of_others() -> None:
    """Alone in optax.chain, on some leaves, mapped, and with placeholders in the state."""
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    stage = percentile_clipping(history=4)
    some = aj.compose(aj.only(stage, "a"), aj.sgdw(0.1))
    assert some.init(params).stages["percentile_clipping"].squares.shape == (1, 4)
    placed = optax.tree.map_params(stage, lambda x: x[..., None], stage.init(params))
    assert_equal(placed, stage.init(params))
    empty: Any = {}
    assert stage.update(empty, stage.init(empty))[0] == {}
    many = {name: jnp.stack([p, 9 * p]) for name, p in params.items()}
    state = jax.vmap(stage.init)(many)
    got, _ = jax.vmap(stage.update)(many, state)
    assert_close(got, many)


def test_bad_input() -> None:
    for options, message in (
        ({"percentile": 100}, "percentile must be a number >= 0 and < 100, got 100"),
        ({"percentile": -1}, "percentile must be a number"),
        ({"percentile": None}, "percentile must be a number"),
        ({"history": 0}, "history must be a whole number >= 1, got 0"),
        ({"history": 2.5}, "history must be a whole number"),
        ({"whole_tree": 1}, "whole_tree must be True or False, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            percentile_clipping(**options)
    stage = percentile_clipping()
    state = stage.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"has 1 leaves, but the parameters .* had 2"):
        stage.update({"a": jnp.ones(2)}, state)
    with pytest.raises(TypeError, match="only floating-point arrays"):
        stage.init({"a": jnp.ones(2, jnp.int32)})
