"""The shardings of a state follow from those of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax._core.encoded import is_encoded
from adamw_jax.storage import eight_bit
from tests.catalogue import Entry, assert_close, one_step
from tools.small_state_memory import measure

pytestmark = pytest.mark.devices

SHAPES = {"embedding": (64, 32), "dense": {"kernel": (16, 2048), "bias": (2048,)}, "scale": ()}
SPECS = {
    "embedding": P("data"),
    "dense": {"kernel": P(None, "model"), "bias": P("model")},
    "scale": P(),
}
TRANSFORMATIONS = {
    "adamw": aj.adamw(0.1),
    "amsgrad, Lookahead": aj.compose(aj.amsgrad(0.1), aj.lookahead()),
    "last iterates": aj.compose(aj.sgdw(0.1), aj.average_iterates(kind="last", window=3)),
    "adafactor": aj.adafactor(min_dim_size_to_factor=8),
    "8 bits": aj.adamw(0.1, storage="8bit"),
    "4 bits": aj.adamw(0.1, storage="4bit"),
    "lion, 8 bits": aj.quantize_state(optax.lion(0.1)),
    "optax.adam": optax.adam(0.1),
}


def is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(n, int) for n in node)


@pytest.fixture
def params_and_shardings() -> tuple[Any, Any]:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), SPECS, is_leaf=lambda x: isinstance(x, P)
    )
    params = jax.tree.map(jnp.ones, SHAPES, is_leaf=is_shape)
    return jax.device_put(params, shardings), shardings


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_state_is_laid_out_by_them_and_stays_so(params_and_shardings: Any, name: str) -> None:
    """Arrays like a parameter as the parameter, codes too, scales with their rows."""
    params, shardings = params_and_shardings
    tx = TRANSFORMATIONS[name]
    wanted = aj.state_shardings(tx, params, shardings)
    state = jax.jit(tx.init, out_shardings=wanted)(params)
    assert jax.tree.structure(wanted) == jax.tree.structure(state)
    kernels = 0
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded):
        key = jax.tree_util.keystr(path)
        for array in jax.tree.leaves(node):
            spec = array.sharding.spec
            if "kernel" in key and array.ndim >= 2:
                kernels += 1
                assert spec[-1] == "model"  # codes, and 8 or 16 scales a row
            elif "embedding" in key and array.ndim == 2:
                assert spec[0] == "data"
            elif array.ndim == 0:
                assert not any(spec)
    assert kernels == {"adafactor": 0, "8 bits": 4, "4 bits": 3, "lion, 8 bits": 2,
                       "amsgrad, Lookahead": 4, "last iterates": 2}.get(name, 2)  # fmt: skip
    step = jax.jit(tx.update, out_shardings=(shardings, wanted))
    with jax.numpy_dtype_promotion("standard"):  # optax.adam itself is not strict
        _, after = step(params, state, params)
    for moved, placed in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert moved.sharding.is_equivalent_to(placed.sharding, placed.ndim)


def test_one_sharding_for_all_and_shapes_for_arrays() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shapes = {"w": jax.ShapeDtypeStruct((16, 4), jnp.float32)}
    rows = NamedSharding(mesh, P("data"))
    wanted = aj.state_shardings(optax.adam(0.1), shapes, rows)
    assert wanted[0].mu["w"].spec == P("data", None)
    assert wanted[0].count.spec == P()


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_memory_kind_is_kept(name: str) -> None:
    """As by a whole sharding for all of the state: also of scalars, scales and factors."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("data"), memory_kind="pinned_host")
    params = {"w": jax.ShapeDtypeStruct((64, 2048), jnp.float32)}
    shardings = jax.tree.leaves(aj.state_shardings(TRANSFORMATIONS[name], params, rows))
    assert {each.memory_kind for each in shardings} == {"pinned_host"}


