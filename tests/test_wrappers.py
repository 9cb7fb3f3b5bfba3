"""The wrapper table: every optimizer under everything that JAX users put around one."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import adamw_jax
from adamw_jax import (
    adam,
    adamw,
    amsgrad_max,
    compose,
    correct_bias,
    estimate_moments,
    eval_params,
    hyperparams,
    lookahead,
    precondition,
    rectify_variance,
    scale_by_learning_rate,
    set_hyperparams,
)
from tests import catalogue
from tests.catalogue import (
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    assert_finite,
    at,
    avals,
    label,
    one_step,
    reference,
    run,
    sample_gradients,
    sample_params,
)

table = pytest.mark.parametrize("entry", PLAIN, ids=label)
UNWRAPPED = [entry for entry in PLAIN if not entry.name.startswith("lookahead_")]

IN_DENSE = {"dense": {"bias": True, "kernel": True}, "scale": False}


def named_dense(tree: Any) -> Any:
    """A mask by function: what lies under ``dense``."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "dense", tree)


@table
def test_masked(entry: Entry) -> None:
    """Masked-out leaves pass unchanged and have no state; the others move as without the mask."""
    tx = optax.masked(entry.make(), IN_DENSE)
    params, gradients = sample_params(), sample_gradients()
    got, state = run(tx, params, gradients)
    assert_close(got["dense"], reference(entry)[0]["dense"])
    assert_close(got["scale"], params["scale"] + jnp.sum(gradients["scale"]))
    whole = jax.eval_shape(entry.make().init, params)
    assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(whole)) - copies_of(entry)
    by_function = jax.eval_shape(optax.masked(entry.make(), named_dense).init, params)
    assert jax.tree.structure(by_function) == jax.tree.structure(state)


def copies_of(entry: Entry) -> int:
    """Values of state per parameter."""
    name = entry.name.removeprefix("lookahead_")
    return adamw_jax.info(name).state_values + (name != entry.name)


def test_masked_by_a_function() -> None:
    """A callable mask is asked anew in every update, under jit."""
    tx, expected = optax.masked(adamw(0.05), named_dense), optax.masked(adamw(0.05), IN_DENSE)
    arguments = sample_params(), sample_gradients()
    assert_close(run(tx, *arguments), run(expected, *arguments))


@table
def test_partition(entry: Entry) -> None:
    """Each part moves as under its own optimizer, and has its own live hyperparameters."""
    labels = {"dense": "ours", "scale": "theirs"}
    tx = optax.partition({"ours": entry.make(), "theirs": optax.sgd(0.1)}, labels)
    got, state = run(tx, sample_params(), sample_gradients())
    assert_close(got["dense"], reference(entry)[0]["dense"])
    alone = optax.sgd(0.1)
    assert_close(got["scale"], run(alone, sample_params()["scale"], sample_gradients()["scale"])[0])
    assert float(hyperparams(state)["learning_rate"]) == pytest.approx(0.05)


@pytest.mark.parametrize("entry", UNWRAPPED, ids=label)
def test_inject_hyperparams_with_a_number(entry: Entry) -> None:
    """The same trajectory, and what is written to the injected record takes effect at once."""
    tx = optax.inject_hyperparams(entry.factory)(0.05, **entry.options)
    params, gradients = sample_params(), sample_gradients()
    got, state = run(tx, params, gradients)
    assert_close(got, reference(entry)[0])
    update = jax.jit(tx.update)
    moved, _ = update(at(gradients, 0), state, params)
    state.hyperparams["learning_rate"] = jnp.float32(0.1)
    twice, _ = update(at(gradients, 0), state, params)
    decay_free = jax.tree.map(lambda u: 2 * u, moved)
    assert_close(twice, decay_free)


@pytest.mark.parametrize("entry", UNWRAPPED, ids=label)
def test_inject_hyperparams_with_a_schedule(entry: Entry) -> None:
    """An injected schedule gives the trajectory of the same schedule given directly."""
    schedule = optax.linear_schedule(0.1, 0.02, 3)
    injected = optax.inject_hyperparams(entry.factory)(schedule, **entry.options)
    params, gradients = sample_params(), sample_gradients()
    assert_close(
        run(injected, params, gradients)[0], run(entry.make(schedule), params, gradients)[0]
    )


