"""What stands beside a recipe is kept, and so are the counts, widths and codes of a saved state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import adamw_jax as aj
from adamw_jax._core.state import Hyperparams
from adamw_jax.storage._formats import FORMATS
from tests.catalogue import (
    EXTRA,
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    at,
    one_step,
    rows,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

GRADIENTS = sample_gradients(12)
FALL = optax.linear_schedule(1.0, 0.0, 16)


def trained(tx: Any, steps: range, params: Any = None, state: Any = None) -> tuple[Any, Any]:
    params = sample_params() if params is None else params
    state = tx.init(params) if state is None else state
    step = jax.jit(one_step(tx))
    with jax.numpy_dtype_promotion("standard"):
        for i in steps:
            params, state = step(params, state, at(GRADIENTS, i))
    return params, state


BESIDE: dict[str, Callable[[Any], Any]] = {
    "a schedule": lambda tx: optax.chain(tx, optax.scale_by_schedule(FALL)),
    "a foreign optimizer": lambda tx: optax.chain(optax.scale_by_adam(), tx),
    "lookahead(...)": lambda tx: aj.lookahead(tx, sync_period=5),
    "lookahead(...), reset": lambda tx: aj.lookahead(tx, sync_period=3, inner_state="reset"),
    "lookahead(...), pullback": lambda tx: aj.lookahead(tx, sync_period=3, inner_state="pullback"),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 4).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "masked": lambda tx: optax.masked(tx, {"dense": True, "scale": False}),
    "partition": lambda tx: optax.partition(
        {"a": tx, "b": optax.adam(0.1)},
        {"dense": {"bias": "a", "kernel": "b"}, "scale": "a"},
    ),
    "quantize_state": lambda tx: aj.quantize_state(tx, "4bit", rounding="stochastic"),
    "mechanize": optax.contrib.mechanize,
    "ema": lambda tx: optax.chain(tx, optax.ema(0.9)),
    "plateau": lambda tx: optax.chain(tx, optax.trace(0.5), optax.add_noise(0.1, 0.5, 1)),
}
"""Wrappers and neighbours of a recipe, with states of their own."""


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_the_recipe_is_kept(name: str) -> None:
    """A run whose recipe got a hyperparameter more goes on as the old one would have."""
    old, new = (BESIDE[name](tx) for tx in (aj.adamw(0.1), aj.adamw(0.1, l2=0.0)))
    params, state = trained(old, range(6))
    with jax.numpy_dtype_promotion("standard"):
        moved, report = aj.migrate_state(state, new, params)
    assert [x.rpartition("/")[2] for x in report.started] == ["l2"]
    assert not report.dropped
    got, expected = (
        trained(tx, range(6, 12), params, s)[0] for tx, s in ((new, moved), (old, state))
    )
    assert_close(got, expected)


def test_what_has_another_place_is_reported() -> None:
    """A wrapper that comes or goes starts or is dropped, and the report says so leaf by leaf."""
    plain, wrapped = aj.adamw(0.1), BESIDE["MultiSteps"](aj.adamw(0.1))
    params, state = trained(wrapped, range(6))
    _, report = aj.migrate_state(state, plain, params)
    assert {"mini_step", "gradient_step", "acc_grads/scale"} <= set(report.dropped)
    _, report = aj.migrate_state(trained(plain, range(2))[1], wrapped, params)
    assert {"mini_step", "gradient_step", "acc_grads/scale"} <= set(report.started)
    scheduled = BESIDE["a schedule"](plain)
    _, report = aj.migrate_state(scheduled.init(params), optax.chain(plain), params)
    assert report.dropped == ("1/count",)


@pytest.mark.parametrize("labels", [("x", "y"), ("x", "z")])
def test_the_recipes_of_a_partition(labels: tuple[str, str]) -> None:
    """Each goes on with its own; recipes under other labels cannot be told apart."""
    of_leaf = {"dense": {"bias": 0, "kernel": 0}, "scale": 1}

    def parts(names: Any, **options: Any) -> Any:
        recipes = {n: aj.adamw(rate, **options) for n, rate in zip(names, (0.1, 0.2), strict=True)}
        return optax.partition(recipes, jax.tree.map(lambda i: names[i], of_leaf))

    params, state = trained(parts(("x", "y")), range(4))
    new = parts(labels, l2=0.0)
    if labels == ("x", "z"):
        with pytest.raises(ValueError, match=r"recipes of saved are at .*x.*y.*keep the labels"):
            aj.migrate_state(state, new, params)
        return
    moved, _ = aj.migrate_state(state, new, params)
    expected = trained(parts(("x", "y")), range(4, 8), params, state)[0]
    assert_close(trained(new, range(4, 8), params, moved)[0], expected)


# Counts.

CLOCKS = {
    "adam": (optax.adam, aj.adam),
    "adamw": (optax.adamw, aj.adamw),
    "injected adam": (optax.inject_hyperparams(optax.adam), aj.adam),
    "injected sgd": (
        lambda rate: optax.inject_hyperparams(optax.sgd)(rate, momentum=0.9),
        lambda rate: aj.sgdw(rate),
    ),
    "sgd": (lambda rate: optax.sgd(rate, momentum=0.9), lambda rate: aj.sgdw(rate)),
}
EMPTIED: dict[str, Callable[[Any, Any], Any]] = {
    "never": lambda tx, state: state,
    "restart_moments": lambda tx, state: aj.restart_moments(state),
}


@pytest.mark.parametrize("emptied", EMPTIED)
@pytest.mark.parametrize("name", CLOCKS)
def test_moments_and_schedules_have_two_counts(name: str, emptied: str) -> None:
    """There and back: a schedule goes on where it was, bias correction where the moments are."""
    make_theirs, make_ours = CLOCKS[name]
    theirs, ours = make_theirs(FALL), make_ours(FALL)
    params, state = trained(ours, range(8))
    state = EMPTIED[emptied](ours, state)
    with jax.numpy_dtype_promotion("standard"):
        there = aj.to_optax(state, theirs, params)
        back = aj.from_optax(there, ours, params)
    expected, _ = trained(ours, range(8, 10), params, state)
    assert_close(trained(theirs, range(8, 10), params, there)[0], expected, rtol=1e-4)
    assert_close(trained(ours, range(8, 10), params, back)[0], expected, rtol=1e-4)


def test_a_restart_period_is_one_more_way_to_empty_moments() -> None:
    ours = aj.compose(
        aj.estimate_moments(restart_period=5),
        aj.correct_bias(),
        aj.precondition(),
        aj.scale_by_learning_rate(FALL),
    )
    theirs = optax.adam(FALL)
    params, state = trained(ours, range(8))
    there = aj.to_optax(state, theirs, params)
    assert (int(there[0].count), int(there[1].count)) == (3, 8)
    expected, _ = trained(ours, range(8, 10), params, state)
    assert_close(trained(theirs, range(8, 10), params, there)[0], expected, rtol=1e-4)
    back = aj.from_optax(there, ours, params)
    assert_close(trained(ours, range(8, 10), params, back)[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    "beside",
    [
        lambda: optax.ema(0.9),
        lambda: optax.add_noise(0.0, 0.5, 1),
        lambda: optax.contrib.reduce_on_plateau(patience=2, factor=0.5),
    ],
    ids=["ema", "add_noise", "reduce_on_plateau"],
)
def test_fields_called_count_are_not_counts_of_ours(beside: Callable[[], Any]) -> None:
    """The neighbours of optax's optimizer start as they start, whatever their fields are called."""
    tx, params = aj.adam(0.1), sample_params()
    _, state = trained(tx, range(5))
    target = optax.chain(optax.adam(0.1), beside())
    got = aj.to_optax(state, target, params)
    assert int(got[1].count) == 0


