"""``accumulate``: k micro-batches are one step of their mean, without those that are lost."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax import accumulate
from benchmarks import hlo
from tests.catalogue import (
    PLAIN,
    Entry,
    assert_close,
    at,
    label,
    reference,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick


@pytest.mark.sample(3)
@pytest.mark.parametrize("entry", PLAIN, ids=label)
def test_every_optimizer(entry: Entry) -> None:
    """Twice the same micro-batch is a step with it; in between nothing moves."""
    twice = jax.tree.map(lambda g: np.repeat(g, 2, axis=0), sample_gradients())
    got, state = run(accumulate(entry.make(), 2), sample_params(), twice)
    assert_close((got, state.inner), reference(entry))


def test_a_lost_micro_batch_is_left_out_of_the_mean() -> None:
    tx = accumulate(aj.sgdw(1.0, momentum=None), 3)
    params, state = jnp.ones(2), None
    state = tx.init(params)
    given = [([1.0, 2.0], 1.0), ([np.nan, 2.0], 1.0), ([2.0, 4.0], np.inf)]
    given += [([np.nan, 1.0], 1.0)] * 3
    given += [([np.inf, 1.0], 1.0), ([3.0, 5.0], 1.0), ([1.0, 1.0], 1.0)]
    found = []
    for update in (tx.update, jax.jit(tx.update)):
        state, moves = tx.init(params), []
        for gradient, loss in given:
            updates, state = update(jnp.array(gradient), state, params, value=jnp.float32(loss))
            moves.append([*map(float, updates)])
        found.append(moves)
        assert (int(state.left_out), int(state.windows), int(state.inner.count)) == (6, 3, 2)
    none = [0.0, 0.0]
    assert found[0] == found[1] == [none] * 2 + [[-1.0, -2.0]] + [none] * 5 + [[-2.0, -3.0]]


def test_the_optimizer_gets_the_mean_loss() -> None:

    def update(updates: Any, state: Any, params: Any = None, *, value: Any, **extra: Any) -> Any:
        return updates, value

    keeps: Any = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0.0), update)
    tx, seen = accumulate(keeps, 2), []
    state = tx.init(jnp.ones(2))
    for loss in (1.0, 3.0, np.nan, 4.0):
        _, state = tx.update(jnp.ones(2), state, jnp.ones(2), value=loss)
        seen.append(float(state.inner))
    assert seen == [0.0, 2.0, 2.0, 4.0]


def test_the_number_follows_a_schedule() -> None:
    """Windows of 1, 2 and 3, also while one is under way."""
    tx, params = accumulate(aj.sgdw(0.1), lambda windows: windows + 1), jnp.ones(2)
    state, ends = tx.init(params), []
    update = jax.jit(tx.update)
    for i in range(6):
        updates, state = update(params, state, params)
        ends += [i] if np.any(updates) else []
    assert ends == [0, 2, 5]
    with pytest.raises(ValueError, match="every must be a whole number >= 1, got 0"):
        accumulate(aj.sgdw(0.1), 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_buffer_is_float32(dtype: Any) -> None:
    """A thousand small gradients beside a large one are not lost."""
    tx, params = accumulate(aj.sgdw(1.0, momentum=None), 1001), jnp.ones(1, dtype)
    state = tx.init(params)
    assert state.total.dtype == jnp.float32
    gradients = jnp.full((1001, 1), 2.0**-8, dtype).at[0].set(16.0)

    def step(state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return state, updates

    _, updates = jax.lax.scan(step, state, gradients)
    np.testing.assert_allclose(updates[-1], -(16.0 + 1000 * 2.0**-8) / 1001, rtol=1e-5)


@pytest.mark.optimized
def test_less_traffic_than_multi_steps() -> None:
    """One optimizer in k, and no copy of its state."""
    params = {f"l{i}": jax.ShapeDtypeStruct((256, 128), jnp.float32) for i in range(2)}
    size, found = 2 * 256 * 128, []
    for tx in (
        accumulate(aj.adamw(1e-3), 4),
        optax.MultiSteps(aj.adamw(1e-3), 4).gradient_transformation(),
    ):

        def step(params: Any, state: Any, gradient: Any, tx: Any = tx) -> Any:
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        with jax.numpy_dtype_promotion("standard"):
            compiled = hlo.compile_step(step, params, jax.eval_shape(tx.init, params), params)
        found.append((hlo.bytes_accessed(compiled) / size, hlo.scratch_bytes(compiled) / size))
    ours, theirs = found
    assert ours[0] < 0.8 * theirs[0]  # both branches counted
    assert ours[1] < 0.5 * theirs[1]


def test_half_a_window_is_not_given_to_optax() -> None:
    params, tx = sample_params(), accumulate(aj.adamw(0.1), 2)
    state = tx.init(params)
    for whole in (False, True):
        _, state = tx.update(at(sample_gradients(), 0), state, params)
        if whole:
            aj.to_optax(state, optax.adamw(0.1), params)
        else:
            with pytest.raises(ValueError, match="no place for 'total/dense/bias'"):
                aj.to_optax(state, optax.adamw(0.1), params)


def test_as_multi_steps() -> None:
    many = sample_gradients(6)
    ours, _ = run(accumulate(aj.adamw(0.1), 3), sample_params(), many)
    with jax.numpy_dtype_promotion("standard"):
        theirs, _ = run(
            optax.MultiSteps(aj.adamw(0.1), 3).gradient_transformation(), sample_params(), many
        )
    assert_close(ours, theirs)


def test_a_sum_that_overflows_is_skipped_by_the_guard_inside() -> None:
    """Each gradient is finite, their sum is not."""
    tx = accumulate(aj.skip_bad_steps(aj.adamw(0.1)), every=2)
    params, large = jnp.ones(3), jnp.full(3, 3e38)
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(large, state, params)
        assert not np.any(updates)
    assert int(aj.update.read_skips(state)["skipped"]) == 1
