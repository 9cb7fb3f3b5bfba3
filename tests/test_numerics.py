"""Names of leaves, and the root that every direction is divided by."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adamw_jax._core import numerics


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    """A module whose parameters are attributes, one of them called ``value``."""

    query: Any
    value: Any


def test_names_of_attributes_and_of_boxes() -> None:
    """An attribute ``value`` below an attribute is a name, the box of Flax NNX is not."""
    whole = {"attention": jnp.zeros(1)}
    assert numerics.leaf_names(whole) == ["attention"]
    module = Attention(Attention(jnp.zeros(1), jnp.zeros(1)), jnp.zeros(1))
    assert numerics.leaf_names(module)[:2] == ["query/query", "query/value"]
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert sorted(numerics.leaf_names(state)) == ["bias", "kernel"]


@pytest.mark.parametrize("power", [0.125, 0.25, 0.5])
def test_root(power: float) -> None:
    """Exact above 1e-30, never 0, finite in its derivative at 0, and NaN where its argument is."""
    x = np.array([1e-30, 1e-8, 2.0, 1e30], np.float32)
    np.testing.assert_allclose(numerics.root(jnp.asarray(x), power), x**power, rtol=1e-6)
    slope = jax.grad(lambda v: numerics.root(v, power))(jnp.float32(0))
    assert numerics.root(jnp.float32(0), power) > 0
    assert np.isfinite(slope)
    assert np.isnan(numerics.root(jnp.float32(np.nan), power))
