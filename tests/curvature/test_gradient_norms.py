"""Norms by layer."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax.diagnostics import layer_gradient_norms

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
TREE = {
    "block0": {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "b": jnp.ones(4)},
    "block1": [jnp.full((2,), 2.0, jnp.bfloat16), jnp.zeros(0)],
}


def test_leaves_layers_and_the_whole() -> None:
    leaves = layer_gradient_norms(TREE)
    assert list(leaves) == ["block0/b", "block0/w", "block1/0", "block1/1"]
    np.testing.assert_allclose(leaves["block0/w"], np.linalg.norm(TREE["block0"]["w"]), rtol=1e-6)
    assert float(leaves["block1/1"]) == 0
    layers = layer_gradient_norms(TREE, depth=1)
    assert list(layers) == ["block0", "block1"]
    for norms in (leaves, layers):
        whole = sum(float(x) ** 2 for x in norms.values())
        expected = float(optax.tree.norm(TREE["block0"])) ** 2 + 8.0
        np.testing.assert_allclose(whole, expected, rtol=1e-6)


def test_chosen_leaves() -> None:
    assert list(layer_gradient_norms(TREE, "*/w")) == ["block0/w"]
    assert list(layer_gradient_norms(TREE, "block0/*", depth=1)) == ["block0"]


def test_narrow_leaves_are_summed_in_float32() -> None:
    """In bfloat16 the sum of ones would stop at 256."""
    found = layer_gradient_norms(jnp.ones(10_000, jnp.bfloat16))[""]
    assert found.dtype == jnp.float32
    assert float(found) == 100.0


def test_errors() -> None:
    with pytest.raises(ValueError, match="depth must be a whole number >= 1, got 0"):
        layer_gradient_norms(TREE, depth=0)
    with pytest.raises(TypeError, match="gradient of 'n' has dtype int32"):
        layer_gradient_norms({"n": jnp.arange(3)})
