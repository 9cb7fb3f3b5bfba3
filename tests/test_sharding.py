"""The shardings of a state follow from those of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax.storage import is_encoded

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


def test_what_is_no_sharding_is_refused() -> None:
    params = {"w": jnp.ones((16, 4))}
    with pytest.raises(TypeError, match="shardings must be NamedSharding, got P"):
        aj.state_shardings(optax.adam(0.1), params, P("data"))
    with pytest.raises(TypeError, match="tx must be an optax transformation"):
        aj.state_shardings(optax.adam, params, P("data"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shardings must tell the mesh"):
        aj.state_shardings(optax.adam(0.1), {}, {})