@pytest.mark.parametrize(
    ("saved", "tx", "lost"),
    [
        (optax.rmsprop(0.1, momentum=0.9), aj.sgdw(0.1), "ScaleByRms"),
        (optax.chain(optax.adam(0.1), optax.ema(0.9)), aj.adam(0.1), "EmaState"),
        (
            optax.chain(optax.adam(0.1), optax.contrib.reduce_on_plateau()),
            aj.adam(0.1),
            "ReduceLROnPlateauState",
        ),
        (
            optax.MultiSteps(optax.adam(0.1), 4).gradient_transformation(),
            aj.adam(0.1),
            "MultiSteps",
        ),
    ],
    ids=["rmsprop", "ema", "plateau", "half an accumulation"],
)
def test_what_no_recipe_goes_on_with_is_refused(saved: Any, tx: Any, lost: str) -> None:
    params = sample_params()
    with jax.numpy_dtype_promotion("standard"):
        update = optax.with_extra_args_support(saved).update
        _, state = update(at(GRADIENTS, 0), saved.init(params), params, value=jnp.float32(1.0))
    with pytest.raises(ValueError, match=f"{lost}.*would be lost"):
        aj.from_optax(state, tx, params)


def test_what_optax_has_no_place_for_is_refused() -> None:
    """Also scalars outside the recipe, and states of classes that are not optax's."""
    params = sample_params()
    tx = optax.chain(aj.adam(0.1), optax.contrib.reduce_on_plateau())
    with pytest.raises(ValueError, match="no place for '1/scale'"):
        aj.to_optax(tx.init(params), optax.adam(0.1), params)
    mine = optax.GradientTransformation(Mine, lambda updates, state, params=None: (updates, state))
    saved = optax.chain(mine, optax.adam(0.1)).init(params)
    with pytest.raises(ValueError, match=r"has a Mine, .* would be lost"):
        aj.from_optax(saved, aj.adam(0.1), params)