@table
def test_multi_steps(entry: Entry) -> None:
    """Two micro-steps of one gradient are one step of it."""
    tx = optax.MultiSteps(entry.make(), 2).gradient_transformation()
    twice = jax.tree.map(lambda g: np.repeat(g, 2, axis=0), sample_gradients())
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps itself is not strict
        got, _ = run(tx, sample_params(), twice)
    assert_close(got, reference(entry)[0])


@table
def test_apply_if_finite(entry: Entry) -> None:
    """A step with a NaN gradient leaves parameters and state as they were."""
    tx = optax.apply_if_finite(entry.make(), 5)
    broken = jax.tree.map(
        lambda g: np.insert(g, 1, np.full_like(g[0], np.nan), axis=0), sample_gradients()
    )
    got, state = run(tx, sample_params(), broken)
    assert_close((got, state.inner_state), reference(entry))
    assert int(state.total_notfinite) == 1


@table
def test_scan_is_a_loop_of_donated_steps(entry: Entry) -> None:
    """The compiled scan equals a loop, and donation finds no array in two places."""
    tx = entry.make()
    params = jax.tree.map(jnp.copy, sample_params())
    state = tx.init(params)
    addresses = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
    assert len(set(addresses)) == len(addresses)
    step = jax.jit(one_step(tx), donate_argnums=(0, 1))
    for i in range(3):
        given = params
        params, state = step(params, state, at(sample_gradients(), i))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert_close((params, state), reference(entry))


@table
def test_vmap_over_learning_rates(entry: Entry) -> None:
    """Several learning rates side by side give the runs they give one by one."""
    rates = jnp.array([0.05, 0.2])
    got = jax.vmap(lambda rate: run(entry.make(rate), sample_params(), sample_gradients())[0])(
        rates
    )
    assert_close(jax.tree.map(lambda x: x[0], got), reference(entry)[0])
    other = run(entry.make(0.2), sample_params(), sample_gradients())[0]
    assert_close(jax.tree.map(lambda x: x[1], got), other)


@table
def test_gradient_through_three_rectified_steps(entry: Entry) -> None:
    """Derivatives by learning rate, parameters and gradients are finite, with eps and without.

    Eight steps, of which RAdam skips five; then the same at gradients that are all 0.
    """
    names = sorted(entry.exact())

    def moved(eps: Any, rate: Any, params: Any, gradients: Any) -> jax.Array:
        tx = entry.make(rate, **dict.fromkeys(names, eps))
        step = one_step(tx)
        carry, _ = jax.lax.scan(
            lambda carry, g: (step(*carry, g), None), (params, tx.init(params)), gradients
        )
        return jnp.sum(carry[0] ** 2)

    slope = jax.jit(jax.vmap(jax.grad(moved, argnums=(1, 2, 3)), in_axes=(0, None, None, 0)))
    some = np.asarray(sample_gradients(8)["dense"]["bias"])
    cases = np.stack([some, some, np.zeros_like(some), np.zeros_like(some)])
    eps = np.array([1e-8, 0.0, 1e-8, 0.0], np.float32)
    got = slope(eps, np.float32(0.05), sample_params()["dense"]["bias"], cases)
    assert_finite(got)
    assert np.all(np.abs(got[0][:2]) > 0)
    assert np.all(np.abs(got[1][2:, :2]) > 0)


@table
def test_train_state(entry: Entry) -> None:
    """Flax Linen's ``TrainState``."""
    train = TrainState.create(apply_fn=lambda: None, params=sample_params(), tx=entry.make())
    step = jax.jit(lambda train, gradient: train.apply_gradients(grads=gradient))
    for i in range(3):
        train = step(train, at(sample_gradients(), i))
    assert_close((train.params, train.opt_state), reference(entry))


class _Dense(nnx.Module):
    def __init__(self, values: Any) -> None:
        self.bias = nnx.Param(values["bias"])
        self.kernel = nnx.Param(values["kernel"])


class _Model(nnx.Module):
    def __init__(self, values: Any) -> None:
        self.dense = _Dense(values["dense"])
        self.scale = nnx.Param(values["scale"])


