"""Optimizers of optax as stages: the same steps, and all that may follow them."""

from __future__ import annotations

import pathlib
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import adamw_jax as aj

pytestmark = pytest.mark.quick

PARAMS = {"bias": jnp.linspace(-1.0, 1.0, 8), "kernel": jnp.linspace(-2.0, 2.0, 32).reshape(4, 8)}
RATE = 0.01
OPTIMIZERS = {
    "adafactor": optax.adafactor(RATE),
    "adopt": optax.contrib.adopt(RATE),
    "dadapt_adamw": optax.contrib.dadapt_adamw(),
    "inject": optax.inject_hyperparams(optax.lion)(learning_rate=RATE),
    "lion": optax.lion(RATE),
    "madgrad": optax.contrib.madgrad(RATE),
    "muon": optax.contrib.muon(RATE),
    "partition": optax.partition(
        {"a": optax.lion(RATE), "b": optax.sgd(0.1, momentum=0.9)}, {"bias": "a", "kernel": "b"}
    ),
    "prodigy": optax.contrib.prodigy(),
    "rprop": optax.rprop(RATE),
    "schedule_free": optax.contrib.schedule_free(optax.sgd(0.1), 0.1),
    "sm3": optax.sm3(RATE),
}
DIRECTIONS = {
    "lion": optax.scale_by_lion(),
    "rms": optax.scale_by_rms(),
    "sign": optax.scale_by_sign(),
    "sm3": optax.scale_by_sm3(),
}


