"""Steps whose directions must be whole go leaf by leaf: the same values, and less scratch."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import adamw_jax as aj
from adamw_jax._core import numerics
from adamw_jax._core.sequential import SMALL, after, leaf_by_leaf, switched, wait
from adamw_jax.storage import choose
from benchmarks import hlo

RECIPES = {
    "lamb": lambda: aj.lamb(0.1, weight_decay=0.1),
    "masked lamb": lambda: aj.lamb(0.1, weight_decay=0.1, mask=aj.matrices_only),
    "clipped lamb": lambda: aj.compose(aj.clip_gradient(1.0), aj.lamb(0.1)),
    "adafactor": lambda: aj.adafactor(0.1, b1=0.9, min_dim_size_to_factor=2),
    "acprop": lambda: aj.acprop(0.1, eps=1e-3),
    "rectified acprop": lambda: aj.acprop(0.1, eps=1e-3, rectify=True, amsgrad=True),
    "acprop of 8 bits": lambda: aj.acprop(0.1, eps=1e-3, storage="8bit"),
    "quantized acprop": lambda: aj.quantize_state(aj.acprop(0.1, eps=1e-3)),
    "acprop with a trust ratio": lambda: aj.compose(
        aj.scale_by_acprop(eps=1e-3), aj.scale_by_trust_ratio(), aj.scale_by_learning_rate(0.1)
    ),
    "ratio without a leaf": lambda: aj.compose(
        aj.scale_by_adam(),
        aj.scale_by_trust_ratio(mask=aj.except_named("layer2", "b")),
        aj.scale_by_learning_rate(0.1),
    ),
    "ratio of some leaves": lambda: aj.compose(
        aj.scale_by_adam(),
        aj.only(aj.scale_by_trust_ratio(), aj.matrices_only),
        aj.scale_by_learning_rate(0.1),
    ),
    "packed, then whole": lambda: aj.pack_small_leaves(aj.acprop(0.1, eps=1e-3), 100),
    "cautious": lambda: aj.adamw(0.1, cautious=True),
    "cautious of some leaves, packed": lambda: aj.pack_small_leaves(
        aj.compose(
            aj.scale_by_adam(),
            aj.only(aj.cautious(), aj.matrices_only),
            aj.scale_by_learning_rate(0.1),
        ),
        100,
    ),
    "frozen": lambda: aj.lamb(
        0.1, rules=aj.parameter_rules({"b": aj.Rule(freeze=True), "[!b]": aj.Rule()})
    ),
    "lookahead around": lambda: aj.lookahead(aj.lamb(0.1)),
    "in a chain": lambda: optax.chain(
        optax.clip_by_global_norm(0.5), aj.lamb(0.1), optax.scale(0.5)
    ),
    "gadam": lambda: aj.gadam(0.1),
    "diffgrad": lambda: aj.diffgrad(0.1),
    "quantized diffgrad": lambda: aj.quantize_state(aj.diffgrad(0.1)),
    "norm-adaptive": lambda: aj.norm_adaptive_sgd(0.1),
    "adan": lambda: aj.adan(0.1),
    "koala_m": lambda: aj.koala_m(),
}


def _params(dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 80), "b": (80,), "c": (90, 70), "d": (128, 40), "none": None, "e": (0, 3)}
    return {
        name: None if shape is None else jnp.asarray(rng.standard_normal(shape), dtype)
        for name, shape in shapes.items()
    }


def _run(tx: optax.GradientTransformation, params: Any) -> Any:
    """Three compiled steps; a function of its own, so that nothing is compiled already."""

    def step(params: Any, state: Any) -> Any:
        # In bfloat16, XLA would round 7 p or not, as it fuses.
        wide = jax.tree.map(numerics.widen, params)
        gradients = jax.tree.map(lambda w, p: jnp.sin(7 * w).astype(p.dtype), wide, params)
        update = optax.with_extra_args_support(tx).update
        updates, state = update(gradients, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step)
    state = tx.init(params)
    for _ in range(3):
        params, state = compiled(params, state)
    return params, state


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that sees one device; the others of these tests stay unused."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "dtype",
    [
        jnp.float32,
        pytest.param(jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(jnp.complex64, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.quick
@pytest.mark.parametrize("name", RECIPES)
def test_values_are_those_without_order(
    name: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = _params(dtype)
    with jax.numpy_dtype_promotion("standard"):
        with switched(False):
            expected = _run(RECIPES[name](), params)
        monkeypatch.setattr(jax, "device_count", lambda: 1)
        got = _run(RECIPES[name](), params)
    chex.assert_trees_all_equal_structs(got, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, expected)
    close = {"rtol": 3e-6, "atol": 3e-7} if dtype != jnp.bfloat16 else {"rtol": 2e-2, "atol": 2e-2}
    chex.assert_trees_all_close(got, expected, **close)


@pytest.mark.usefixtures("one_device")
def test_a_nan_stays_in_its_leaf() -> None:
    params = _params()
    tx = aj.lamb(0.1)
    gradients = {**params, "a": jnp.full_like(params["a"], jnp.nan)}
    updates, _ = jax.jit(tx.update)(gradients, tx.init(params), params)
    assert bool(jnp.isnan(updates["a"]).all())
    assert all(bool(jnp.isfinite(updates[name]).all()) for name in "bcd")


@pytest.mark.usefixtures("one_device")
def test_derivatives_pass_through_an_ordered_step(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {name: _params()[name] for name in ("a", "c")}
    tx = aj.lamb(0.1)

    def moved(scale: Any, update: Any) -> Any:
        gradients = jax.tree.map(lambda p: jnp.cos(scale * p), params)
        updates, _ = update(gradients, state, params)
        return sum(jnp.sum(u * p) for u, p in zip(updates.values(), params.values(), strict=True))

    state = tx.init(params)
    compiled = jax.grad(lambda s: moved(s, jax.jit(tx.update)))(1.3)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    np.testing.assert_allclose(compiled, jax.grad(lambda s: moved(s, tx.update))(1.3), rtol=1e-5)


@pytest.mark.usefixtures("one_device")
def test_steps_of_many_models_at_once() -> None:
    params = jax.tree.map(
        lambda p: jnp.stack([p, 2 * p]), {"a": jnp.ones((64, 80)), "b": jnp.ones((5000,))}
    )
    tx = aj.acprop(0.1, eps=1e-3)
    state = jax.vmap(tx.init)(params)
    got, _ = jax.jit(jax.vmap(tx.update))(params, state, params)
    for i in range(2):
        one = jax.tree.map(lambda p, i=i: p[i], params)
        chex.assert_trees_all_close(
            jax.tree.map(lambda u, i=i: u[i], got), tx.update(one, tx.init(one), one)[0], rtol=1e-6
        )


@pytest.mark.sample(2)
@pytest.mark.optimized
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    "name",
    ["lamb", "clipped lamb", "adafactor", "acprop", "lookahead around", "ratio without a leaf"],
)
def test_scratch_is_that_of_the_largest_leaf(name: str) -> None:
    params = {f"layer{i}": jax.ShapeDtypeStruct((256, 128), jnp.float32) for i in range(6)}
    tx = RECIPES[name]()

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = hlo.compile_step(step, params, jax.eval_shape(tx.init, params), params)
    leaves = 2 if name == "ratio without a leaf" else 1  # that one may go beside another
    assert hlo.scratch_bytes(compiled) <= leaves * 4 * 256 * 128 + 8192


@pytest.mark.usefixtures("one_device")
def test_a_step_without_scalars_is_left_as_it_is() -> None:
    """As under ``pack_small_leaves``, whose directions are not leaf by leaf."""
    updates = {"a": jnp.ones(SMALL), "b": jnp.ones(SMALL)}

    def step(updates: Any, state: Any) -> Any:
        return jax.tree.map(lambda u: -u, updates), state + 1, None

    moved, state = jax.jit(lambda u: leaf_by_leaf(step, u, jnp.int32(0)))(updates)
    assert int(state) == 1
    chex.assert_trees_all_equal(moved, jax.tree.map(lambda u: -u, updates))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("size", [2, SMALL])
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("reader", [jnp.inf, jnp.nan, 1e30, 1e30j])
def test_after_keeps_values_that_a_reader_cannot_hold(
    reader: Any, kept: bool, size: int, devices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may be infinite, NaN, or too large for the dtype of what waits for it."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    x = jnp.arange(size, dtype=jnp.int32).astype(jnp.float16)
    held = jnp.full(size, reader, jnp.complex64 if isinstance(reader, complex) else jnp.float32)
    got = jax.jit(lambda x, held: after(x, held, kept=kept))(x, held)
    chex.assert_trees_all_equal(got, x)


@pytest.mark.sample(4)
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto, "shard_map"], ids=str)
@pytest.mark.parametrize("name", ["lamb", "adafactor", "acprop", "adan", "gadam", "diffgrad"])
def test_a_mesh_of_one_device(name: str, kind: Any) -> None:
    """Types tell how arrays lie in a mesh, and unlike ones may not be mixed: no order there."""
    mapped = kind == "shard_map"
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Auto if mapped else kind,))
    rows = PartitionSpec("x")
    params = {"a": jnp.ones((64, 80)), "b": jnp.full((80, 64), 2.0)}
    tx = RECIPES[name]()
    expected, _ = tx.update(params, tx.init(params), params)
    if mapped:
        specs: Any = {"in_specs": (rows, PartitionSpec(), PartitionSpec()), "out_specs": rows}
        update = jax.shard_map(lambda g, s, p: tx.update(g, s, p)[0], mesh=mesh, **specs)
        got = jax.jit(update)(params, tx.init(params), params)
    else:
        placed = jax.device_put(params, NamedSharding(mesh, rows))
        got, _ = jax.jit(tx.update)(placed, tx.init(placed), placed)
    chex.assert_trees_all_close(jax.tree.map(np.asarray, got), expected, rtol=2e-5)


@pytest.mark.usefixtures("one_device")
def test_effects_keep_their_order() -> None:
    """Of a stage that writes to a reference and reads it; nothing else tells that order."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        def leaf(x: jax.Array) -> jax.Array:
            ref = jax.new_ref(x)
            ref[...] = 2 * x
            return ref[...]

        return jax.tree.map(leaf, updates), state

    twice = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    params = {"a": jnp.ones(SMALL), "b": jnp.ones(SMALL)}
    once, tx = aj.lamb(0.1), aj.compose(aj.lamb(0.1), ("twice", twice))
    got, _ = jax.jit(tx.update)(params, tx.init(params), params)
    half, _ = once.update(params, once.init(params), params)
    chex.assert_trees_all_close(got, jax.tree.map(lambda u: 2 * u, half), rtol=1e-5)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["lamb", "adafactor", "acprop"])