@table
def test_nnx_optimizer(entry: Entry) -> None:
    """Flax NNX's ``Optimizer``; its state still gives hyperparameters, and takes them."""
    model = _Model(sample_params())
    optimizer = nnx.Optimizer(model, entry.make(), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any, gradient: Any) -> None:
        whole = nnx.state(model, nnx.Param)
        nnx.replace_by_pure_dict(whole, gradient)
        optimizer.update(model, whole)

    for i in range(3):
        step(model, optimizer, at(sample_gradients(), i))
    assert_close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), reference(entry)[0])
    assert float(hyperparams(optimizer.opt_state)["learning_rate"][...]) == pytest.approx(0.05)
    optimizer.opt_state = set_hyperparams(optimizer.opt_state, learning_rate=0.0)
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    if entry.name.startswith("lookahead_"):
        return  # the next step is a sync
    step(model, optimizer, at(sample_gradients(), 0))
    assert_equal(nnx.to_pure_dict(nnx.state(model, nnx.Param)), before)


def test_nnx_slow_weights() -> None:
    """``eval_params`` gives the slow weights in the form of the model's own state."""
    model = _Model(sample_params())
    optimizer = nnx.Optimizer(model, compose(adam(0.05), lookahead(sync_period=9)), wrt=nnx.Param)
    nnx.jit(lambda model, optimizer: optimizer.update(model, nnx.state(model, nnx.Param)))(
        model, optimizer
    )
    fast = nnx.state(model, nnx.Param)
    slow = eval_params(optimizer.opt_state, fast)
    assert jax.tree.structure(slow) == jax.tree.structure(fast)
    assert_equal(nnx.to_pure_dict(slow), sample_params())


@table
def test_none_leaves(entry: Entry) -> None:
    """Equinox-style trees, with None for what is no parameter, in params and gradients alike."""
    params, gradients = sample_params(), sample_gradients()
    params["dense"]["kernel"] = gradients["dense"]["kernel"] = None
    params["name"] = gradients["name"] = None
    tx = entry.make()
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(3):
        updates, state = update(at(gradients, i), state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
    expected = reference(entry)[0]
    assert params["dense"]["kernel"] is None
    assert_close(params["dense"]["bias"], expected["dense"]["bias"])
    assert_close(params["scale"], expected["scale"])


@table
def test_abstract_init(entry: Entry) -> None:
    """``init`` on shapes, under ``eval_shape``, under jit and on arrays agree."""
    tx, params = entry.make(), sample_params()
    concrete = avals(tx.init(params))
    shapes = jax.eval_shape(lambda: params)
    assert avals(tx.init(shapes)) == concrete
    assert avals(jax.eval_shape(tx.init, shapes)) == concrete
    assert avals(jax.jit(tx.init)(params)) == concrete


@table
def test_map_params(entry: Entry) -> None:
    """``optax.tree.map_params`` sees every accumulator, each once, and nothing else."""
    tx, params = entry.make(), sample_params()
    state = tx.init(params)
    seen: list[tuple[int, ...]] = []

    def visit(x: jax.Array, p: jax.Array) -> jax.Array:
        assert x.shape == p.shape
        seen.append(x.shape)
        return x + 1

    changed = optax.tree.map_params(tx, visit, state, params)
    assert len(seen) == copies_of(entry) * len(jax.tree.leaves(params))
    assert avals(changed) == avals(state)
    assert_equal(hyperparams(changed), hyperparams(state))


@table
def test_orbax_round_trip(entry: Entry, tmp_path: Any) -> None:
    """A saved and restored state is the same bit by bit, and goes on the same."""
    tx, (params, state) = entry.make(), reference(entry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, params))
    assert_equal(restored, state)
    update = jax.jit(tx.update)
    gradient = at(sample_gradients(), 0)
    assert_equal(update(gradient, restored, params), update(gradient, state, params))


@table
def test_extra_arguments_are_ignored(entry: Entry) -> None:
    """``update`` takes what other transformations of a chain want."""
    tx = optax.chain(optax.clip(1e3), entry.make())
    params = sample_params()
    updates, _ = jax.jit(functools.partial(tx.update, epoch="first"))(
        at(sample_gradients(), 0), tx.init(params), params, value=jnp.float32(1.0)
    )
    assert_finite(updates)


