"""Leaves that join a run or leave it: those that join begin afresh, the others do not notice."""

from __future__ import annotations

from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamw_jax as aj
from adamw_jax._core.late import group_of, groups_for
from adamw_jax.curvature import preconditioner
from adamw_jax.direction._decay import OF_PEAK
from tests.catalogue import (
    EVERY,
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    at,
    label,
    one_operation_at_a_time,
    one_step,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

BEFORE, STEPS = 4, 9
GRADIENTS = sample_gradients(STEPS)
FALL = optax.linear_schedule(0.1, 0.0, 12)
STILL = {"dense": {"bias": False, "kernel": True}, "scale": True}
SMALL = {"dense": {"bias": True, "kernel": False}, "scale": True}
KEEP_ONE_FOR_ALL = ("schedule_free_adamw", "schedule_free_radam")
"""Averages of weights that the update reads, which count the frozen value as the past."""
REFUSED = ("koala_m",)
BY_LEAF = [
    entry
    for entry in EVERY
    if entry.scope != "tree"
    and entry.name not in (*KEEP_ONE_FOR_ALL, *REFUSED)
    and "max_grad_norm" not in entry.options  # a norm of all leaves
    and entry.options.get("decay") not in OF_PEAK  # needs the peak of the schedule
]


def trained(tx: Any, steps: range, params: Any, state: Any, gradients: Any = GRADIENTS) -> Any:
    """Parameters and state after some of the gradients."""
    step = one_operation_at_a_time(one_step(tx), params, state, at(gradients, 0))
    for i in steps:
        params, state = step(params, state, at(gradients, i))
    return params, state


def frozen(tx: Any) -> Any:
    """The recipe with two leaves that do not move."""
    return aj.compose(tx, frozen=STILL)


def thawed(tx: Any) -> Any:
    """Parameters and state when the two leaves join."""
    params = sample_params()
    params, state = trained(frozen(tx), range(BEFORE), params, frozen(tx).init(params))
    return params, aj.migrate_state(state, tx, params, thaw=True)[0]


def alone(tree: Any) -> Any:
    """The two leaves."""
    return {"dense": {"kernel": tree["dense"]["kernel"]}, "scale": tree["scale"]}


@pytest.mark.sample(10)
@pytest.mark.parametrize("entry", BY_LEAF, ids=label)
def test_a_leaf_that_joins_begins_afresh(entry: Entry) -> None:
    """It moves as with an optimizer of its own at the same step of the schedule."""
    tx = aj.compose(entry.make(FALL))
    params, state = thawed(tx)
    got, after = trained(tx, range(BEFORE, STEPS), params, state)
    fresh = tx.init(alone(params))
    fresh = fresh._replace(count=jnp.full_like(fresh.count, BEFORE))
    expected, _ = trained(tx, range(BEFORE, STEPS), alone(params), fresh, alone(GRADIENTS))
    assert_close(alone(got), expected, rtol=1e-6)
    whole, _ = trained(frozen(tx), range(STEPS), sample_params(), frozen(tx).init(sample_params()))
    assert_equal(got["dense"]["bias"], whole["dense"]["bias"])
    assert int(after.count) == STEPS


@pytest.mark.parametrize("name", KEEP_ONE_FOR_ALL)
def test_an_average_that_the_update_reads(name: str) -> None:
    """It counts the frozen value as the past of the leaf: the iterate z begins there."""
    tx = aj.create(name, 0.1)
    params, state = thawed(tx)
    assert_equal(alone(state.stages["schedule_free"].z), alone(params))
    moved, _ = trained(tx, range(BEFORE, STEPS), params, state)
    assert np.any(moved["dense"]["kernel"] != params["dense"]["kernel"])


@pytest.mark.parametrize("kind", ["equal", "weighted", "ema", "last"])
def test_averages_and_slow_weights_start_at_the_present_value(kind: str) -> None:
    """As if the leaf had been in the run, at the value it was frozen at."""
    params, state = thawed(aj.compose(aj.adamw(0.1), aj.average_iterates(kind=kind)))
    assert_close(alone(aj.eval_params(state, params)), alone(params))
    params, state = thawed(aj.compose(aj.adamw(0.1), aj.lookahead(sync_period=3)))
    assert_equal(alone(state.stages["lookahead"].slow), alone(params))


@pytest.mark.sample(1)
@pytest.mark.parametrize("storage", ["8bit", "4bit"])
def test_encoded_states(storage: str) -> None:
    """The codes of the leaves that stay do not change; those that join are encoded, too."""
    params = {"body": jnp.linspace(-1, 1, 8192), "head": jnp.linspace(1, 2, 8192)}
    gradients = jax.tree.map(
        lambda p: jnp.stack([jnp.sin(i + 3 * p) for i in range(STEPS)]), params
    )
    tx = aj.adamw(0.1, storage=storage)
    still = aj.compose(tx, frozen={"body": True, "head": False})
    now, state = trained(still, range(BEFORE), params, still.init(params), gradients)
    moved, report = aj.migrate_state(state, tx, now, thaw=True)
    assert not report.dropped
    assert_equal(*(s.stages["estimate_moments"].first.average["head"] for s in (state, moved)))
    got, _ = trained(tx, range(BEFORE, STEPS), now, moved, gradients)
    whole, _ = trained(still, range(STEPS), params, still.init(params), gradients)
    assert_equal(got["head"], whole["head"])
    body = {"body": now["body"]}
    of_body = {"body": gradients["body"]}
    assert_close(
        {"body": got["body"]}, trained(tx, range(BEFORE, STEPS), body, tx.init(body), of_body)[0]
    )


def test_frozen_again_and_thawed_again() -> None:
    """The state of a leaf that leaves is dropped and reported; it may join again."""
    tx = aj.adamw(FALL)
    params, state = thawed(tx)
    params, state = trained(tx, range(BEFORE, 6), params, state)
    half = aj.compose(tx, frozen="scale")
    state, report = aj.migrate_state(state, half, params, thaw=True)
    assert {name.rpartition("/")[2] for name in report.dropped if "late" not in name} == {"scale"}
    assert [*state.stages["late leaves"]] == ["dense/kernel"]
    params, state = trained(half, range(6, 8), params, state)
    state, _ = aj.migrate_state(state, tx, params, thaw=True)
    assert [*state.stages["late leaves"]] == ["dense/kernel", "scale"]
    steps = [x["estimate_moments"].steps for x in state.stages["late leaves"].values()]
    assert [*map(int, steps), int(state.count)] == [4, 0, 8]
    state, report = aj.migrate_state(state, frozen(tx), params, thaw=True)
    assert "late leaves" not in state.stages
    assert jax.tree.structure(state) == jax.tree.structure(frozen(tx).init(params))


def test_the_clocks_survive_other_edits_and_checkpoints() -> None:
    """Other migrations keep them, also from plain dicts; restart_moments empties them."""
    tx = aj.adamw(FALL)
    params, state = trained(tx, range(BEFORE, 6), *thawed(tx))
    wrapped = aj.compose(tx, aj.lookahead())
    moved, _ = aj.migrate_state(state, wrapped, params)
    assert_equal(moved.stages["late leaves"], state.stages["late leaves"])
    plain = flax.serialization.to_state_dict(state)
    back, report = aj.migrate_state(plain, tx, params)
    assert_equal(back, state)
    assert not report.started
    emptied = aj.restart_moments(state).stages["late leaves"]
    assert not any(np.any(x) for x in jax.tree.leaves(emptied))


def test_a_step_is_compiled_once_and_donates() -> None:
    """The state keeps its structure under jit, and equals the step without it."""
    tx = aj.radam(FALL, below="momentum")
    params, state = thawed(tx)
    expected = trained(tx, range(BEFORE, STEPS), params, state)[0]
    step = jax.jit(one_step(tx), donate_argnums=1)
    for i in range(BEFORE, STEPS):
        params, state = step(params, state, at(GRADIENTS, i))
    assert_close(params, expected)
    assert step._cache_size() == 1


WRAPPERS: dict[str, Any] = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    "chain": lambda tx: optax.chain(optax.identity(), tx),
    "quantize_state": lambda tx: aj.quantize_state(tx, min_size=10**6),
    "stochastic": lambda tx: aj.quantize_state(tx, min_size=10**6, rounding="stochastic"),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_recipe_in_a_wrapper_thaws_as_without_it(name: str) -> None:
    """The wrapper keeps its own state."""
    wrap, tx, start = WRAPPERS[name], aj.adamw(FALL), sample_params()
    still = wrap(frozen(tx))
    with jax.numpy_dtype_promotion("standard"):  # for MultiSteps
        params, state = trained(still, range(BEFORE), start, still.init(start))
        state, report = aj.migrate_state(state, wrap(tx), params, thaw=True)
        got, after = trained(wrap(tx), range(BEFORE, STEPS), params, state)
    assert_close(got, trained(tx, range(BEFORE, STEPS), *thawed(tx))[0])
    assert not report.dropped
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_codes_of_quantize_state_thaw_as_those_of_storage() -> None:
    """With real codes, and with codes that a checkpoint without them becomes."""
    params = {"body": jnp.linspace(-1, 1, 8192), "head": jnp.linspace(1, 2, 8192)}
    still, tx = aj.compose(aj.adamw(0.1), frozen="body"), aj.adamw(0.1)
    coded, ends = aj.adamw(0.1, storage="8bit"), []
    own = aj.compose(coded, frozen="body")
    for before, after in ((aj.quantize_state(still), aj.quantize_state(tx)), (own, coded)):
        _, state = before.update(params, before.init(params), params)
        state, _ = aj.migrate_state(state, after, params, thaw=True)
        ends.append(after.update(params, state, params)[0])
    assert_equal(*ends)
    plain = still.update(params, still.init(params), params)[1]
    state, _ = aj.migrate_state(plain, aj.quantize_state(tx), params, thaw=True)
    assert_equal(aj.quantize_state(tx).update(params, state, params)[0]["body"], ends[0]["body"])


def parted(tx: Any) -> Any:
    """Two recipes, for two parts of the parameters."""
    labels = {"dense": "rest", "scale": "late"}
    return optax.partition({"rest": tx, "late": tx}, labels)


def test_the_way_around_one_filter_for_all_leaves() -> None:
    """What the error says: two recipes in a partition, of which one begins later."""
    params, gradients = sample_params(), at(GRADIENTS, 0)
    tx = aj.create(aj.as_direction(optax.scale_by_lion()), 0.1)
    before = optax.partition(
        {"rest": tx, "late": optax.set_to_zero()}, {"dense": "rest", "scale": "late"}
    )
    state = before.update(gradients, before.init(params), params)[1]
    new = parted(tx)
    inner = new.init(params).inner_states | {"rest": state.inner_states["rest"]}
    state = new.init(params)._replace(inner_states=inner)
    updates, state = new.update(gradients, state, params)
    counts = [int(x.inner_state.count) for x in state.inner_states.values()]
    assert sorted(counts) == [1, 2]
    assert float(jnp.abs(updates["scale"])) == pytest.approx(0.1)


def test_the_way_around_packing() -> None:
    """What the error says: unpack, then thaw."""
    tx, start = aj.adamw(FALL), sample_params()
    packed = aj.compose(aj.pack_small_leaves(aj.adamw(FALL), 5), frozen=STILL)
    params, state = trained(packed, range(BEFORE), start, packed.init(start))
    state = aj.packing.repack_state(state, frozen(tx), params)
    state, _ = aj.migrate_state(state, tx, params, thaw=True)
    got, _ = trained(tx, range(BEFORE, STEPS), params, state)
    assert_close(got, trained(tx, range(BEFORE, STEPS), *thawed(tx))[0])


def refusals() -> dict[str, tuple[Any, Any, str]]:
    """What was trained, what shall go on, and what the error names."""
    tx, packed = aj.adamw(0.1), aj.pack_small_leaves(aj.adamw(0.1), 5)
    adam = aj.create(aj.as_direction(optax.scale_by_adam()), 0.1)
    koala = next(entry for entry in PLAIN if entry.name == "koala_m").make()
    return {
        "koala_m": (frozen(koala), aj.compose(koala), "momentum_filter has scalars for all leaves"),
        "packed": (aj.compose(packed, frozen=STILL), packed, "repack_state"),
        "packed at once": (aj.compose(packed, frozen=SMALL), packed, "repack_state"),
        "foreign": (frozen(adam), adam, "scale_by_adam has scalars for all .* optax.partition"),
        "several": (parted(tx), parted(tx), "needs one recipe in tx and in saved"),
        "without thaw": (frozen(tx), tx, "give thaw=True"),
        "frozen without thaw": (tx, frozen(tx), "give thaw=True"),
    }


@pytest.mark.parametrize("name", refusals())
def test_what_cannot_thaw_is_refused_by_name(name: str) -> None:
    """And so is a leaf that joins or leaves without being told to."""
    old, new, words = refusals()[name]
    with pytest.raises(ValueError, match=words):
        aj.migrate_state(
            old.init(sample_params()), new, sample_params(), thaw="without" not in name
        )


def test_a_leaf_that_joins_without_migration_is_refused() -> None:
    """The error names the way that keeps the rest of the state."""
    params = sample_params()
    state = frozen(aj.adam(0.1)).init(params)
    with pytest.raises(ValueError, match=r"migrate_state\(\.\.\., thaw=True\)"):
        aj.adam(0.1).update(params, state, params)


def test_what_reads_one_clock_for_all_is_refused() -> None:
    """The preconditioner and optax have no place for the clocks of late leaves."""
    tx = aj.adam(0.1)
    params, state = thawed(tx)
    with pytest.raises(ValueError, match="joined late"):
        aj.to_optax(state, optax.adam(0.1), params)
    with pytest.raises(ValueError, match="leaves that joined later"):
        preconditioner(tx, state, params)


def test_leaves_in_the_boxes_of_flax() -> None:
    """A kernel of NNX that joins makes a whole first step, and keeps its clock in a box."""
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    tx = aj.adam(0.1)
    optimizer = nnx.Optimizer(model, aj.compose(tx, frozen="kernel"), wrt=nnx.Param)
    gradients = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for _ in range(3):
        optimizer.update(model, gradients)
    params = nnx.state(model, nnx.Param)
    moved, _ = aj.migrate_state(optimizer.opt_state, tx, params, thaw=True)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.opt_state = moved
    before = np.array(model.kernel[...])
    optimizer.update(model, gradients)
    np.testing.assert_allclose(model.kernel[...], before - 0.1, rtol=1e-5)
    (clock,) = (x["estimate_moments"].steps for x in moved.stages["late leaves"].values())
    assert isinstance(clock, nnx.OptVariable | nnx.OptState)


def test_groups_are_whole_modules() -> None:
    """A module whose leaves all join is one group; the narrowest group counts."""
    names = ["a/b/w", "a/b/c", "a/w", "ab"]
    assert groups_for({"a/b/w", "a/b/c"}, names) == ["a/b"]
    assert groups_for({"a/b/w", "a/w"}, names) == ["a/b/w", "a/w"]
    assert groups_for({*names}, names) == [""]
    assert group_of("a/b/w", ["a", "a/b", "ab"]) == "a/b"
    assert group_of("ab", ["a"]) is None
