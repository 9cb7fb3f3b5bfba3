"""Wrappers of whole optimizers pass through every function on states, and through each other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamw_jax as aj
from adamw_jax import accumulate, skip_bad_steps
from adamw_jax._core.wrapper import Wrapper
from adamw_jax.update import dynamic_loss_scale, restart_averages
from adamw_jax.update._average_iterates import KINDS
from tests.catalogue import (
    Entry,
    assert_equal,
    assert_finite,
    at,
    avals,
    one_step,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

AROUND = {
    "skip_bad_steps": skip_bad_steps,
    "accumulate": lambda tx: accumulate(tx, 1),
    "dynamic_loss_scale": lambda tx: dynamic_loss_scale(tx, initial=1.0),
    "all": lambda tx: dynamic_loss_scale(accumulate(skip_bad_steps(tx), 1), initial=1.0),
}
table = pytest.mark.parametrize("name", AROUND)


@table
def test_the_run_is_that_of_the_inside(name: str) -> None:
    tx = aj.compose(aj.adamw(0.1, weight_decay=0.1), aj.lookahead(sync_period=2))
    moved, state = run(AROUND[name](tx), sample_params(), sample_gradients())
    while not hasattr(state, "stages"):
        state = state.inner
    assert_equal((moved, state), run(tx, sample_params(), sample_gradients()))


@table
def test_hyperparameters_and_averages(name: str) -> None:
    tx = AROUND[name](aj.compose(aj.adamw(0.1), aj.lookahead()))
    params = sample_params()
    state = aj.set_hyperparams(tx.init(params), learning_rate=0.5)
    _, state = tx.update(at(sample_gradients(), 0), state, params)
    assert float(aj.hyperparams(state)["learning_rate"]) == 0.5
    assert_equal(aj.eval_params(state, jax.tree.map(jnp.zeros_like, params)), params)


@table
def test_it_comes_and_goes_without_a_loss(name: str) -> None:
    """In a checkpoint of ours, and of optax."""
    params, inner = sample_params(), aj.adamw(0.1)
    tx = AROUND[name](inner)
    _, saved = run(inner, params, sample_gradients())
    state, report = aj.migrate_state(saved, tx, params)
    assert not report.dropped
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    back, report = aj.migrate_state(state, inner, params)
    assert_equal(back, saved)
    assert not [entry for entry in report.dropped if "stages" in entry]
    theirs = optax.adamw(0.1)
    with jax.numpy_dtype_promotion("standard"):
        _, old = run(theirs, params, sample_gradients())
    ours = aj.from_optax(old, tx, params)
    assert jax.tree.structure(ours) == jax.tree.structure(state)
    assert_equal(aj.to_optax(ours, theirs, params), old)
    _, after = run(tx, params, sample_gradients())
    if name == "skip_bad_steps":
        _, after = tx.update(jax.tree.map(lambda p: p * jnp.nan, params), after, params)
    aj.to_optax(after, theirs, params)  # counts of the wrapper have no place, and are no loss


@table
def test_what_it_shows(name: str) -> None:
    tx = AROUND[name](aj.adamw(0.1))
    text = aj.summary(tx, sample_params())
    assert isinstance(tx, Wrapper)
    assert tx.declaration.name in text
    assert "estimate_moments" in text
    assert "adamw" not in repr(tx)
    assert "precondition(eps=1e-08)" in repr(tx)
    inside: Any = tx
    _, state = tx.update(at(sample_gradients(), 0), tx.init(sample_params()), sample_params())
    while isinstance(inside, Wrapper):
        inside = inside.inner
    found = aj.curvature.preconditioner(tx, state, sample_params())
    assert_equal(found, aj.curvature.preconditioner(inside, state, sample_params()))


@pytest.mark.sample(2)
@table
def test_steps_compile_once(name: str) -> None:
    """Good and bad ones, and after a change of a hyperparameter; the state keeps its types."""
    tx = AROUND[name](aj.compose(aj.adamw(aj.one_cycle(0.1, 10)), aj.lookahead(sync_period=2)))
    params, state = sample_params(), tx.init(sample_params())
    before, step = avals(state), jax.jit(one_step(tx), donate_argnums=1)
    for i in range(6):
        factor = jnp.float32(jnp.nan if i == 2 else 1.0)
        gradient = jax.tree.map(lambda g, f=factor: g * f, at(sample_gradients(6), i))
        params, state = step(params, state, gradient)
        if i == 3:
            state = aj.set_hyperparams(state, learning_rate=0.5)
    assert step._cache_size() == 1
    assert avals(state) == before
    assert_finite((params, state))


@pytest.mark.sample(2)
@table
def test_counters_saturate(name: str) -> None:
    """At the largest int32 they stay, and good and bad steps are told apart as before."""
    tx, limit = AROUND[name](aj.adamw(0.1)), np.iinfo(np.int32).max
    names = ("skipped", "in_a_row", "overflown", "finite", "windows", "left_out", "count")

    def full(path: Any, x: Any) -> Any:
        return jnp.full_like(x, limit) if getattr(path[-1], "name", None) in names else x

    params, update = sample_params(), jax.jit(tx.update)
    state = jax.tree_util.tree_map_with_path(full, tx.init(params))
    good = at(sample_gradients(), 0)
    for gradient in (jax.tree.map(lambda g: g * jnp.nan, good), good):
        updates, after = update(gradient, state, params)
        assert bool(np.any(updates["scale"])) == (gradient is good)
        for x in jax.tree.leaves(after):
            assert x.dtype != jnp.int32 or np.all(x >= 0)
        counts = {
            path[-1].name: int(np.max(x))
            for path, x in jax.tree_util.tree_leaves_with_path(after)
            if getattr(path[-1], "name", None) in names
        }
        assert counts.pop("in_a_row", limit) in (0, limit)
        assert counts.pop("finite", limit) in (0, limit)
        assert {*counts.values()} == {limit}


@table
def test_nothing_can_follow(name: str) -> None:
    tx = AROUND[name](aj.adamw(0.1))
    for build in (aj.compose, aj.as_optimizer, aj.as_direction, lambda tx: aj.probe(("a", tx))):
        with pytest.raises(TypeError, match=r"put it around the whole recipe, \w+\(compose"):
            build(tx)


def test_boxes_of_nnx() -> None:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    inner = aj.compose(aj.adamw(0.1), aj.lookahead())
    tx = accumulate(skip_bad_steps(inner), 2)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    given = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for gradient in (given, jax.tree.map(lambda g: g * jnp.nan, given)):
        optimizer.update(model, gradient)
    assert int(aj.update.read_skips(optimizer.opt_state)["skipped"]) == 0
    optimizer.opt_state = restart_averages(optimizer.opt_state, tx, nnx.state(model, nnx.Param))
    optimizer.update(model, given)
    aj.migrate_state(optimizer.opt_state, inner, nnx.state(model, nnx.Param))


RESCUED = {
    "lookahead": aj.compose(aj.adamw(0.1), aj.lookahead(sync_period=2)),
    "pullback": aj.lookahead(aj.adam(0.1), 2, inner_state="pullback"),
    **{
        f"average_iterates, {kind}": aj.compose(aj.adamw(0.1), aj.average_iterates(kind=kind))
        for kind in KINDS
    },
    "schedule_free": aj.schedule_free_adamw(0.1),
    "koala_m": Entry("koala_m", "koala_m").make(),
}


@pytest.mark.parametrize("name", RESCUED)
def test_averages_come_back_from_good_parameters(name: str) -> None:
    """With good parameters alone the run is lost again at the next sync, or evaluation is."""
    tx, good = RESCUED[name], sample_params()
    nan = jax.tree.map(lambda g: g * jnp.nan, sample_gradients())
    _, lost = run(tx, good, nan)
    lost = aj.moments.restart_moments(lost)
    state = restart_averages(lost, tx, good)

    def ends(state: Any) -> list[Any]:
        params = good
        for i in range(3):
            updates, state = tx.update(at(sample_gradients(), i), state, params)
            params = optax.apply_updates(params, updates)
        assert count_of(state) == count_of(lost) + 3
        return jax.tree.leaves((params, aj.eval_params(state, params)))

    assert not all(np.all(np.isfinite(x)) for x in ends(lost))
    assert all(np.all(np.isfinite(x)) for x in ends(state))
    assert count_of(state) == count_of(lost) == len(nan["scale"])


def count_of(state: Any) -> int:
    while hasattr(state, "inner"):
        state = state.inner
    return int(state.count)


def test_restarts_that_cannot_be() -> None:
    params = sample_params()
    with pytest.raises(ValueError, match="no slow weights or averages"):
        restart_averages(aj.adamw(0.1).init(params), aj.adamw(0.1), params)
    with pytest.raises(ValueError, match="another structure than"):
        restart_averages(
            RESCUED["lookahead"].init(params), RESCUED["average_iterates, equal"], params
        )
