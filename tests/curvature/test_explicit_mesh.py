"""Curvature of parameters that are sharded in a mesh of explicit axes: the values of one device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax import curvature
from tests.catalogue import assert_close

SPECS = {"w": P("fsdp", "tensor"), "b": P("tensor"), "s": P()}
pytestmark = pytest.mark.devices

OPTIMIZER = aj.adam(1e-2)


def loss_fn(params: Any, batch: Any) -> jax.Array:
    out = P(None, "tensor") if not jax.sharding.get_abstract_mesh().empty else None
    hidden = jnp.einsum("nd,dk->nk", batch, params["w"], out_sharding=out)
    fit = jnp.mean(jnp.tanh(hidden + params["b"][None] * params["s"]) ** 2)
    return fit + 0.1 * jnp.sum(params["w"] ** 4)


def moved(params: Any, batch: Any) -> Any:
    """A state that has seen a gradient."""
    gradient = jax.grad(loss_fn)(params, batch)
    return OPTIMIZER.update(gradient, OPTIMIZER.init(params), params)[1]


MEASURES: dict[str, Any] = {
    "top_eigenvalues": lambda *of, key: curvature.top_eigenvalues(*of, 2, key=key)[0],
    "sharpness": curvature.sharpness,
    "hessian_trace": lambda *of, key: curvature.hessian_trace(*of, num=4, key=key),
    "hessian_diag": lambda *of, key: curvature.hessian_diag(*of),
    "spectral_density": lambda *of, key: curvature.spectral_density(*of, k=8, key=key).nodes,
    "preconditioned_sharpness": lambda *of, key: curvature.preconditioned_sharpness(
        *of, OPTIMIZER, moved(*of[1:]), key=key
    ),
    "hvp": lambda *of, key: curvature.hvp(*of, of[1]),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", MEASURES)
def test_an_explicit_mesh(name: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 16), "b": (16,), "s": ()}
    params = {k: jnp.asarray(rng.normal(size=n), jnp.float32) for k, n in shapes.items()}
    batch, key = jnp.asarray(rng.normal(size=(4, 8)), jnp.float32), jax.random.key(1)
    expected = MEASURES[name](loss_fn, params, batch, key=key)
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in SPECS.items()})
        batch = jax.device_put(batch, NamedSharding(mesh, P()))
        got = jax.device_get(MEASURES[name](loss_fn, sharded, batch, key=key))
    assert_close(got, expected, rtol=1e-4, atol=1e-4)