def test_no_tracer_outlives_a_step(name: str) -> None:
    params, tx = {"a": jnp.ones(SMALL), "b": jnp.ones(SMALL)}, RECIPES[name]()
    state = tx.init(params)
    with jax.checking_leaks():
        jax.jit(tx.update)(params, state, params)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", ["lamb", "acprop", "diffgrad"])
def test_steps_of_symbolic_shapes(name: str) -> None:
    (n,) = export.symbolic_shape("n", constraints=["n>=4"])
    params = {key: jax.ShapeDtypeStruct((n, 8), jnp.float32) for key in "ab"}
    tx = RECIPES[name]()
    made = export.export(jax.jit(tx.update))(params, jax.eval_shape(tx.init, params), params)
    real = {key: jnp.ones((6, 8)) for key in "ab"}
    assert made.in_avals[0].shape[1] == 8
    expected = jax.eval_shape(tx.update, real, tx.init(real), real)[0]
    assert len(made.out_avals) >= len(jax.tree.leaves(expected))


@pytest.mark.usefixtures("one_device")
def test_an_eager_step_under_grad_is_not_traced() -> None:
    """A schedule may then look its rate up."""
    rates, params = [0.1, 0.2], {"a": jnp.ones(SMALL), "b": jnp.ones(SMALL)}
    tx = aj.lamb(lambda count: jnp.float32(rates[int(count)]))
    state = tx.init(params)

    def moved(c: Any) -> Any:
        updates, _ = tx.update(jax.tree.map(lambda p: c * p, params), state, params)
        return jnp.sum(updates["a"])

    assert np.isfinite(jax.grad(moved)(1.3))