class Mine(NamedTuple):
    """A state of the user."""

    average: Any


def test_what_stands_beside_a_recipe_goes_to_optax_with_it() -> None:
    ours, theirs = (
        optax.MultiSteps(tx, 4).gradient_transformation() for tx in (aj.adam(0.1), optax.adam(0.1))
    )
    params, state = trained(ours, range(6))
    got = aj.to_optax(state, theirs, params)
    assert (int(got.mini_step), int(got.gradient_step)) == (2, 1)
    assert_equal(got.acc_grads, state.acc_grads)
    with pytest.raises(ValueError, match=r"no place for 'mini_step'.*outside the recipe"):
        aj.to_optax(state, optax.adam(0.1), params)


# One optimizer's accumulators are not another's.


def kept(tx: Any, state: Any) -> dict[str, Any]:
    """The states of the stages, also those without an array, but not those of tails."""
    tails = {spec.name for spec in tx.specs if spec.tail}
    return {stage: memory for stage, memory in state.stages.items() if stage not in tails}


def accumulators(name: str) -> tuple[str, ...]:
    """What an optimizer of the catalogue keeps, by the paths in its checkpoint."""
    tx = Entry(name, name).make()
    held = kept(tx, jax.eval_shape(tx.init, sample_params()))
    paths = jax.tree_util.tree_leaves_with_path(held)
    arrays = {jax.tree_util.keystr(path[:3]) for path, leaf in paths if leaf.ndim}
    return (*sorted(arrays), *sorted(held))


SAME = {name: accumulators(name) for name in aj.list_optimizers()}
FORMS = [{}, {"amsgrad": True}, {"schedule_inside": True}, {"schedule_inside": False}]
RATES = {"b0": 0.5, "b1": 0.8, "b2": 0.9, "b3": 0.9, "momentum": 0.8, "eps": 1e-3, "eps_root": 0.01}


@pytest.mark.slow
def test_states_of_one_structure_hold_the_same_accumulators() -> None:
    """In numbers, after equal gradients under equal hyperparameters, for every two optimizers."""
    params, found = sample_params(), {}
    entries = [Entry(name, name, form) for form in FORMS for name in aj.list_optimizers()]
    entries = [entry for entry in entries if {*entry.options} <= {*entry.keywords}]
    for entry in entries:
        tx = entry.make()
        state = tx.init(params)
        rates = {key: RATES[key] for key in RATES.keys() & {*aj.hyperparams(state)}}
        state = aj.set_hyperparams(state, rates) if rates else state
        for step in range(4):
            _, state = tx.update(at(GRADIENTS, step), state, params, **EXTRA)
        held = kept(tx, state)
        structure = str(jax.tree.structure(held)), str(jax.tree.map(jnp.shape, held))
        assert_close(held, found.setdefault(structure, held), rtol=1e-4)
    assert len(found) < len(entries)


