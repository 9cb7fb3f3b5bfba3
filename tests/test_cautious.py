"""Cautious updates follow the gradient, and cautious decay never works against the step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.direction._decay import FORMS
from tests.catalogue import assert_close, at, run, sample_gradients, sample_params

EXTREME = jnp.array([1e-30, -1e-30, 1e30, -1e30])


def given(direction: Any) -> Any:
    """A stage that makes this direction of any gradient."""

    def apply(gradient: Any, state: Any, step: Any) -> Any:
        del gradient, step
        return direction, state

    return aj.extend.stage("given", aj.extend.Kind.GRADIENT, aj.extend.Kind.DIRECTION, apply)


def test_cautious_behind_a_direction_of_others() -> None:
    """The error of create() has the code, which runs as it stands."""
    direction = aj.as_direction(optax.scale_by_lion())
    with pytest.raises(TypeError, match=r"create\(compose\(direction, adamw_jax.cautious\(\)\)"):
        aj.create(direction, 0.1, cautious=True)
    tx = aj.create(aj.compose(direction, aj.cautious()), 0.1)
    g = jnp.array([1.0, -1.0])
    np.testing.assert_allclose(tx.update(g, tx.init(g), g)[0], [-0.1, 0.1])


def cautiously(direction: Any, gradient: Any) -> Any:
    tx = aj.compose(given(direction), aj.cautious())
    return jax.jit(tx.update)(gradient, tx.init(gradient), gradient)[0]


def test_elements_of_another_sign_wait_and_the_others_make_up_for_them() -> None:
    u, g = jnp.array([1.0, -2.0, 3.0, 0.0]), jnp.array([5.0, 1.0, 1e-30, 4.0])
    np.testing.assert_array_equal(cautiously(u, g), [2.0, 0.0, 6.0, 0.0])
    # Signs are compared, not a product, which under- or overflows.
    np.testing.assert_array_equal(cautiously(EXTREME, EXTREME), EXTREME)
    np.testing.assert_array_equal(cautiously(EXTREME, EXTREME[::-1]), jnp.zeros(4))


def test_the_share_has_a_floor() -> None:
    u = jnp.ones(5000)
    moved = cautiously(u, -u.at[7].set(-1.0))
    np.testing.assert_allclose(moved[7], 1000.0, rtol=1e-6)
    assert np.count_nonzero(moved) == 1


@pytest.mark.optimized  # XLA may turn a product with a mask into a select
def test_a_nan_stays_in_its_element() -> None:
    moved = cautiously(jnp.array([1.0, jnp.nan]), jnp.array([1.0, jnp.nan]))
    np.testing.assert_array_equal(moved, [2.0, jnp.nan])
    empty = cautiously({"e": jnp.zeros((0, 3))}, {"e": jnp.zeros((0, 3))})
    assert empty["e"].shape == (0, 3)


def test_a_complex_element_moves_within_a_right_angle() -> None:
    u = jnp.array([1 + 1j, 1 + 1j])
    np.testing.assert_allclose(cautiously(u, jnp.array([1 - 0.5j, 1 - 2j])), [2 + 2j, 0])


def test_the_gradient_is_that_of_the_moments() -> None:
    """L2 takes part, clipping does not change a sign."""
    params, g = jnp.array([4.0, -4.0]), jnp.array([-1.0, 1.0])
    tx = aj.compose(aj.l2_decay(1.0), given(jnp.ones(2)), aj.cautious())
    np.testing.assert_array_equal(tx.update(g, tx.init(params), params)[0], [2.0, 0.0])


def test_only_some_leaves_and_packed_leaves() -> None:
    params, gradients = sample_params(), sample_gradients(6)
    matrices = aj.compose(
        aj.scale_by_adam(), aj.only(aj.cautious(), aj.matrices_only), aj.scale_by_learning_rate(0.1)
    )
    got, _ = run(matrices, params, gradients)
    plain, _ = run(aj.adam(0.1), params, gradients)
    every, _ = run(aj.adam(0.1, cautious=True), params, gradients)
    assert_close(got["dense"]["kernel"], every["dense"]["kernel"])
    assert_close([got["dense"]["bias"], got["scale"]], [plain["dense"]["bias"], plain["scale"]])
    packed, _ = run(aj.pack_small_leaves(aj.adam(0.1, cautious=True)), params, gradients)
    assert_close(packed, every)


def test_alone_it_says_what_it_needs() -> None:
    tx = optax.chain(aj.scale_by_adam(), aj.cautious())
    params = sample_params()
    with pytest.raises(ValueError, match=r"needs the gradient .* into one compose\(\)"):
        tx.update(at(sample_gradients(1), 0), tx.init(params), params)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("complex_", [False, True])
def test_cautious_decay_works_only_with_the_step(form: str, complex_: bool) -> None:
    u, theta = jnp.array([1.0, -1.0, 0.0, 2.0]), jnp.array([3.0, 3.0, 3.0, -3.0])
    if complex_:
        u, theta = (
            x.astype(complex) * jnp.asarray(phase) for x, phase in ((u, 1 + 1j), (theta, 1j))
        )

    def update(**options: Any) -> Any:
        decay = aj.decoupled_decay(0.1, form=form, learning_rate=0.5, **options)
        rate = aj.scale_by_learning_rate(0.5)
        order = [decay, rate] if form == "learning_rate" else [rate, decay]
        tx = aj.compose(given(u), *order)
        return tx.update(theta, tx.init(theta), theta)[0]

    usual = update()
    assert np.all(usual != -0.5 * u)
    want = jnp.where(jnp.array([True, False, True, False]), usual, -0.5 * u)
    np.testing.assert_allclose(update(cautious=True), want, rtol=1e-6)


def test_cautious_adamw_is_what_one_composes() -> None:
    params, gradients = sample_params(), sample_gradients(6)
    tx = aj.compose(
        aj.scale_by_lion(), aj.cautious(), aj.decoupled_decay(1e-3), aj.scale_by_learning_rate(0.1)
    )
    got, _ = run(tx, params, gradients)
    assert_close(got, run(aj.lion(0.1, cautious=True), params, gradients)[0])