def test_only_still_refuses_to_delay_some_leaves() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = aj.compose(
        aj.estimate_moments(),
        aj.only(aj.delay_second(), "a"),
        aj.precondition(),
        aj.scale_by_learning_rate(0.1),
    )
    with pytest.raises(ValueError, match=r"only\(\) cannot correct the bias .* or delay it"):
        tx.update(params, tx.init(params), params)


def _scratch_in_turn(gate: Any) -> int:
    """Scratch of a step whose leaves are moved by their own norms, with a gate between them."""

    def step(params: list[jax.Array], gradients: list[jax.Array]) -> list[jax.Array]:
        moved, known = [], None
        for p, g in zip(params, gradients, strict=True):
            gated = g if known is None else gate(g, known)
            direction = jnp.sin(gated) / (1 + jnp.abs(p))
            known = jnp.sum(direction * direction)
            moved.append(p - known * direction)
        return moved

    params = [jax.ShapeDtypeStruct((512, 256), jnp.float32)] * 6
    return hlo.scratch_bytes(hlo.compile_step(step, params, params, donate=(0,)))


@pytest.mark.optimized
def test_a_data_dependency_orders() -> None:
    """XLA of jax 0.10 removes an optimization barrier before it schedules; that stays."""
    free = _scratch_in_turn(lambda g, known: g)
    assert _scratch_in_turn(wait) <= free / 2


