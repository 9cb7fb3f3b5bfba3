"""Faults that no other file injects; the table of docs/robust.md says where all of them are."""

from __future__ import annotations

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

import adamw_jax as aj
from adamw_jax.state import restore_checkpoint, save_checkpoint
from tests.catalogue import PLAIN, Entry, assert_equal, assert_finite, rows, run, sample_params

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.quick

GUARDED = aj.skip_bad_steps(
    aj.compose(aj.clip_gradient(1.0), aj.adamw(0.1), aj.lookahead(sync_period=2))
)


@functools.cache
def guarded_step() -> Any:
    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = GUARDED.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


@given(
    leaf=st.integers(0, 2),
    element=st.floats(0, 1, exclude_max=True),
    at=st.integers(0, 4),
    values=st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]), min_size=1, max_size=12),
)
def test_bad_gradients_anywhere(leaf: int, element: float, at: int, values: list[float]) -> None:
    """One to twelve in a row: the run is that without them, to the bit; 3e38 is clipped."""
    step, params = guarded_step(), sample_params()
    gradients = [jax.tree.map(lambda p, i=i: jnp.cos(p + i), params) for i in range(5)]
    bad = [value for value in values if not np.isfinite(value)]

    def end(spoilt: list[float]) -> Any:
        now, state = params, GUARDED.init(params)
        for i, gradient in enumerate(gradients):
            for value in spoilt if i == at else ():
                leaves, structure = jax.tree.flatten(gradient)
                index = int(element * leaves[leaf].size)
                changed = leaves[leaf].ravel().at[index].set(value).reshape(leaves[leaf].shape)
                leaves[leaf] = changed
                now, state = step(now, state, structure.unflatten(leaves))
            now, state = step(now, state, gradient)
        return now, state

    now, state = end(values)
    assert_finite((now, state.inner))
    assert int(aj.read_skips(state)["skipped"]) == len(bad)
    if len(bad) == len(values):
        without = end([])
        assert_equal((now, state.inner), (without[0], without[1].inner))


SMALL = np.array([1e-40, -1e-45, 1.2e-38, -1.2e-38, 0.0, -0.0, 1e-20, -1e-20, 1e-7, -3.0, 1e4, 1.0])


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_subnormals_and_signed_zeros(entry: Entry) -> None:
    """All stays finite, and opposite gradients move as far the opposite way."""
    gradients = jnp.asarray(np.stack([np.roll(SMALL, i) for i in range(3)]), jnp.float32)
    tx, start = entry.make(**entry.exact(weight_decay=None)), jnp.zeros(12)
    ways = [run(tx, start, sign * gradients) for sign in (1.0, -1.0)]
    assert_finite([params for params, _ in ways])
    assert_equal(ways[0][0], -ways[1][0])
    zeros = jnp.tile(gradients[:1, 4:6], (3, 6))  # of both signs
    assert not np.any(run(tx, start, zeros)[0])


KINDS: dict[str, Any] = {
    "lookahead": aj.compose(aj.adamw(0.1), aj.lookahead(sync_period=3)),
    "equal": aj.compose(aj.adamw(0.1), aj.average_iterates(kind="equal")),
    "ema": aj.compose(aj.adamw(0.1), aj.average_iterates(kind="ema")),
    "last": aj.compose(aj.adamw(0.1), aj.average_iterates(kind="last", window=3)),
    "schedule-free": aj.schedule_free_adamw(0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_for_evaluation_stay_out_of_training(kind: str, tmp_path: pathlib.Path) -> None:
    """A run that evaluates, saves and restores at every step is the run that does not."""
    tx = KINDS[kind]
    update = jax.jit(tx.update)

    def end(interrupted: bool) -> Any:
        params = {"w": jnp.linspace(-1.0, 1.0, 6)}
        state, evaluated = tx.init(params), None
        for step in range(5):
            updates, state = update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
            if interrupted:
                evaluated = aj.eval_params(state, params)
                assert np.any(evaluated["w"] != params["w"]) or step in (0, 2)
                save_checkpoint(tmp_path, step, tx, params, state)
                back = restore_checkpoint(tmp_path, tx, params)
                params, state = back.params, back.state
                assert_equal(aj.eval_params(state, params), evaluated)
        return params, state

    assert_equal(end(True), end(False))


def test_decay_is_neither_l2_nor_twice() -> None:
    """Without a gradient AdamW takes lr wd theta, of what decays; its size does not matter."""
    params = {"kernel": jnp.linspace(1.0, 2.0, 4), "bias": jnp.ones(2)}
    mask = aj.except_named("bias")

    def moved(tx: Any, factor: float) -> Any:
        gradient = jax.tree.map(lambda p: jnp.sin(p) * jnp.float32(factor), params)
        return jax.device_get(tx.update(gradient, tx.init(params), params)[0])

    decays = aj.adamw(0.1, weight_decay=0.01, mask=mask)
    still = moved(decays, 0.0)
    np.testing.assert_allclose(still["kernel"], -0.1 * 0.01 * params["kernel"], rtol=1e-6)
    assert not np.any(still["bias"])
    small, large = (moved(decays, factor) for factor in (1.0, 1e6))
    np.testing.assert_allclose(large["kernel"], small["kernel"], rtol=1e-5)
    regularized = aj.adam(0.1, l2=0.01)
    apart = np.abs(moved(regularized, 0.0)["kernel"] - still["kernel"])
    assert np.all(apart > 0.09)  # the sign of the parameter, not a share of it
    with pytest.raises(ValueError, match="decoupled_decay"):
        aj.compose(aj.decoupled_decay(0.1), aj.decoupled_decay(0.1), aj.scale_by_learning_rate(1.0))


def test_every_row_of_the_table_names_tests_that_exist() -> None:
    page = (ROOT / "docs" / "robust.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.M), name