def only_scalars(name: str) -> set[str]:
    """Stages that keep scalars, as NAdam's product of rates; a checkpoint may lose them."""
    tx = Entry(name, name).make()
    held = kept(tx, jax.eval_shape(tx.init, sample_params()))
    leaves = {stage: jax.tree.leaves(memory) for stage, memory in held.items()}
    return {stage for stage, found in leaves.items() if found and not any(x.ndim for x in found)}


@pytest.mark.parametrize("old", aj.list_optimizers())
def test_another_optimizer_s_moments_are_not_taken_for_its_own(old: str) -> None:
    """By ``migrate_state``: accumulators of one meaning only; by ``update``: of one kind only."""
    params = sample_params()
    saved = Entry(old, old).make().init(params)
    for new in aj.list_optimizers():
        tx = Entry(new, new).make()
        if SAME[old] == SAME[new]:
            continue
        with pytest.raises(ValueError, match=r"belongs to another|no entry"):
            tx.update(params, saved, params)
        if {*SAME[new]} <= {*SAME[old]} <= {*SAME[new]} | only_scalars(old):
            tx.update(params, aj.migrate_state(saved, tx, params)[0], params)
            continue
        with pytest.raises(ValueError, match="does not fit the new recipe"):
            aj.migrate_state(saved, tx, params)


# Widths, pins and codes.


def narrowed(state: Any, dtype: Any) -> Any:
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, state)


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_another_float_width_is_converted(entry: Entry) -> None:
    """From bfloat16, and from and to x64; a step on the state as it is says what to do."""
    tx = entry.make()
    params, state = trained(tx, range(2))
    if not [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]:
        return
    low = narrowed(state, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"made for bfloat16.*migrate_state"):
        tx.update(at(GRADIENTS, 0), low, params)
    moved, report = aj.migrate_state(low, tx, params)
    assert jax.tree.map(jnp.result_type, moved) == jax.tree.map(jnp.result_type, state)
    assert "hyperparams/learning_rate" in report.converted
    with jax.enable_x64(True):
        with pytest.raises(ValueError, match=r"made for float32.*jax_enable_x64"):
            tx.update(at(GRADIENTS, 0), state, params)
        wide, _ = aj.migrate_state(state, tx, params)
        tx.update(at(GRADIENTS, 0), wide, params)
    back, _ = aj.migrate_state(wide, tx, params)
    assert_equal(back, state)


@pytest.mark.parametrize("make", [aj.adam, optax.adam], ids=["ours", "optax"])
@pytest.mark.parametrize("word", FORMATS)
def test_codes_of_another_float_width_are_converted(word: str, make: Any) -> None:
    """From x64 and back: the values are those that were stored."""
    tx = aj.quantize_state(make(0.1), word)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = {"w": jnp.linspace(1.0, 2.0, 64 * 128).reshape(64, 128)}
        _, state = tx.update(wide, tx.init(wide), wide)
    params = {"w": jnp.asarray(np.asarray(wide["w"]), jnp.float32)}
    moved, report = aj.migrate_state(state, tx, params)
    assert (report.started, report.dropped) == ((), ())
    with jax.numpy_dtype_promotion("standard"):
        tx.update(params, moved, params)
    with jax.enable_x64(True):
        back, _ = aj.migrate_state(moved, tx, wide)
        assert jax.tree.structure(back) == jax.tree.structure(state)
    assert_close(*map(aj.storage.decode_state, (moved, state)), rtol=0.01)
    assert_close(*map(aj.storage.decode_state, (back, state)), rtol=0.01)


@pytest.mark.parametrize(
    "tx",
    [
        optax.chain(aj.sgdw(0.1), aj.average_iterates(kind="last")),
        aj.lookahead(optax.adam(0.1)),
        optax.chain(aj.estimate_moments(), aj.precondition(), optax.scale(-0.1)),
    ],
    ids=["a tail alone", "lookahead(...)", "stages alone"],
)
def test_another_float_width_is_named_outside_a_recipe_too(tx: Any) -> None:
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"made for float32.*float64"):
        tx.update(params, state, params)


def test_moments_that_were_cast_alone_are_named() -> None:
    tx, params = aj.adamw(0.1), sample_params()
    state = tx.init(params)
    cast = state._replace(stages=narrowed(state.stages, jnp.bfloat16))
    with pytest.raises(ValueError, match=r"estimate_moments was made for bfloat16"):
        tx.update(at(GRADIENTS, 0), cast, params)