@pytest.mark.parametrize(
    ("storage", "shape", "spec", "remedy"),
    [
        ("8bit", (64, 768), P(None, "data"), r"storage=eight_bit\(block_size=32\)"),
        ("float8", (64, 768), P(None, "data"), r"storage=float8\(block_size=32\)"),
        ("roots", (64, 768), P(None, "data"), r"storage=roots\(block_size=32\)"),
        ("4bit", (64, 768), P(None, "data"), r"storage=four_bit\(block_size=32\)"),
        (eight_bit(order="flat"), (64, 300), P("data"), "order='rows'"),
    ],
    ids=str,
)
def test_cut_blocks_are_refused_before_any_init(
    storage: Any, shape: tuple[int, ...], spec: P, remedy: str
) -> None:
    """As by an eager init; in a traced one nobody knows."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    placed = NamedSharding(mesh, spec)
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    for tx in (
        aj.adamw(0.1, storage=storage),
        optax.partition({"a": aj.quantize_state(optax.lion(0.1), storage)}, {"w": "a"}),
    ):
        with pytest.raises(ValueError, match=f"'w' of shape .* is sharded into .*{remedy}") as got:
            aj.state_shardings(tx, params, placed)
        with pytest.raises(ValueError, match="'w' of shape") as eager:
            tx.init(jax.device_put({"w": jnp.zeros(shape)}, placed))
        assert str(got.value) == str(eager.value)
        aj.state_shardings(tx, params, NamedSharding(mesh, P()))


def test_packed_leaves_that_are_sharded_are_refused() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = {name: jax.ShapeDtypeStruct((16,), jnp.float32) for name in "abc"}
    tx = aj.pack_small_leaves(aj.adamw(0.1))
    aj.state_shardings(tx, params, NamedSharding(mesh, P()))
    with pytest.raises(ValueError, match="the leaf 'a' of 16 elements is sharded"):
        aj.state_shardings(tx, params, NamedSharding(mesh, P("data")))


def test_factors_and_scales_lie_along_the_axes_of_the_parameter() -> None:
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    placed = NamedSharding(mesh, P("data", "model"))
    params = {"w": jax.ShapeDtypeStruct((64, 2048), jnp.float32)}
    factors = aj.state_shardings(aj.adafactor(min_dim_size_to_factor=8), params, placed)
    found = factors.stages["estimate_moments"].second
    assert found.rows["w"].spec == P("data")
    assert found.columns["w"].spec == P("model")
    four = aj.state_shardings(aj.adamw(0.1, storage="4bit"), params, placed)
    second = four.stages["estimate_moments"].second
    (node,) = (x for x in jax.tree.leaves(second, is_leaf=is_encoded) if is_encoded(x))
    assert [x.spec for x in node.scales] == [P("data"), P("model")]
    rows = NamedSharding(mesh, P(("data", "model")))
    flat = aj.quantize_state(optax.lion(0.1), eight_bit(order="flat"))
    node = aj.state_shardings(flat, params, rows)[0].mu["w"]
    assert (node.codes.spec, node.scales.spec) == (P(("data", "model"), None), P(("data", "model")))


@pytest.mark.optimized
@pytest.mark.parametrize(
    ("storage", "number"), [("8bit", 0), (eight_bit(order="flat"), 0), ("4bit", 2)], ids=str
)
def test_no_scales_are_gathered(storage: Any, number: int) -> None:
    """In four bits the maxima of the columns are agreed on, one all-reduce an array."""
    assert measure("FSDP, 8 devices", storage, leaves=2).collectives <= number


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", aj.list_optimizers())
def test_a_constant_gradient_in_an_explicit_mesh(name: str) -> None:
    """Closed over by a scan, it is a concrete array whose type must not be lost."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    tx = Entry(name, name).make()
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P("data")))}
        gradient = jax.tree.map(lambda p: 0.5 * p, params)
        step = one_step(tx)

        def body(carry: Any, _: Any) -> Any:
            return step(*carry, gradient), None

        (moved, _), _ = jax.lax.scan(body, (params, tx.init(params)), None, 2)
        assert moved["w"].sharding.is_equivalent_to(params["w"].sharding, 2)