@pytest.fixture(autouse=True)
def promotion():
    """Some optimizers of optax mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def path_of(tx: Any, params: Any = PARAMS, steps: int = 3) -> tuple[list[Any], Any]:
    """The parameters after each step, and the last state."""
    state, update, path = tx.init(params), jax.jit(tx.update), []
    for step in range(steps):
        gradients = jax.tree.map(lambda p, step=step: jnp.cos(3.0 * p + step), params)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def mean_of(path: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *path)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_its_steps_and_can_be_averaged(name: str) -> None:
    tx = OPTIMIZERS[name]
    own_average = name == "schedule_free"
    want, theirs = path_of(tx)
    tail = None if own_average else aj.average_iterates(0, 1, "equal")
    got, state = path_of(aj.compose(aj.as_optimizer(tx), tail))
    chex.assert_trees_all_close(got, want, rtol=1e-6)  # compiled together, the last bit may differ
    evaluated = aj.eval_params(state, got[-1])
    if own_average:
        chex.assert_trees_all_close(
            evaluated, optax.contrib.schedule_free_eval_params(theirs, want[-1]), rtol=1e-6
        )
    else:
        chex.assert_trees_all_close(evaluated, mean_of(want), rtol=1e-5)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_direction_takes_our_decay_and_learning_rate(name: str) -> None:
    theirs = optax.chain(
        DIRECTIONS[name], optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(RATE)
    )
    ours = aj.create(aj.as_direction(DIRECTIONS[name]), RATE, weight_decay=0.1)
    (want, _), (got, state) = path_of(theirs), path_of(ours)
    chex.assert_trees_all_close(got, want, rtol=1e-6)
    assert sorted(aj.hyperparams(state)) == ["learning_rate", "weight_decay"]


def test_negate_makes_a_direction_of_an_optimizer_with_learning_rate_1() -> None:
    ours = aj.create(aj.as_direction(optax.lion(1.0, weight_decay=0.0), negate=True), RATE)
    want = path_of(optax.lion(RATE, weight_decay=0.0))[0]
    chex.assert_trees_all_close(path_of(ours)[0], want, rtol=1e-6)


def test_rules_schedules_storage_and_pins_reach_a_direction() -> None:
    params = {"bias": jnp.ones(8), "kernel": jnp.ones((64, 128))}
    rules = aj.parameter_rules(
        {"bias": aj.Rule(freeze=True)}, default=aj.Rule(learning_rate_factor=0.5)
    )
    tx = aj.create(
        aj.as_direction(optax.scale_by_lion()),
        aj.one_cycle(1.0, 10, momentum=None),
        rules=rules,
        storage={"mu": "8bit"},
    )
    state = tx.init(params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.stages)} >= {"uint8"}
    state = aj.set_hyperparams(state, learning_rate=0.2)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    assert not updates["bias"].any()
    chex.assert_trees_all_close(updates["kernel"], jnp.full((64, 128), -0.1), rtol=1e-6)


def test_a_tail_joins_a_trained_optimizer() -> None:
    tx = aj.compose(aj.as_optimizer(optax.contrib.muon(RATE)))
    (*_, params), state = path_of(tx)
    longer = aj.compose(tx, aj.lookahead())
    moved, report = aj.migrate_state(state, longer, params)
    assert not report.dropped
    assert all("lookahead" in name or "slow" in name for name in report.started)
    chex.assert_trees_all_equal(moved.stages["partition"], state.stages["partition"])
    chex.assert_trees_all_close(aj.eval_params(moved, params), params)


def test_extra_arguments_reach_an_optimizer() -> None:
    def loss(p: Any) -> jax.Array:
        return sum((jnp.sum((x - 3.0) ** 2) for x in jax.tree.leaves(p)), start=jnp.zeros([]))

    tx = aj.compose(aj.as_optimizer(optax.lbfgs()), aj.lookahead(sync_period=3))
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(2):
        value, gradients = optax.value_and_grad_from_state(loss)(params, state=state)
        updates, state = tx.update(
            gradients, state, params, value=value, grad=gradients, value_fn=loss
        )
        params = optax.apply_updates(params, updates)
    assert loss(params) < 1e-6


def test_weights_of_sam_are_those_before_its_adversarial_step() -> None:
    tx = optax.contrib.sam(optax.sgd(0.1), optax.contrib.normalize())
    first, state = path_of(tx, steps=1)
    chex.assert_trees_all_equal(aj.eval_params(state, first[-1]), PARAMS)
    both, state = path_of(tx, steps=2)
    chex.assert_trees_all_equal(aj.eval_params(state, both[-1]), both[-1])


def test_weights_of_optax_lookahead_are_the_slow_ones() -> None:
    params = optax.LookaheadParams(PARAMS, jax.tree.map(lambda p: 2 * p, PARAMS))
    state = optax.lookahead(optax.sgd(0.1), 5, 0.5).init(params)
    chex.assert_trees_all_equal(aj.eval_params(state, params), params.slow)


def test_mapped_schedule_free_states_are_evaluated_member_by_member() -> None:
    tx = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), PARAMS)
    state = jax.vmap(tx.init)(many)
    updates, state = jax.vmap(tx.update)(many, state, many)
    many = optax.apply_updates(many, updates)
    want = jax.vmap(optax.contrib.schedule_free_eval_params)(state, many)
    chex.assert_trees_all_close(aj.eval_params(state, many), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: aj.compose(optax.lion(RATE), aj.lookahead()), "as_optimizer"),
        (lambda: aj.compose(optax.contrib.muon(RATE), aj.average_iterates()), "as_optimizer"),
        (
            lambda: aj.compose(optax.scale_by_lion(), aj.scale_by_learning_rate(RATE)),
            "as_direction",
        ),
        (lambda: aj.compose(optax.MultiSteps(aj.adamw(RATE), 2), aj.lookahead()), "whole recipe"),
        (lambda: aj.as_optimizer(cast(Any, optax.MultiSteps(aj.sgdw(RATE), 2))), "whole recipe"),
        (lambda: aj.as_optimizer(aj.scale_by_adam()), "as it is"),
        (lambda: aj.as_direction(aj.adamw(RATE)), "as it is"),
        (lambda: aj.as_direction(optax.sgd), "optax transformation"),  # type: ignore[arg-type]
        (lambda: aj.create(optax.scale_by_lion(), RATE), "as_direction"),  # type: ignore[arg-type]
        (lambda: aj.create(aj.adamw(RATE), RATE), "direction"),
        (lambda: aj.create(aj.as_direction(optax.scale_by_lion()), RATE, amsgrad=True), "amsgrad"),
    ],
)
def test_errors_name_the_adapter(make: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        make()


def test_what_says_itself_what_it_gives_passes_the_adapters() -> None:
    tx, direction = aj.adamw(RATE), aj.scale_by_adam()
    assert aj.as_optimizer(tx) is tx
    assert aj.as_direction(direction) is direction


def test_a_state_that_cannot_be_converted_goes_on_as_the_error_says() -> None:
    for theirs, ours in {
        optax.lion(RATE): aj.lion(RATE),
        optax.contrib.muon(RATE): aj.adamw(RATE),
    }.items():
        (*_, params), saved = path_of(theirs)
        tx = aj.compose(("name", aj.as_optimizer(theirs)), aj.lookahead())
        with pytest.raises(ValueError, match=r"as_optimizer\(.*_replace\(stages="):
            aj.from_optax(saved, ours, params)
        with pytest.raises(ValueError, match=r"as_optimizer\(.*_replace\(stages="):
            aj.migrate_state(saved, tx, params)
        state = tx.init(params)
        state = state._replace(stages={**state.stages, "name": saved})
        gradient = jax.tree.map(jnp.ones_like, params)
        chex.assert_trees_all_close(
            tx.update(gradient, state, params)[0], theirs.update(gradient, saved, params)[0]
        )


def test_an_optimizer_is_saved_and_sharded(tmp_path: pathlib.Path) -> None:
    tx = aj.compose(aj.as_optimizer(optax.contrib.muon(RATE)), aj.lookahead())
    (*_, params), state = path_of(tx)
    aj.state.save_checkpoint(tmp_path, 1, tx, params, state)
    chex.assert_trees_all_equal(aj.state.restore_checkpoint(tmp_path, tx, params).state, state)
    place = jax.sharding.NamedSharding(jax.make_mesh((1,), ("x",)), jax.sharding.PartitionSpec())
    shardings = aj.state_shardings(tx, params, jax.tree.map(lambda _: place, params))
    assert jax.tree.structure(shardings) == jax.tree.structure(state)


def test_only_the_fast_weights_of_lookahead_are_refused() -> None:
    tx = optax.lookahead(optax.sgd(RATE), sync_period=3, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced({"w": jnp.ones(2)})
    with pytest.raises(TypeError, match="give the whole LookaheadParams"):
        aj.eval_params(tx.init(pair), pair.fast)


def test_hints() -> None:
    with pytest.raises(TypeError, match="give momentum="):
        aj.sgdw(0.1, betas=(0.9, 0.99))  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match=r"direction.cautious\(\)"):
        aj.nadam(0.1, cautious=True)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="negate=True"):
        aj.create(aj.as_optimizer(optax.lion(1e-3)), 0.1)
    with pytest.raises(ValueError, match="give its Rule name='head'"):
        aj.set_hyperparams(aj.adamw(0.1).init(jnp.ones(2)), {"head.learning_rate": 0.1})
    assert "schedule_free" in aj.summary(optax.contrib.schedule_free_sgd(0.1), jnp.ones(2))
