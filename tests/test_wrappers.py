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
    compose,
    eval_params,
    hyperparams,
    lookahead,
    set_hyperparams,
)
from tests.catalogue import (
    FACTORED,
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    assert_finite,
    at,
    avals,
    one_operation_at_a_time,
    one_step,
    reference,
    rows,
    run,
    sample_gradients,
    sample_params,
    whole_numbers,
    with_direction,
    with_needs,
)

pytestmark = pytest.mark.quick

table = pytest.mark.parametrize("entry", rows(PLAIN))
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
    assert_close(got["dense"], moved(entry, "dense"))
    assert_close(got["scale"], params["scale"] + jnp.sum(gradients["scale"]))
    whole = jax.eval_shape(entry.make().init, params)
    if entry.name not in FACTORED:
        assert len(jax.tree.leaves(state)) == len(jax.tree.leaves(whole)) - entry.state_values
    by_function = jax.eval_shape(optax.masked(entry.make(), named_dense).init, params)
    assert jax.tree.structure(by_function) == jax.tree.structure(state)


def moved(entry: Entry, name: str) -> Any:
    """Where a part of the parameters goes, alone if the optimizer looks at all it sees."""
    if entry.scope != "tree":
        return reference(entry)[0][name]
    return run(entry.make(), sample_params()[name], sample_gradients()[name])[0]


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
    assert_close(got["dense"], moved(entry, "dense"))
    alone = optax.sgd(0.1)
    assert_close(got["scale"], run(alone, sample_params()["scale"], sample_gradients()["scale"])[0])
    assert float(hyperparams(state)["learning_rate"]) == pytest.approx(0.05)


@pytest.mark.parametrize("entry", rows(UNWRAPPED))
def test_inject_hyperparams_with_a_number(entry: Entry) -> None:
    """The same trajectory, and what is written to the injected record takes effect at once."""
    tx = optax.inject_hyperparams(entry.factory, static_args=whole_numbers(entry))(
        0.05, **entry.example, **entry.options
    )
    steps = 7  # RAdam's first five do not move
    params, gradients = sample_params(), sample_gradients(steps)
    got, state = run(tx, params, gradients)
    assert_close(got, reference(entry, steps)[0])
    update = jax.jit(tx.update)
    once, _ = update(at(gradients, 0), state, params)
    state.hyperparams["learning_rate"] = jnp.float32(0.1)
    twice, _ = update(at(gradients, 0), state, params)
    usual = getattr(entry.keywords.get("decay"), "default", "learning_rate")
    form = entry.options.get("decay", usual)
    if form == "learning_rate" and entry.info.direction is not None:
        assert_close(twice, jax.tree.map(lambda u: 2 * u, once))
    else:
        assert np.any(np.asarray(twice["dense"]["kernel"] != once["dense"]["kernel"]))


@pytest.mark.parametrize("entry", rows(UNWRAPPED))
def test_inject_hyperparams_with_a_schedule(entry: Entry) -> None:
    """An injected schedule gives the trajectory of the same schedule given directly."""
    schedule = optax.linear_schedule(0.1, 0.02, 3)
    injected = optax.inject_hyperparams(entry.factory, static_args=whole_numbers(entry))(
        schedule, **entry.example, **entry.options
    )
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
    if entry.name.startswith("lookahead_") or entry.info.direction is None:
        return  # the next step is a sync, or the momentum has its learning rate in it
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
    if entry.scope != "tree":
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
        assert x.shape == p.shape or entry.name in FACTORED
        seen.append(x.shape)
        return x + 1

    changed = optax.tree.map_params(tx, visit, state, params)
    if entry.name not in FACTORED:
        assert len(seen) == entry.state_values * len(jax.tree.leaves(params))
    assert avals(changed) == avals(state)
    assert_equal(hyperparams(changed), hyperparams(state))


@pytest.mark.sample(3)
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
    gradient, state = at(sample_gradients(), 0), tx.init(params)
    update = functools.partial(tx.update, epoch="first", value=jnp.float32(1.0))
    updates, _ = one_operation_at_a_time(update, gradient, state, params)(gradient, state, params)
    assert_finite(updates)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", with_direction())
def test_direction_alone_makes_the_step(name: str) -> None:
    """``scale_by_<name>`` can be jitted alone; scaled by hand it is the optimizer without decay."""
    entry = Entry(name, name, {"weight_decay": None})
    direction = adamw_jax.info(name).direction()
    chained = optax.chain(direction, optax.scale(-0.05))
    expected = run(entry.make(), sample_params(), sample_gradients())[0]
    assert_close(run(chained, sample_params(), sample_gradients())[0], expected)
    assert getattr(adamw_jax, f"scale_by_{name}") is adamw_jax.info(name).direction


@pytest.mark.parametrize("inner_state", ["keep", "reset", "pullback"])
@pytest.mark.parametrize("inner", [optax.adam(0.05), adam(0.05)], ids=["optax", "ours"])
def test_lookahead_wraps(inner: Any, inner_state: str) -> None:
    """The wrapper form of Lookahead around either library, in a scan, donated and mapped."""
    tx = lookahead(inner, 2, 0.5, inner_state=inner_state)
    with jax.numpy_dtype_promotion("standard"):  # optax.adam itself is not strict
        check_lookahead(tx)


WITHOUT_MOMENTUM = {
    "adafactor", "clipped_sgd", "normalized_sgd", "koala_v", "koala_m", "norm_adaptive_sgd",
    "schedule_free_adamw", "schedule_free_radam",
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", adamw_jax.list_optimizers())
def test_pullback_mixes_momenta_and_nothing_else(name: str) -> None:
    """With alpha 1 it is keeping, to the bit: flags and previous gradients are not averaged."""
    row = adamw_jax.info(name)
    inner = with_needs(row, row.factory(0.05, **row.example))
    pulled = lookahead(inner, 3, 1.0, inner_state="pullback")
    if name in WITHOUT_MOMENTUM:
        with pytest.raises(ValueError, match=r"pullback.*one momentum.*has 0: give inner_state"):
            pulled.init(sample_params())
        return
    got = run(pulled, sample_params(), sample_gradients(8))
    kept = run(lookahead(inner, 3, 1.0), sample_params(), sample_gradients(8))
    assert_close(got[0], kept[0], rtol=1e-6)
    assert_close(got[1].inner, kept[1].inner, rtol=1e-6)


def test_pullback_of_alternating_and_previous_arrays() -> None:
    """PNM's parity advances with every step, and Adan's previous gradient is the last one."""
    gradients = sample_gradients(8)
    tx = lookahead(adamw_jax.pnm(0.05), 3, inner_state="pullback")
    params, state = sample_params(), None
    state, parities = tx.init(params), []
    step = jax.jit(one_step(tx))
    for i in range(8):
        params, state = step(params, state, at(gradients, i))
        parities.append(bool(state.inner.stages["estimate_moments"].first.odd))
    assert parities == [True, False] * 4
    tx = lookahead(adamw_jax.adan(0.05), 2, inner_state="pullback")
    _, state = run(tx, sample_params(), gradients)
    assert_equal(state.inner.stages["estimate_moments"].first.previous, at(gradients, 7))
    tx = lookahead(adamw_jax.adafactor(0.05, b1=0.9), 2, inner_state="pullback")
    _, state = run(tx, sample_params(), gradients)
    assert sorted(state.momentum) == ["average"]


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