@pytest.mark.parametrize("name", aj.list_optimizers())
def test_a_sharded_state_of_whole_gradients_in_an_explicit_mesh(name: str) -> None:
    """The step keeps the sharding of every array of the state, also of a kept gradient."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    tx = Entry(name, name).make()
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P()))}
        parts = aj.state_shardings(tx, params, NamedSharding(mesh, P("data")))
        state = jax.jit(tx.init, out_shardings=parts)(params)
        _, after = jax.eval_shape(one_step(tx), params, state, params)
    for x, part in zip(*map(jax.tree.leaves, (after, parts)), strict=True):
        assert [*x.sharding.spec] == [*part.spec, *[None] * (x.ndim - len(part.spec))]


KEPT = {
    "lookahead": aj.compose(aj.adamw(0.1), aj.lookahead()),
    "lookahead without moments": aj.compose(aj.sgdw(0.1, momentum=None), aj.lookahead()),
    "lookahead around": aj.lookahead(aj.adamw(0.1), inner_state="pullback"),
    "equal": aj.compose(aj.sgdw(0.1), aj.average_iterates()),
    "every second": aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 2)),
    "last": aj.compose(aj.sgdw(0.1), aj.average_iterates(kind="last")),
    "schedule_free": aj.schedule_free_adamw(0.1),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", KEPT)
def test_kept_weights_of_whole_parameters_in_an_explicit_mesh(name: str) -> None:
    """Weights in the state keep their place, whatever place the parameters have."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = {"w": jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P()))}
        parts = aj.state_shardings(KEPT[name], params, NamedSharding(mesh, P("data")))
        state = jax.jit(KEPT[name].init, out_shardings=parts)(params)
        _, after = jax.eval_shape(one_step(KEPT[name]), params, state, params)
    for x, part in zip(*map(jax.tree.leaves, (after, parts)), strict=True):
        assert [*x.sharding.spec] == [*part.spec, *[None] * (x.ndim - len(part.spec))]


def test_what_is_no_sharding_is_refused() -> None:
    params = {"w": jnp.ones((16, 4))}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    some = {"w": NamedSharding(mesh, P()), "b": None}
    with pytest.raises(TypeError, match=r"got None: .* give NamedSharding\(mesh, PartitionSpec"):
        aj.state_shardings(optax.adam(0.1), {**params, "b": jnp.ones(4)}, some)
    with pytest.raises(ValueError, match="shardings does not fit params"):
        aj.state_shardings(optax.adam(0.1), params, {"v": NamedSharding(mesh, P())})
    with pytest.raises(TypeError, match="shardings must be NamedSharding, got P"):
        aj.state_shardings(optax.adam(0.1), params, P("data"))
    with pytest.raises(TypeError, match="tx must be an optax transformation"):
        aj.state_shardings(optax.adam, params, P("data"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shardings is empty"):
        aj.state_shardings(optax.adam(0.1), {}, {})


@pytest.mark.parametrize("inside", [False, True], ids=["jit", "shard_map"])
def test_leaves_join_where_their_parameters_are(params_and_shardings: Any, inside: bool) -> None:
    """Moments of leaves that thaw are sharded as the parameters, and step as on one device."""
    sharded, shardings = params_and_shardings
    tx = aj.adamw(0.1)
    still = aj.compose(tx, frozen="dense/*")
    ends = []
    for params in (sharded, jax.device_put(jax.tree.map(jnp.asarray, sharded), jax.devices()[0])):
        _, state = jax.jit(still.update)(params, still.init(params), params)
        state, _ = aj.migrate_state(state, tx, params, thaw=True)
        step = tx.update
        if params is sharded:
            first = state.stages["estimate_moments"].first.moment
            assert jax.tree.map(lambda m: m.sharding.spec, first) == SPECS
            if inside:
                specs = jax.tree.map(lambda x: getattr(x.sharding, "spec", P()), state)
                mesh = shardings["scale"].mesh
                places = {"in_specs": (SPECS, specs, SPECS), "out_specs": (SPECS, specs)}
                step = jax.shard_map(step, mesh=mesh, **places)
        for _ in range(2):
            updates, state = jax.jit(step)(params, state, params)
        ends.append((jax.device_get(updates), int(state.count)))
    (got, count), (expected, _) = ends
    assert_close(got, expected)
    assert count == 3
