"""``dynamic_loss_scale``: float16 gradients as in float32, and a scale that finds its place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.update import dynamic_loss_scale, loss_scale, scaled_value_and_grad
from tests.catalogue import PLAIN, Entry, assert_equal, label, reference, run

from tests.catalogue import sample_gradients, sample_params  # isort: skip

pytestmark = pytest.mark.quick


@pytest.mark.sample(2)
@pytest.mark.parametrize("entry", PLAIN, ids=label)
def test_a_scale_that_is_a_power_of_two_changes_nothing(entry: Entry) -> None:
    scaled = jax.tree.map(lambda g: 2.0**10 * g, sample_gradients())
    got, state = run(dynamic_loss_scale(entry.make(), initial=2.0**10), sample_params(), scaled)
    assert_equal((got, state.inner), reference(entry))


def test_the_scale_falls_and_grows() -> None:
    tx = dynamic_loss_scale(aj.adamw(0.1), initial=2.0**24, period=3)
    params = jnp.ones(2, jnp.float16)
    state, before, scales = tx.init(params), tx.init(params), []
    update = jax.jit(tx.update)
    for bad in (1, 1, 0, 0, 1, 0, 0, 0, 0):
        updates, state = update(params * (jnp.inf if bad else 1.0), state, params)
        assert bool(np.any(updates)) != bool(bad)
        scales.append(float(jnp.log2(loss_scale(state))))
    assert scales == [23, 22, 22, 22, 21, 21, 21, 22, 22]
    assert int(state.overflown) == 3
    assert int(state.inner.count) == 6
    assert updates.dtype == jnp.float32
    largest = before._replace(scale=jnp.float32(3e38), finite=jnp.int32(2))
    assert np.isfinite(loss_scale(update(params, largest, params)[1]))
    smallest = before._replace(scale=jnp.float32(1.5e-38))
    assert loss_scale(update(params * jnp.nan, smallest, params)[1]) > 1e-38


def test_a_whole_run_in_float16_by_hand() -> None:
    """The gradient is 1/8; times 2^19 and more it is above 65504, and times 2^18 it is 32768.

    So six halvings from 2^24 to 2^18, and then again and again three steps of 1/8, a doubling, and
    a step that overflows.
    """
    tx = dynamic_loss_scale(aj.sgdw(1.0, momentum=None), initial=2.0**24, period=3)
    master, state, seen = jnp.float32(4.0), tx.init(jnp.float32(4.0)), []
    update = jax.jit(tx.update)
    for _ in range(15):
        half = master.astype(jnp.float16)
        compute = scaled_value_and_grad(lambda p: p.astype(jnp.float32) / 8, loss_scale(state))
        loss, gradient = compute(half)
        assert gradient.dtype == jnp.float16
        assert float(loss) == float(master) / 8
        updates, state = update(gradient, state, master)
        master = optax.apply_updates(master, updates)
        counts = int(state.finite), int(state.overflown), int(state.inner.count)
        seen.append((int(jnp.log2(state.scale)), *counts, float(master)))
    # log2 of the next scale, finite in a row, overflown, steps of SGD, parameter
    assert seen == [
        *((23, 0, 1, 0, 4.0), (22, 0, 2, 0, 4.0), (21, 0, 3, 0, 4.0)),
        *((20, 0, 4, 0, 4.0), (19, 0, 5, 0, 4.0), (18, 0, 6, 0, 4.0)),
        *((18, 1, 6, 1, 3.875), (18, 2, 6, 2, 3.75), (19, 0, 6, 3, 3.625), (18, 0, 7, 3, 3.625)),
        *((18, 1, 7, 4, 3.5), (18, 2, 7, 5, 3.375), (19, 0, 7, 6, 3.25), (18, 0, 8, 6, 3.25)),
        (18, 1, 8, 7, 3.125),
    ]


@pytest.mark.parametrize("scaled", [True, False])
def test_training_in_float16(scaled: bool) -> None:
    """Gradients of 1e-9 vanish in float16; with a scale the run is that of float32."""
    tx = dynamic_loss_scale(aj.adamw(0.1), initial=2.0**24) if scaled else aj.adamw(0.1)

    def train(dtype: Any) -> Any:
        params = jnp.array([1.0, -2.0])
        state = tx.init(params)

        @jax.jit
        def step(params: Any, state: Any) -> Any:
            def loss(x: Any) -> Any:
                return 1e-9 * jnp.sum(jnp.square((x * x).astype(jnp.float32)))

            scale = loss_scale(state) if scaled else jnp.float32(1.0)
            rounded = params.astype(dtype)
            value, gradient = scaled_value_and_grad(loss, scale)(rounded)
            updates, state = tx.update(gradient, state, params, value=value)
            return optax.apply_updates(params, updates), state

        for _ in range(30):
            params, state = step(params, state)
        return np.asarray(params)

    apart = np.max(np.abs(train(jnp.float16) - train(jnp.float32)))
    assert apart < 5e-3 if scaled else apart > 1.0


def test_the_helper_is_value_and_grad() -> None:
    def function(x: Any, y: Any, *, power: int) -> Any:
        return jnp.sum(x**power * y), {"aux": y}

    x, y = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    for argnums in (0, (0, 1), (1,)):
        (value, aux), gradients = scaled_value_and_grad(
            function, jnp.float32(8.0), argnums, has_aux=True
        )(x, y, power=2)
        expected = jax.value_and_grad(function, argnums, has_aux=True)(x, y, power=2)
        assert_equal(((value, aux), jax.tree.map(lambda g: g / 8, gradients)), expected)
    value, gradient = scaled_value_and_grad(jnp.sum, jnp.float32(4.0))(x)
    assert (float(value), [*map(float, gradient)]) == (3.0, [4.0, 4.0])


def test_wrong_numbers() -> None:
    tx = aj.adamw(0.1)
    wrong: list[dict[str, Any]] = [{"initial": 0}, {"growth": 1}, {"backoff": 1}, {"period": 0}]
    for options in wrong:
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a "):
            dynamic_loss_scale(tx, **options)
    with pytest.raises(ValueError, match="must hold one dynamic_loss_scale, found 0"):
        loss_scale(tx.init(jnp.ones(2)))


@pytest.mark.parametrize(
    "around", [aj.skip_bad_steps, lambda tx: aj.accumulate(tx, 2), dynamic_loss_scale]
)
def test_another_wrapper_around_it_is_refused(around: Any) -> None:
    """It would keep from it the gradients after which the scale must fall."""
    with pytest.raises(ValueError, match=r"dynamic_loss_scale must see .* put it outside, dynamic"):
        around(dynamic_loss_scale(aj.adamw(0.1)))
