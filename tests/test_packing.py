"""Packed state of small leaves: the same optimizer, or a refusal that says what to do."""

from __future__ import annotations

import inspect
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings, strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import adamw_jax as aj
from adamw_jax.extend import Kind, Part, Stage, Step, average, decay_rate, declare, stage
from adamw_jax.packing import pack_small_leaves, repack_state
from adamw_jax.packing._buffers import Packer
from tests.catalogue import (
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    at,
    avals,
    label,
    one_step,
    reference,
    run,
    sample_gradients,
    sample_params,
)

OPTIONS = [
    Entry("adam-nesterov", "adam", {"nesterov": True}),
    Entry("adam-rectify", "adam", {"rectify": True, "amsgrad": True, "eps_hat": True}),
    Entry("amsgrad-corrected", "amsgrad", {"maximum": "corrected"}),
    Entry("acprop-rectify", "acprop", {"rectify": True, "numerator": "momentum"}),
    Entry("adan-restart", "adan", {"restart_period": 2, "start": "first_gradient"}),
    Entry("sgdw-plain", "sgdw", {"momentum": None}),
    Entry("sgdw-nesterov", "sgdw", {"nesterov": True, "dampening": 0.5}),
]


def on_moments(entry: Entry) -> list[Any]:
    """The declarations of its stages from the moments to the direction."""
    return [s for s in entry.make().specs if Kind.MOMENTS in (s.takes, s.gives)]


def unpacked(entry: Entry) -> tuple[Any, Any]:
    """Parameters and state after some steps without packing."""
    known = entry in PLAIN
    return reference(entry) if known else run(entry.make(), sample_params(), sample_gradients())


WITH_MOMENTS = [entry for entry in [*PLAIN, *OPTIONS] if on_moments(entry)]
PACKABLE = [e for e in WITH_MOMENTS if all(spec.elementwise for spec in on_moments(e))]
NO_MOMENTS = [entry.name for entry in PLAIN if not on_moments(entry)]
packable = pytest.mark.parametrize("entry", PACKABLE, ids=label)


def buffers(state: Any) -> int:
    return len(jax.tree.leaves(state))


@pytest.mark.sample(4)
@packable
def test_the_catalogue_steps_as_unpacked(entry: Entry) -> None:
    """Every optimizer with moments: the same parameters, and a state that unpacks to the same."""
    tx = pack_small_leaves(entry.make())
    got, state = run(tx, sample_params(), sample_gradients())
    expected, plain = unpacked(entry)
    assert_close(got, expected)
    assert_close(repack_state(state, entry.make(), got), plain)


def test_the_catalogue_has_every_stage_and_part_that_declares_elementwise() -> None:
    """So the test above shows that each declaration is true."""
    made = []
    for function in vars(aj.moments).values():
        if inspect.isfunction(function) and not _required(function):
            made.append(function())
    stages = {x.spec.name for x in made if isinstance(x, Stage) and x.spec.elementwise}
    kinds = {x.kind for x in made if isinstance(x, Part) and x.elementwise and x.kind}
    assert len(stages) > 7
    assert len(kinds) > 6
    states = [unpacked(entry)[1].stages["estimate_moments"] for entry in PACKABLE]
    assert stages <= {spec.name for entry in PACKABLE for spec in on_moments(entry)}
    assert kinds <= {type(part) for state in states for part in (state.first, state.second)}
    assert {e.name for e in WITH_MOMENTS} - {e.name for e in PACKABLE} == {"adafactor"}


def _required(function: Any) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)


@packable
def test_three_leaves_of_state_become_one(entry: Entry) -> None:
    state, plain = pack_small_leaves(entry.make()).init(sample_params()), unpacked(entry)[1]
    parts = jax.tree.leaves(
        plain.stages.get("estimate_moments"), is_leaf=lambda x: isinstance(x, dict)
    )
    trees = sum(isinstance(part, dict) for part in parts)
    assert buffers(state) <= buffers(plain) - 2 * trees


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "options",
    [
        {"mask": {"dense": {"bias": False, "kernel": True}, "scale": False}},
        {"mask": "*/kernel", "decay": "proximal"},
        {"mask": lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree), "l2": 0.1},
        {"state_dtype": jnp.bfloat16, "amsgrad": True},
        {
            "rules": aj.parameter_rules(
                {
                    "*/bias": aj.Rule(weight_decay=0.0),
                    "*/kernel": aj.Rule(learning_rate_factor=0.5),
                    "scale": aj.Rule(weight_decay=0.0),
                }
            )
        },
        {
            "rules": aj.parameter_rules(
                {"dense/bias": aj.Rule(freeze=True), "dense/k*": aj.Rule(), "scale": aj.Rule()}
            )
        },
    ],
    ids=["tree", "pattern", "function", "narrow", "rules", "frozen"],
)
def test_masks_and_rules_by_name(options: dict[str, Any]) -> None:
    plain = aj.adamw(0.05, weight_decay=0.3, **options)
    arguments = sample_params(), sample_gradients()
    got, state = run(pack_small_leaves(plain), *arguments)
    expected, plain_state = run(plain, *arguments)
    assert_close(got, expected)
    assert_close(repack_state(state, plain, got), plain_state)