@pytest.mark.optimized
@pytest.mark.usefixtures("one_device")
def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On for a CPU, off elsewhere, and as the user says; a False outside wins."""
    params = {f"layer{i}": jax.ShapeDtypeStruct((64, 128), jnp.float32) for i in range(4)}

    def program(tx: Any) -> str:
        state = jax.eval_shape(tx.init, params)
        return jax.jit(tx.update).lower(params, state, params).as_text()

    lamb, small = aj.lamb(0.1), choose("8bit", sequential=False)
    on, off = (program(aj.compose(lamb, sequential=choice)) for choice in (True, False))
    assert program(lamb) == on != off
    nested = aj.compose(optax.chain(aj.compose(lamb, sequential=True)), sequential=False)
    assert program(nested).count("optimization_barrier") == off.count("optimization_barrier") == 0
    encoded = program(aj.quantize_state(lamb, small))
    assert encoded.count("optimization_barrier") == 0
    assert program(aj.quantize_state(lamb)).count("optimization_barrier") > 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    lamb = aj.lamb(0.1)  # another one: jax keeps what it has traced
    on, off = (program(aj.compose(lamb, sequential=choice)) for choice in (True, False))
    assert program(lamb) == off
    assert on.count("optimization_barrier") > off.count("optimization_barrier")


def test_a_switch_of_parts() -> None:
    lamb = aj.lamb(0.1)
    part = aj.compose(aj.clip_gradient(1.0), sequential=True)
    assert aj.compose(part, lamb).sequential is True
    assert aj.compose(part, lamb, sequential=False).sequential is False
    assert aj.probe(aj.compose(lamb, sequential=False)).sequential is False
    with pytest.raises(ValueError, match="sequential=True and sequential=False: give"):
        aj.compose(part, aj.compose(lamb, sequential=False))
    with pytest.raises(ValueError, match="sequential must be True or False, got 1"):
        aj.compose(lamb, sequential=1)  # pyright: ignore[reportArgumentType]
