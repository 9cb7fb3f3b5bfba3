"""Averages of weights: of mapped states, in boxes, and how an exponential one starts."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import adamw_jax as aj
from adamw_jax.update._average_iterates import KINDS
from tests.catalogue import assert_close

pytestmark = pytest.mark.quick

WINDOW = 5
AVERAGES: dict[str, Any] = {
    **{
        kind: lambda kind=kind: aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 1, kind))
        for kind in KINDS
    },
    "debiased ema": lambda: aj.compose(
        aj.sgdw(0.1), aj.average_iterates(1, 2, "ema", debias=True, warm_up=True)
    ),
    "last, now and then": lambda: aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 3, "last")),
    "lookahead": lambda: aj.compose(aj.sgdw(0.1), aj.lookahead()),
    "lookahead around": lambda: aj.lookahead(optax.sgd(0.1), inner_state="reset"),
    "gadam": lambda: aj.gadam(0.1, kind="last"),
}
MAPPED = {
    "vmap, as many as the window": (jax.vmap, (WINDOW,)),
    "vmap": (jax.vmap, (3,)),
    "vmap, nested, as many": (lambda f: jax.vmap(jax.vmap(f)), (WINDOW, WINDOW)),
    "pmap, as many as the window": (jax.pmap, (WINDOW,)),
    "pmap of vmap": (lambda f: jax.pmap(jax.vmap(f)), (2, WINDOW)),
}


@pytest.mark.parametrize(
    "mapped",
    [
        pytest.param("vmap, as many as the window"),
        *(
            pytest.param(x, marks=[pytest.mark.slow, *([pytest.mark.devices] * ("pmap" in x))])
            for x in [*MAPPED][1:]
        ),
    ],
)
@pytest.mark.parametrize("name", AVERAGES)
def test_weights_of_a_mapped_state_are_those_of_its_members(name: str, mapped: str) -> None:
    tx, (over, shape) = AVERAGES[name](), MAPPED[mapped]
    matrix = jnp.arange(WINDOW * math.prod(shape), dtype=jnp.float32).reshape(*shape, 1, WINDOW)
    params = {"w": matrix, "s": matrix[..., 0, 0], "b": matrix.astype(jnp.bfloat16)}

    def trajectory(params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state, aj.eval_params(state, params))

        return jax.lax.scan(step, (params, tx.init(params)), None, 8)[1]

    params, state, expected = jax.device_get(over(trajectory)(params))
    for t in (0, 3, 7):
        now, after, members = jax.tree.map(
            lambda x, t=t: jnp.take(x, t, len(shape)), (params, state, expected)
        )
        got = aj.eval_params(after, now)
        assert_close(got.pop("b"), members.pop("b"), rtol=0.01)  # a bit of bfloat16
        assert_close(got, members)


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("shape", [(3,), (), (1, 4)])
def test_parameters_of_another_shape_are_refused(name: str, shape: tuple[int, ...]) -> None:
    tx, params = AVERAGES[name](), {"w": jnp.ones((2, 4))}
    _, state = tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"average of 'w' has shape .* the tree that init was"):
        aj.eval_params(state, {"w": jnp.ones(shape)})


@pytest.mark.parametrize("name", AVERAGES)
def test_flattened_weights_have_the_shapes_of_the_parameters(name: str) -> None:
    """``optax.flatten`` keeps one vector; also of a single leaf, with or without a name."""
    matrix = jnp.arange(6.0).reshape(2, 3)
    for params in ({"w": matrix, "s": matrix[0, 1], "b": matrix[0]}, {"w": matrix[0]}, matrix):
        results = []
        for tx in (AVERAGES[name](), optax.flatten(AVERAGES[name]())):
            now, state = params, tx.init(params)
            for _ in range(3):
                updates, state = tx.update(jax.tree.map(jnp.cos, now), state, now)
                now = optax.apply_updates(now, updates)
            results.append(aj.eval_params(state, now))
        assert_close(*reversed(results))
    with pytest.raises(ValueError, match=r"averages of \[''\].*the parameters of that part"):
        aj.eval_params(state, {"other": matrix, "more": matrix})


BOXED = {
    "last": lambda: aj.compose(aj.adamw(0.1), aj.average_iterates(kind="last", window=4)),
    "adafactor": lambda: aj.adafactor(0.1),
    "factored adafactor": lambda: aj.adafactor(0.1, min_dim_size_to_factor=4),
}


@pytest.mark.slow
@pytest.mark.devices
@pytest.mark.parametrize("name", BOXED)
def test_state_of_another_shape_has_not_the_axis_names_of_nnx(name: str) -> None:
    """Neither the window of iterates nor factors have the parameter's ``out_sharding``."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            start = jax.random.normal(rngs.params(), (16, 32))
            self.w = nnx.Param(start, out_sharding=("fsdp", "tensor"))

    def loss_fn(model: Model) -> jax.Array:
        return jnp.sum(jnp.sin(model.w[...]))

    with jax.set_mesh(mesh):
        model = Model(nnx.Rngs(0))
        tx, plain = BOXED[name](), jax.device_get(nnx.to_pure_dict(nnx.state(model)))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(3):
            optimizer.update(model, nnx.grad(loss_fn)(model))
        moved = nnx.state(model, nnx.Param)
        places = jax.tree.map(lambda x: jax.typeof(x).sharding, moved)
        asked = aj.state_shardings(tx, moved, places)
        held = jax.tree.leaves(optimizer.opt_state)
        if name == "last":
            for place, x in zip(jax.tree.leaves(asked), held, strict=True):
                assert jax.typeof(x).sharding.is_equivalent_to(place, x.ndim)
        got = jax.device_get([aj.eval_params(optimizer.opt_state, moved), moved])
    params = jax.tree.map(jnp.asarray, plain)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
        params = optax.apply_updates(params, updates)
    expected = [aj.eval_params(state, params), params]
    assert_close(jax.tree.leaves(got), jax.tree.leaves(expected), rtol=1e-4)