def test_a_step_that_stands_still_does_not_decay() -> None:
    """What a packed stage tells of its buffers, decay hears of the leaves."""
    plain = aj.acprop(0.1, rectify=True, below="skip", weight_decay=0.5)
    arguments = sample_params(), sample_gradients()
    assert_close(run(pack_small_leaves(plain), *arguments)[0], run(plain, *arguments)[0])


def in_dense(tree: Any) -> Any:
    """What lies under ``dense``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "dense", tree)


def with_none(tree: Any) -> Any:
    return {**tree, "name": None, "scale": None}


def test_masked_partition_and_none() -> None:
    """Masked leaves, labels and absent leaves stay out of the buffers."""
    params, gradients = sample_params(), sample_gradients()
    plain = aj.adamw(0.05)
    for wrap in (
        lambda tx: optax.masked(tx, in_dense),
        lambda tx: optax.masked(tx, {"dense": True, "scale": False}),
        lambda tx: optax.partition(
            {"a": tx, "b": optax.sgd(0.1)}, {"dense": {"bias": "b", "kernel": "a"}, "scale": "a"}
        ),
    ):
        got, state = run(wrap(pack_small_leaves(plain)), params, gradients)
        expected, plain_state = run(wrap(plain), params, gradients)
        assert_close(got, expected)
        assert_close(repack_state(state, wrap(plain), params), plain_state)
        assert buffers(state) == buffers(plain_state) - 2
        assert float(aj.hyperparams(state)["learning_rate"]) == pytest.approx(0.05)
    got, _ = run(pack_small_leaves(plain), with_none(params), with_none(gradients))
    assert_close(got["dense"], run(plain, params, gradients)[0]["dense"])


def test_live_hyperparameters_and_slow_weights() -> None:
    """They are pinned, read and averaged as without packing; the tail keeps its own leaves."""
    recipe = aj.compose(aj.adamw(0.05), aj.lookahead(sync_period=2))
    params, tx = sample_params(), pack_small_leaves(recipe)
    state = aj.set_hyperparams(tx.init(params), learning_rate=0.2, b1=0.5)
    other = aj.set_hyperparams(recipe.init(params), learning_rate=0.2, b1=0.5)
    for i in range(3):
        (updates, state), (same, other) = (
            t.update(at(sample_gradients(), i), s, params)
            for t, s in ((tx, state), (recipe, other))
        )
        assert_close(updates, same)
    assert_equal(aj.hyperparams(state), aj.hyperparams(other))
    assert_close(aj.eval_params(state, params), aj.eval_params(other, params))
    assert_close(repack_state(aj.restart_moments(state), recipe, params), aj.restart_moments(other))


def test_another_limit_moves_no_value_to_another_leaf() -> None:
    """A leaf that is large for one limit and small for the other stands between two small ones."""
    params = {"a": jnp.ones(3), "b": jnp.ones((4, 5)), "c": jnp.ones(2), "d": jnp.ones(6)}
    few, many, plain = (
        pack_small_leaves(aj.adamw(0.1), limit=10, group=2),
        pack_small_leaves(aj.adamw(0.1), limit=100),
        aj.adamw(0.1),
    )
    gradients = jax.tree.map(lambda p: jnp.arange(1.0, p.size + 1).reshape(p.shape), params)
    states = {tx: tx.update(gradients, tx.init(params), params)[1] for tx in (few, many, plain)}
    for tx, other in itertools.product(states, states):
        assert_close(repack_state(states[tx], other, params), states[other])


def test_small_leaves_packed_and_large_ones_encoded() -> None:
    params = {"a": jnp.ones(3), "b": jnp.ones((64, 256)), "c": jnp.ones(2)}
    tx = aj.quantize_state(pack_small_leaves(aj.adamw(0.1), limit=100))
    first = tx.init(params).stages["estimate_moments"].first.moment
    assert first["a"].shape == (5,)
    assert first["b"].codes.dtype == jnp.uint8
    gradients = jax.tree.map(lambda p: jnp.linspace(1.0, 2.0, p.size).reshape(p.shape), params)
    got, _ = tx.update(gradients, tx.init(params), params)
    expected, _ = aj.adamw(0.1).update(gradients, aj.adamw(0.1).init(params), params)
    assert_close(got, expected, rtol=1e-4)


def test_migrates_between_packed_recipes() -> None:
    """An added tail is carried over; a change of the layout is refused, and says so by name."""
    params = sample_params()
    saved = pack_small_leaves(aj.adamw(0.05)).init(params)
    more = pack_small_leaves(aj.compose(aj.adamw(0.05), aj.lookahead()))
    state, report = aj.migrate_state(saved, more, params)
    assert jax.tree.structure(state) == jax.tree.structure(more.init(params))
    assert not report.dropped
    with pytest.raises(ValueError, match="estimate_moments/first/average/dense/bias"):
        aj.migrate_state(saved, aj.adamw(0.05), params)


def test_map_params_sees_the_buffers() -> None:
    tx, params = pack_small_leaves(aj.adamw(0.05)), sample_params()
    state = tx.init(params)
    seen: list[tuple[int, ...]] = []

    def visit(x: jax.Array) -> jax.Array:
        seen.append(x.shape)
        return x + 1

    changed = optax.tree.map_params(tx, visit, state)
    assert seen == [(10,), (10,)]
    assert avals(changed) == avals(state)
    assert_equal(aj.hyperparams(changed), aj.hyperparams(state))


def test_checkpoint_round_trip_and_exchange(tmp_path: pathlib.Path) -> None:
    """Orbax restores a packed state bit by bit, and either form is read by the other."""
    plain, params = aj.adamw(0.05), sample_params()
    packed = pack_small_leaves(plain)
    state = run(packed, params, sample_gradients())[1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "packed", state)
        checkpointer.save(tmp_path / "plain", repack_state(state, plain, params))
        checkpointer.wait_until_finished()
        same = checkpointer.restore(tmp_path / "packed", jax.eval_shape(packed.init, params))
        other = checkpointer.restore(tmp_path / "plain", jax.eval_shape(plain.init, params))
    assert_equal(same, state)
    assert_equal(repack_state(other, packed, params), state)


def test_repack_refuses_another_state() -> None:
    params = sample_params()
    state = pack_small_leaves(aj.adamw(0.05)).init(params)
    with pytest.raises(ValueError, match=r"up to packing.*migrate_state"):
        repack_state(state, aj.sgdw(0.05), params)
    with pytest.raises(ValueError, match="shapes, dtypes or parameters differ"):
        repack_state(state, aj.adamw(0.05, state_dtype=jnp.bfloat16), params)
    longer = {**params, "scale": jnp.ones(5)}
    with pytest.raises(ValueError, match="shapes, dtypes or parameters differ"):
        repack_state(state, aj.adamw(0.05), longer)


FOREIGN = {
    "adamw": optax.adamw(0.05),
    "momentum": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "lion": optax.lion(0.05),
    "chain": optax.chain(optax.clip(1.0), aj.adamw(0.05)),
    "injected": optax.inject_hyperparams(optax.rmsprop)(0.05),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", FOREIGN)
def test_other_transformations(name: str) -> None:
    tx, params = FOREIGN[name], sample_params()
    with jax.numpy_dtype_promotion("standard"):  # optax itself is not strict
        got, state = run(pack_small_leaves(tx, elementwise=True), params, sample_gradients())
        expected, plain = run(tx, params, sample_gradients())
    assert_close(got, expected)
    assert_close(repack_state(state, tx, params), plain)
    assert buffers(state) < buffers(plain)


def own_recipe(of_moments: Stage, **declared: Any) -> Any:
    """A recipe with an own second moment and an own stage on moments."""

    def entries(gradient: Any, first: Any) -> Any:
        del first
        return jax.tree.map(lambda g: jnp.minimum(g * g, 1.0), gradient)

    second = average("own", "b2", declare(b2=decay_rate(0.9)), entries, real=True, **declared)
    return aj.compose(
        aj.estimate_moments(aj.ema(0.9), second),
        of_moments,
        aj.precondition(),
        aj.scale_by_learning_rate(0.05),
    )


def own_stage(factor: Any, **declared: Any) -> Stage:
    """A stage that multiplies the direction by a function of the gradient."""

    def apply(record: Any, state: Any, step: Step) -> tuple[Any, Any]:
        del step
        return record.scaled(jax.tree.map(factor, record.gradient)), state

    return stage("own_stage", Kind.MOMENTS, Kind.MOMENTS, apply, **declared)


def test_stages_and_parts_of_your_own_are_packed_as_they_declare() -> None:
    """Declared or vouched for; a false declaration gives other steps, as a test would see."""
    arguments = sample_params(), sample_gradients()
    true = own_recipe(own_stage(jnp.cos, elementwise=True), elementwise=True)
    silent = own_recipe(own_stage(jnp.cos))
    expected = run(true, *arguments)[0]
    assert_close(run(pack_small_leaves(true), *arguments)[0], expected)
    assert_close(run(pack_small_leaves(silent, elementwise=True), *arguments)[0], expected)
    false = own_recipe(own_stage(jnp.sum, elementwise=True), elementwise=True)
    with pytest.raises(AssertionError):
        assert_close(run(pack_small_leaves(false), *arguments)[0], run(false, *arguments)[0])


REFUSED = {
    "encoded": (aj.adamw(0.05, storage="8bit"), r"encodes its state leaf by leaf.*quantize_state"),
    "factored": (aj.adafactor(0.05), r"estimate_moments, or a part in it, does not declare"),
    "own part": (
        own_recipe(aj.correct_bias()),
        r"estimate_moments, or .*Part\(..., elementwise=True",
    ),
    "own stage": (
        own_recipe(own_stage(jnp.cos), elementwise=True),
        r"own_stage, .*does not declare.*stage\(..., elementwise=True\)",
    ),
    "optax": (optax.adamw(0.05), r"declares nothing.*elementwise=True.*clip_by_global_norm"),
    "quantized": (aj.quantize_state(optax.adam(0.05)), "declares nothing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_declare_is_refused_with_a_remedy(name: str) -> None:
    tx, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"{message}(.|\n)*pack_small_leaves"):
        pack_small_leaves(tx)


def test_the_parts_of_a_partition_are_packed() -> None:
    """The remedy where labels tell small leaves apart."""
    parts = {"x": optax.adam(0.05), "y": optax.sgd(0.05, momentum=0.9)}
    labels = {"dense": {"bias": "x", "kernel": "y"}, "scale": "x"}
    packed = {name: pack_small_leaves(part, elementwise=True) for name, part in parts.items()}
    with jax.numpy_dtype_promotion("standard"):
        got, state = run(optax.partition(packed, labels), sample_params(), sample_gradients())
        expected, plain = run(optax.partition(parts, labels), sample_params(), sample_gradients())
    assert_close(got, expected)
    assert buffers(state) < buffers(plain)


@pytest.mark.parametrize("name", NO_MOMENTS)
def test_recipes_without_moments_are_refused(name: str) -> None:
    entry = next(e for e in PLAIN if e.name == name)
    with pytest.raises(ValueError, match="nothing to pack: use it without"):
        pack_small_leaves(entry.make())


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"tx must be an optax transformation such as .*, got 3"):
        pack_small_leaves(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"limit must be a whole number >= 1, got -1"):
        pack_small_leaves(aj.adamw(0.1), limit=-1)
    with pytest.raises(ValueError, match=r"group must be a whole number >= 2, got 1"):
        pack_small_leaves(aj.adamw(0.1), group=1)
    with pytest.raises(ValueError, match=r"elementwise must be True or False, got 'yes'"):
        pack_small_leaves(optax.sgd(0.1), elementwise="yes")  # pyright: ignore[reportArgumentType]
    chosen = aj.compose(
        aj.estimate_moments(), aj.only(aj.amsgrad_max(), "*/kernel"), aj.precondition()
    )
    with pytest.raises(ValueError, match=r"only\(amsgrad_max, ...\).*optax.partition"):
        pack_small_leaves(chosen)


def test_gradients_that_do_not_fit() -> None:
    tx, params = pack_small_leaves(aj.adamw(0.1)), sample_params()
    state = tx.init(params)
    with pytest.raises(ValueError, match="gradient of 'scale' has shape"):
        tx.update({**params, "scale": jnp.ones(4)}, state, params)
    with pytest.raises(ValueError, match="missing"):
        tx.update({"dense": params["dense"]}, state, params)


def test_gradients_of_mixed_dtypes() -> None:
    """An optax transformation keeps dtypes, so one buffer has one."""
    tx = pack_small_leaves(optax.trace(0.9), elementwise=True)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    mixed = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"\['bfloat16', 'float32'\]: cast the gradients"):
        tx.update(mixed, tx.init(params), params)


@pytest.mark.devices
def test_sharded_small_leaves_are_refused() -> None:
    mesh = jax.make_mesh((8,), ("data",))
    split = jax.device_put(jnp.ones(16), NamedSharding(mesh, PartitionSpec("data")))
    params = {"a": split, "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"'a' of 16 elements is sharded.*limit=16"):
        pack_small_leaves(aj.adamw(0.1)).init(params)
    state = pack_small_leaves(aj.adamw(0.1), limit=16).init(params)
    assert avals(state) == avals(aj.adamw(0.1).init(params))


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.complex64])
def test_dtypes(dtype: Any) -> None:
    """Narrow leaves have float32 buffers; complex ones stay alone, beside packed real ones."""
    params, gradients = sample_params(dtype), sample_gradients(2, dtype)
    params["more"], gradients["more"] = sample_params(), sample_gradients(2)
    tx, plain = pack_small_leaves(aj.adamw(0.05)), aj.adamw(0.05)
    got, state = run(tx, params, gradients)
    expected, plain_state = run(plain, params, gradients)
    assert_close(got, expected)
    assert_close(repack_state(state, plain, params), plain_state)
    narrow = dtype == jnp.bfloat16
    assert buffers(plain_state) - buffers(state) == 2 * (5 if narrow else 2)
    again = jax.eval_shape(one_step(tx), params, state, at(gradients, 0))
    assert avals(again) == avals((params, state))


def test_compiled_donated_and_mapped() -> None:
    """One compiled step with donated state, and several learning rates at a time."""
    tx, params = pack_small_leaves(aj.adamw(0.05)), jax.tree.map(jnp.copy, sample_params())
    state, step = tx.init(params), jax.jit(one_step(tx), donate_argnums=(0, 1))
    for i in range(3):
        params, state = step(params, state, at(sample_gradients(), i))
    assert step._cache_size() == 1
    expected = run(aj.adamw(0.05), sample_params(), sample_gradients())[0]
    assert_close(params, expected)

    def run_at(rate: jax.Array) -> Any:
        return run(pack_small_leaves(aj.adamw(rate)), sample_params(), sample_gradients())[0]

    mapped = jax.vmap(run_at)(jnp.array([0.05, 0.2]))
    assert_close(jax.tree.map(lambda x: x[0], mapped), expected)


SHAPES = st.lists(st.sampled_from([(), (2,), (0,), (2, 3), (4,)]), min_size=1, max_size=7)


@settings(max_examples=10)
@given(SHAPES, st.sampled_from([1, 4, 40]), st.integers(2, 4))
def test_packing_and_unpacking_any_tree(shapes: Any, limit: int, group: int) -> None:
    """Unpacking inverts packing; buffers hold at most ``group`` leaves, all under ``limit``."""
    tree = {
        f"{i:02}": np.arange(np.prod(s), dtype=np.float32).reshape(s) + i
        for i, s in enumerate(shapes)
    }
    packer = Packer(limit, group)
    packed = packer.pack(tree)
    assert_equal(packer.unpack(packed, tree), tree)
    small = [x.size for x in tree.values() if 0 < x.size < limit]
    kept = len(jax.tree.leaves(packed))
    assert kept == len(tree) - len(small) + -(-len(small) // group)
    for name, x in packed.items():
        if x is not None and x.shape != tree[name].shape:
            assert x.size <= group * (limit - 1)


@settings(max_examples=10)
@given(SHAPES, st.integers(2, 4), st.integers(2, 4))
def test_repacking_between_groups(shapes: Any, one: int, other: int) -> None:
    params = {f"{i:02}": np.ones(s, np.float32) for i, s in enumerate(shapes)}
    plain = aj.sgdw(0.1)
    txs = [pack_small_leaves(plain, 20, n) for n in (one, other)]
    count = iter(range(1000))
    start = jax.tree.map(
        lambda x: (
            np.arange(x.size, dtype=np.int32).reshape(x.shape).astype(x.dtype)
            + np.asarray(100 * next(count)).astype(x.dtype)
        ),
        jax.eval_shape(plain.init, params),
    )
    first = repack_state(start, txs[0], params)
    second = repack_state(first, txs[1], params)
    assert_equal(repack_state(second, plain, params), start)