@pytest.mark.parametrize("name", adamw_jax.list_optimizers())
def test_direction_alone_makes_the_step(name: str) -> None:
    """``scale_by_<name>`` can be jitted alone; scaled by hand it is the optimizer without decay."""
    entry = Entry(name, name, {"weight_decay": None})
    direction = adamw_jax.info(name).direction()
    chained = optax.chain(direction, optax.scale(-0.05))
    expected = run(entry.make(), sample_params(), sample_gradients())[0]
    assert_close(run(chained, sample_params(), sample_gradients())[0], expected)
    assert getattr(adamw_jax, f"scale_by_{name}", direction) is not None


@pytest.mark.parametrize("inner_state", ["keep", "reset", "pullback"])
@pytest.mark.parametrize("inner", [optax.adam(0.05), adam(0.05)], ids=["optax", "ours"])
def test_lookahead_wraps(inner: Any, inner_state: str) -> None:
    """The wrapper form of Lookahead around either library, in a scan, donated and mapped."""
    tx = lookahead(inner, 2, 0.5, inner_state=inner_state)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam itself is not strict
        check_lookahead(tx)


def check_lookahead(tx: Any) -> None:
    """A scan equals donated steps, and the state is stable and mappable."""
    params, state = run(tx, sample_params(), sample_gradients(5))
    assert_finite((params, state))
    assert avals(state) == avals(tx.init(sample_params()))
    slow = eval_params(state, params)
    assert avals(slow) == avals(params)
    changed = optax.tree.map_params(tx, lambda x: x + 1, state)
    assert avals(changed) == avals(state)
    step = jax.jit(one_step(tx), donate_argnums=(0, 1))
    params = jax.tree.map(jnp.copy, sample_params())
    state = tx.init(params)
    for i in range(5):
        params, state = step(params, state, at(sample_gradients(5), i))
    assert_close(eval_params(state, params), slow)


# The cells that must raise, and say what to do.


def dimension_mask(params: Any) -> Any:
    """The usual mask: matrices decay, the rest does not."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize("jitted", [False, True])
def test_mask_taken_for_a_schedule_raises(jitted: bool) -> None:
    """``inject_hyperparams`` takes a callable mask for a schedule: said, not swallowed."""
    tx = optax.inject_hyperparams(adamw)(0.1, weight_decay=0.1, mask=dimension_mask)
    params = sample_params()
    gradient = at(sample_gradients(), 0)
    init, update = (jax.jit(tx.init), jax.jit(tx.update)) if jitted else (tx.init, tx.update)

    def train() -> None:
        update(gradient, init(params), params)

    with pytest.raises((TypeError, ValueError), match="static_args"):
        train()


def test_mask_declared_static_works() -> None:
    """And the remedy that the message names works."""
    tx = optax.inject_hyperparams(adamw, static_args="mask")(
        0.05, weight_decay=0.1, mask=dimension_mask
    )
    expected = adamw(0.05, weight_decay=0.1, mask=dimension_mask)
    arguments = sample_params(), sample_gradients()
    assert_close(run(tx, *arguments)[0], run(expected, *arguments)[0])


@pytest.mark.parametrize("entry", [e for e in UNWRAPPED if "b2" in e.keywords], ids=label)
def test_bfloat16_hyperparameters_are_refused(entry: Entry) -> None:
    """Injected numbers take the parameters' dtype; in bfloat16 b2 would be 1."""
    params = sample_params(jnp.bfloat16)
    with pytest.raises(TypeError, match=r"b[12] arrived as bfloat16.*hyperparam_dtype=jnp.float32"):
        optax.inject_hyperparams(entry.factory)(0.05, **entry.options).init(params)
    tx = optax.inject_hyperparams(entry.factory, hyperparam_dtype=jnp.float32)(0.05)
    got, _ = run(tx, params, sample_gradients(dtype=jnp.bfloat16))
    assert_finite(got)


@table
def test_gradient_none_alone_raises(entry: Entry) -> None:
    """None in the gradients where there is a parameter is an error that names the leaf."""
    params = sample_params()
    tx = entry.make()
    gradient = at(sample_gradients(), 0)
    gradient["dense"]["kernel"] = None
    with pytest.raises(ValueError, match=r"missing leaves \['dense/kernel'\].*None in both trees"):
        jax.jit(tx.update)(gradient, tx.init(params), params)


