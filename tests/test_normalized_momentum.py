"""Momentum of gradients that are divided first: its stages, and what they do at the edges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax._core.stage import stage_of
from tests.catalogue import assert_close, run, sample_gradients, sample_params

pytestmark = pytest.mark.quick


def test_adopt_is_that_of_optax() -> None:
    params, gradients = sample_params(), sample_gradients(6)
    for clip in (True, False):
        twin = optax.contrib.adopt(0.05, 0.8, 0.9, 1e-3, use_clipping=clip)
        with jax.numpy_dtype_promotion("standard"):
            want, _ = run(twin, params, gradients)
        assert_close(run(aj.adopt(0.05, 0.8, 0.9, 1e-3, clip=clip), params, gradients)[0], want)


@pytest.mark.parametrize("form", ["learning_rate", "fixed"])
@pytest.mark.parametrize("clip", [True, False])
def test_the_first_step_of_adopt_moves_and_decays_nothing(form: str, clip: bool) -> None:
    tx = aj.adopt(0.1, weight_decay=0.5, decay=form, clip=clip)
    params, g = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.0])
    first, state = tx.update(g, tx.init(params), params)
    np.testing.assert_array_equal(first, jnp.zeros(2))
    second, _ = tx.update(g, state, params)
    assert np.all(second != 0)


def test_laprop_is_adam_of_signs_for_a_constant_gradient() -> None:
    """And without momentum it is Adam."""
    params, gradients = sample_params(), sample_gradients(6)
    ours, _ = run(aj.laprop(0.05, b1=0.0, eps=1e-8), params, gradients)
    assert_close(ours, run(aj.adam(0.05, b1=0.0), params, gradients)[0])
    got, _ = run(aj.laprop(0.1), jnp.zeros(3), jnp.tile(jnp.array([2.0, -1e-3, 5.0]), (7, 1)))
    np.testing.assert_allclose(got, [-0.7, 0.7, -0.7], rtol=1e-5)


@pytest.mark.parametrize("by_leaf", [False, True])
def test_a_skipped_step_is_not_in_the_average_of_laprop(by_leaf: bool) -> None:
    """RAdam's first five steps: the first that moves has the full weight, with r_t."""
    g, params = jnp.array([2.0, -1e-3]), jnp.zeros(2)
    tx, steps = aj.laprop(1.0, eps=1e-8, rectify=True), []
    if by_leaf:  # one flag for each leaf
        specs = list(tx.specs)
        at = next(i for i, spec in enumerate(specs) if spec.name == "average_directions")
        tx = aj.compose(*map(stage_of, [*specs[:at], flags_by_leaf().spec, *specs[at:]]))
    radam, state = aj.radam(1.0, b1=0.0), tx.init(params)
    theirs = radam.init(params)
    for _ in range(8):
        update, state = tx.update(g, state, params)
        want, theirs = radam.update(g, theirs, params)
        steps.append((update, want))
    assert not np.any([update for update, _ in steps[:5]])
    np.testing.assert_allclose(*steps[5], rtol=1e-5)
    np.testing.assert_allclose(  # a mean of three rectified steps
        steps[7][0],
        sum(w * want for w, (_, want) in zip((0.81, 0.9, 1.0), steps[5:], strict=True)) / 2.71,
        rtol=1e-5,
    )


def flags_by_leaf() -> Any:
    """A stage that says for each leaf what rectify_variance says for all."""

    def apply(direction: Any, state: Any, step: Any) -> Any:
        flag = step.facts.skip_step
        step.facts.skip_step = jax.tree.map(lambda _: flag, direction)
        return direction, state

    kind = aj.extend.Kind.DIRECTION
    return aj.extend.stage("flags", kind, kind, apply)


def test_nadam_without_momentum_decay_is_that_of_optax() -> None:
    params, gradients = sample_params(), sample_gradients(6)
    got, _ = run(aj.nadam(0.05, momentum_decay=None), params, gradients)
    assert_close(got, run(aj.adam(0.05, nesterov=True), params, gradients)[0], rtol=0, atol=0)


def test_a_huge_gradient_has_no_more_weight_than_another() -> None:
    """The momentum of Adam is full of it; that of LaProp is of steps of bounded length."""
    gradients = jnp.ones((80, 1)).at[6].set(1e6)
    far, _ = run(aj.laprop(0.1, 0.99, 0.5), jnp.zeros(1), gradients)
    assert np.abs(far) < 80 * 0.1 / np.sqrt(1 - 0.5)
    further, _ = run(aj.adam(0.1, 0.99, 0.5), jnp.zeros(1), gradients)
    assert np.abs(further) > 10 * np.abs(far)


def test_a_limit_without_clipping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit=2.0 bounds the elements, which clip=False"):
        aj.adopt(0.1, clip=False, limit=2.0)


def test_eps_as_lower_bound_of_the_root() -> None:
    tx = aj.compose(
        aj.estimate_moments(aj.no_moment(), aj.ema_of_squares(0.5, from_first=True)),
        aj.precondition(2.0, eps_form="clamped"),
    )
    g = jnp.array([4.0, 1.0, 0.0])
    moved: Any = tx.update(g, tx.init(g))[0]
    np.testing.assert_allclose(moved, [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="eps_form must be one of"):
        aj.precondition(eps_form="max")


def test_elements_are_bounded_by_their_magnitude() -> None:
    tx: Any = aj.clip_elements(2.0)
    u = jnp.array([3.0, -1.0, jnp.nan, -jnp.inf])
    np.testing.assert_array_equal(tx.update(u, tx.init(u))[0], [2.0, -1.0, jnp.nan, -2.0])
    u = jnp.array([3.0 + 4.0j, 1.0j, 0.0])
    np.testing.assert_allclose(tx.update(u, tx.init(u))[0], [1.2 + 1.6j, 1.0j, 0.0])


def test_an_average_of_directions_is_corrected_by_its_weights() -> None:
    tx: Any = aj.average_directions(lambda count: jnp.array([0.5, 0.6, 0.7])[count])
    plain: Any = aj.average_directions(0.5, correct=False)
    u = jnp.array([2.0])
    state, other = tx.init(u), plain.init(u)
    for share in (0.5, 0.75, 0.875):
        moved, state = tx.update(u, state)
        short, other = plain.update(u, other)
        np.testing.assert_allclose(moved, u, rtol=1e-6)
        np.testing.assert_allclose(short, share * u, rtol=1e-6)
    empty = aj.restart_moments(state)
    assert not any(map(np.any, jax.tree.leaves(empty.memory)))