def test_the_window_has_not_the_axis_names_of_linen() -> None:
    """Its first axis is none of the parameter's, as ``nn.get_partition_spec`` would have it."""
    params = {"w": nn.LogicallyPartitioned(jnp.arange(6.0).reshape(2, 3), ("in", "out"))}
    tx = BOXED["last"]()
    state = tx.init(params)
    for _ in range(3):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
    kept = state.stages["average_iterates"].mean["w"]
    assert kept.shape == (4, 2, 3)
    got = aj.eval_params(state, params)
    assert jax.tree.structure(got) == jax.tree.structure(params)


def test_factors_have_not_the_axis_names_of_linen() -> None:
    """A factor lacks an axis of the parameter, and so may not have the names of its axes."""
    plain = {"w": jnp.arange(6.0).reshape(2, 3) + 1, "b": jnp.ones(3)}
    params = {
        "w": nn.LogicallyPartitioned(plain["w"], ("in", "out")),
        "b": nn.LogicallyPartitioned(plain["b"], ("out",)),
    }
    tx = aj.adafactor(0.1, min_dim_size_to_factor=2)
    state = tx.init(params)
    places = nn.get_partition_spec(state)
    assert not any(any(place) for place in jax.tree.leaves(places))
    updates, after = jax.jit(tx.update)(params, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    expected, _ = jax.jit(tx.update)(plain, tx.init(plain), plain)
    assert_close(jax.tree.leaves(updates), jax.tree.leaves(expected))


def test_an_average_of_other_weights_is_refused() -> None:
    """The parameters of these methods are not the weights to evaluate."""
    for tx in (aj.schedule_free_adamw(0.1), aj.schedule_free_radam(0.1), aj.koala_m()):
        with pytest.raises(ValueError, match="leave average_iterates out, eval_params"):
            aj.compose(tx, aj.average_iterates())


def test_a_small_weight_of_schedule_free_keeps_its_digits() -> None:
    """Late in a run the average moves by a millionth of its distance, not by a rounded one."""
    tx = aj.compose(aj.sgdw(1.0, momentum=None), aj.update.schedule_free(1.0))
    params = jnp.ones(1)
    state = tx.init(params)
    free = state.stages["schedule_free"]._replace(weight_sum=jnp.float32(1e6), z=jnp.zeros(1))
    state = state._replace(stages={**state.stages, "schedule_free": free})
    updates, _ = tx.update(jnp.zeros(1), state, params)  # y' - y = c (z - y)
    assert float(updates[0]) == pytest.approx(-1 / (1e6 + 1), rel=1e-6)


def test_schedule_free_after_a_rectifier_of_some_leaves() -> None:
    """The rectifier is one number for the average, whatever leaves it rectifies."""
    tx = aj.compose(
        aj.estimate_moments(aj.moments.no_moment(), aj.ema_of_squares(0.999)),
        aj.only(aj.moments.rectify_variance(), "a"),
        aj.precondition(),
        aj.scale_by_learning_rate(0.1),
        aj.update.schedule_free(0.1),
    )
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    state = tx.init(params)
    for _ in range(6):
        _, state = tx.update(params, state, params)
    assert 0 < float(state.stages["schedule_free"].weight_sum) < 6 * 0.1**2