FOREIGN = {
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "scale": optax.scale(-0.5),
    "zero_nans": optax.zero_nans(),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "trace": optax.trace(0.9),
    "scale_by_learning_rate": optax.scale_by_learning_rate(0.1),
    "add_noise": optax.add_noise(0.1, 0.5, 0),
    "masked": optax.masked(optax.scale(0.5), IN_DENSE),
    "masked stage": optax.masked(amsgrad_max(), IN_DENSE),
}
NAMELESS = {"add_noise", "masked", "masked stage"}
"""These stumble over the record before they touch it, and the error is in their own words."""


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_between_moments_is_refused_by_compose(name: str) -> None:
    """At construction, with the remedy."""
    with pytest.raises(ValueError, match=r"before estimate_moments or after precondition"):
        compose(estimate_moments(), FOREIGN[name], precondition())


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_between_moments_raises_in_a_chain(name: str) -> None:
    """In ``optax.chain`` at the first update: never a silent change of the moments."""
    tx = optax.chain(estimate_moments(), FOREIGN[name], correct_bias(), precondition())
    errors = (TypeError, AttributeError, ValueError)
    params = sample_params()
    state = tx.init(params)
    with pytest.raises(errors):
        tx.update(at(sample_gradients(), 0), state, params)
    if name not in NAMELESS:
        leaf = params["dense"]["bias"]
        state = tx.init(leaf)
        with pytest.raises(errors, match=r"[Mm]oments"):
            tx.update(at(sample_gradients(), 0)["dense"]["bias"], state, leaf)


def test_jitting_one_moments_stage_raises() -> None:
    """The record cannot cross a jit boundary; the whole recipe can."""
    stage, params = estimate_moments(), sample_params()
    state = stage.init(params)
    with pytest.raises(TypeError, match=r"Moments"):
        jax.jit(stage.update)(at(sample_gradients(), 0), state, params)
    record, _ = stage.update(at(sample_gradients(), 0), state, params)
    second = correct_bias()
    with pytest.raises(TypeError, match=r"Moments"):
        jax.jit(second.update)(record, second.init(params), params)


def test_forgotten_precondition() -> None:
    """Refused by compose at construction, and in a chain at the next step or apply_updates."""
    with pytest.raises(ValueError, match=r"add precondition\(\)"):
        compose(estimate_moments(), correct_bias())
    with pytest.raises(ValueError, match=r"Put precondition\(\)"):
        compose(estimate_moments(), correct_bias(), scale_by_learning_rate(0.1))
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = optax.chain(estimate_moments(), correct_bias())
    record, _ = tx.update(gradient, tx.init(params), params)
    with pytest.raises((TypeError, ValueError, AttributeError), match="Moments"):
        optax.apply_updates(params, record)
    longer = optax.chain(tx, scale_by_learning_rate(0.1))
    state = longer.init(params)
    with pytest.raises(TypeError, match=r"put precondition\(\) before it"):
        longer.update(gradient, state, params)


@pytest.mark.parametrize(
    "stage", [correct_bias(), amsgrad_max(), rectify_variance(), precondition()]
)
def test_forgotten_estimate(stage: Any) -> None:
    """A stage on moments that gets gradients says what is missing."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    state = stage.init(params)
    with pytest.raises(TypeError, match=r"put estimate_moments\(first=..., second=...\) before it"):
        stage.update(gradient, state, params)
    with pytest.raises(ValueError, match=r"Put estimate_moments\(...\) before it"):
        compose(stage, precondition())


def test_several_recipes_with_one_name() -> None:
    """Under partition a name is told apart by the path of its recipe."""
    labels = {"dense": "fast", "scale": "slow"}
    tx = optax.partition({"fast": adamw(0.1), "slow": adamw(0.01)}, labels)
    state = tx.init(sample_params())
    with pytest.raises(ValueError, match=r"several recipes have a hyperparameter 'learning_rate'"):
        set_hyperparams(state, learning_rate=0.5)
    names = [name for name in hyperparams(state) if name.endswith("learning_rate")]
    assert len(names) == 2
    before, after = hyperparams(state), hyperparams(set_hyperparams(state, {names[0]: 0.5}))
    assert float(after[names[0]]) == 0.5
    assert float(after[names[1]]) == float(before[names[1]])


def test_catalogue_choices() -> None:
    """Every keyword that takes words has a row in the table of choices."""
    for name in adamw_jax.list_optimizers():
        for argument, parameter in Entry(name, name).keywords.items():
            if isinstance(parameter.default, str):
                assert argument in catalogue.CHOICES, (name, argument)