def test_mapped_states_are_migrated_one_by_one() -> None:
    old, new = aj.adamw(0.1), aj.compose(aj.adamw(0.1), aj.lookahead())
    params = {"w": jnp.ones((4, 3))}
    state = jax.vmap(old.init)(params)
    with pytest.raises(ValueError, match=r"4 mapped runs: .*jax\.vmap"):
        aj.migrate_state(state, new, {"w": jnp.ones(3)})
    moved = jax.vmap(lambda s, p: aj.migrate_state(s, new, p)[0])(state, params)
    assert_equal(moved, jax.vmap(new.init)(params))


def test_a_pinned_value_that_rounding_moved_out_is_refused() -> None:
    tx = aj.adamw(0.1)
    params, state = trained(tx, range(2))
    state = aj.set_hyperparams(state, b2=0.999)
    rounded = narrowed(narrowed(state, jnp.bfloat16), jnp.float32)
    with pytest.raises(ValueError, match=r"^b2 is pinned to 1.0, .*clear_hyperparams"):
        tx.update(at(GRADIENTS, 0), rounded, params)
    with pytest.raises(ValueError, match=r"^b2 is pinned to 1\.0"):
        aj.migrate_state(narrowed(state, jnp.bfloat16), tx, params)
    tx.update(at(GRADIENTS, 0), aj.clear_hyperparams(rounded, "b2"), params)


def untyped(tree: Any) -> Any:
    """A state as a checkpointer that was given no target restores it."""
    if isinstance(tree, Hyperparams):
        return flax.serialization.to_state_dict(tree)
    if isinstance(tree, dict):
        return {key: untyped(value) for key, value in tree.items()}
    if hasattr(tree, "_asdict"):
        return {key: untyped(getattr(tree, key)) for key in tree._fields}
    return [untyped(x) for x in tree] if isinstance(tree, list | tuple) else tree


LARGE = {"w": jnp.ones((64, 128)), "b": jnp.zeros(3)}
STORED = {
    "float32": aj.adamw(0.1),
    **{
        word: aj.adamw(0.1, storage=word)
        for word in ("8bit", "roots", "4bit", "float8", "bfloat16")
    },
    "packed": aj.pack_small_leaves(aj.adamw(0.1)),
    "quantized optax": aj.quantize_state(optax.adamw(0.1)),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", STORED)
def test_serializers_keep_every_storage(name: str) -> None:
    """Flax's bytes and state dicts, and plain dicts through ``migrate_state``."""
    tx = STORED[name]
    with jax.numpy_dtype_promotion("standard"):
        _, state = tx.update(jax.tree.map(jnp.ones_like, LARGE), tx.init(LARGE), LARGE)
        fresh = tx.init(LARGE)
    data = flax.serialization.to_bytes(state)
    assert_equal(flax.serialization.from_bytes(fresh, data), state)
    plain = flax.serialization.to_state_dict(state)
    assert_equal(flax.serialization.from_state_dict(fresh, plain), state)
    moved, report = aj.migrate_state(untyped(state), tx, LARGE)
    assert_equal(moved, state)
    assert not report.started
    assert not report.dropped


@pytest.mark.parametrize("old", STORED)
def test_a_state_of_another_layout_is_refused_with_the_remedy(old: str) -> None:
    """By every recipe, in both directions, and converted by what the error names."""
    state = STORED[old].init(LARGE)
    for new, tx in STORED.items():
        if new == old or "quantized optax" in (old, new):  # which is another optimizer
            continue
        codes_alike = "packed" in (old, {"float32": new}.get(old))
        remedy = "repack_state" if codes_alike else r"storage=.*migrate_state"
        with pytest.raises(ValueError, match=remedy):
            tx.update(LARGE, state, LARGE)
        if "packed" not in (old, new):
            moved, _ = aj.migrate_state(state, tx, LARGE)
            tx.update(LARGE, moved, LARGE)


def test_a_stage_alone_is_refused_codes_that_it_did_not_store() -> None:
    coded, plain = (aj.estimate_moments(aj.ema(0.9, storage=word)) for word in ("8bit", None))
    record = optax.chain(plain, aj.correct_bias(), aj.precondition())
    state = optax.chain(coded, aj.correct_bias(), aj.precondition()).init(LARGE)
    with pytest.raises(ValueError, match=r"dynamic8.*no storage=.*decode_state\(state\)"):
        record.update(LARGE, state, LARGE)
    record.update(LARGE, aj.storage.decode_state(state), LARGE)


def test_plain_states_without_hyperparameters_or_without_their_node() -> None:
    bare = aj.compose(optax.trace(0.9), optax.scale(-0.1))
    moved, _ = aj.migrate_state(untyped(bare.init(LARGE)), bare, LARGE)
    assert_equal(moved, bare.init(LARGE))
    tx = aj.adamw(0.1)
    state = aj.set_hyperparams(tx.init(LARGE), b1=0.5)
    walked = {**untyped(state), "hyperparams": dict(state.hyperparams)}
    moved, report = aj.migrate_state(walked, tx, LARGE)
    assert "hyperparams/b1" in report.kept
    assert not bool(moved.hyperparams.is_pinned("b1"))


def test_other_hyperparameters_in_the_bytes_are_refused() -> None:
    data = flax.serialization.to_bytes(aj.adamw(0.1).init(LARGE))
    with pytest.raises(ValueError, match=r"values of b1,b2,eps,learning_rate,weight_decay"):
        flax.serialization.from_bytes(aj.adam(0.1).init(LARGE), data)


# Names.


def test_two_leaves_of_one_joined_name_keep_their_own() -> None:
    params = {"a/b": jnp.ones(2), "a": {"b": jnp.full(2, 5.0)}}
    tx = aj.sgdw(0.1)
    gradient = {"a/b": jnp.ones(2), "a": {"b": jnp.full(2, 7.0)}}
    _, state = tx.update(gradient, tx.init(params), params)
    moved, _ = aj.migrate_state(state, aj.compose(tx, aj.lookahead()), params)
    assert_equal(moved.stages["estimate_moments"].first.moment, gradient)


class Net(NamedTuple):
    w: Any
    average: Any


def test_a_module_may_call_a_parameter_as_a_state_calls_its_field() -> None:
    inner = Net(jnp.ones((64, 128)), None)
    params = Net(jnp.full((64, 128), 2.0), inner)
    mesh = jax.make_mesh((1,), ("x",))
    spec = jax.sharding.PartitionSpec
    rows_of, columns = (
        jax.sharding.NamedSharding(mesh, s) for s in (spec("x", None), spec(None, "x"))
    )
    wanted = aj.state_shardings(aj.adam(0.1), params, Net(rows_of, Net(columns, None)))
    moment = wanted.stages["estimate_moments"].first.moment
    assert (moment.w.spec, moment.average.w.spec) == (rows_of.spec, columns.spec)
    exempt = aj.quantize_state(aj.adam(0.1), exempt="average/*").init(params)
    first = exempt.stages["estimate_moments"].first.moment
    assert isinstance(first.average.w, jax.Array)
    assert not isinstance(first.w, jax.Array)


@pytest.mark.parametrize("key", ["layers", "stages", "hyperparams"])
def test_a_parameter_may_be_called_stages(key: str) -> None:
    params = {key: {"block": {"w": jnp.ones(2)}}}
    state = optax.MultiSteps(aj.adamw(0.1), 2).gradient_transformation().init(params)
    moved, _ = aj.migrate_state(untyped(state), aj.adamw(0.1), params)
    assert_equal(moved, aj.adamw(0.1).init(params))


def test_recipes_inside_a_recipe_have_hyperparameters() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    parts = {"x": aj.adamw(1e-3), "y": aj.adamw(1e-2)}
    tx = aj.probe(optax.partition(parts, {"a": "x", "b": "y"}))
    state = tx.init(params)
    names = [name for name in aj.hyperparams(state) if name.endswith("learning_rate")]
    assert len(names) == 2
    state = aj.set_hyperparams(state, {names[0]: 0.5})
    np.testing.assert_allclose([aj.hyperparams(state)[n] for n in names], [0.5, 1e-2])
    updates, _ = tx.update(params, state, params)
    np.testing.assert_allclose(updates["a"], -0.5, rtol=1e-3)
