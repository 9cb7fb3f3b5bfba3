"""``kernels_only``: the names and axes of Flax, Equinox and Haiku, stacked and not."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from adamw_jax import adamw, kernels_only, matrices_only
from adamw_jax._core.numerics import named_leaves
from tests.catalogue import sample_params


class Block(nn.Module):
    """A layer as users write it, to be scanned."""

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        """Norm, attention with biases of two axes, dense layer, a gain without a telling name."""
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(2)(y, y)
        gain = self.param("gain", nn.initializers.ones, (8,))
        return x + gain * nn.Dense(8)(y), None


class Scanned(nn.Module):
    """An embedding, stacked layers, a norm and a head."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        """Logits."""
        x = nn.Embed(16, 8)(tokens)
        scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="layers")(x, None)
        return nn.Dense(4, name="head")(nn.LayerNorm(name="ln_f")(x))


def chosen_names(mask: Any, tree: Any) -> set[str]:
    names = [name for name, _ in named_leaves(tree)]
    picked = zip(names, jax.tree.leaves(mask(tree)), strict=True)
    return {name for name, chosen in picked if chosen}


def test_kernels_of_scanned_layers_in_flax() -> None:
    tokens = jnp.zeros((1, 5), jnp.int32)
    with jax.numpy_rank_promotion("allow"):  # Flax's own is not strict
        params = jax.eval_shape(Scanned().init, jax.random.key(0), tokens)["params"]
    attention = "layers/MultiHeadDotProductAttention_0"
    kernels = {f"{attention}/{part}/kernel" for part in ("query", "key", "value", "out")}
    kernels |= {"layers/Dense_0/kernel", "head/kernel"}
    found = chosen_names(kernels_only(stacked="layers/*"), params)
    assert found == {*kernels, "Embed_0/embedding"}
    assert chosen_names(kernels_only(stacked="layers/*", embeddings=False), params) == kernels
    unnamed = chosen_names(kernels_only(), params)
    assert unnamed == {*found, "layers/gain"}  # which only its axes can tell
    assert {"layers/gain", "layers/Dense_0/bias"} < chosen_names(matrices_only, params)


def test_kernels_of_mapped_layers_in_equinox() -> None:
    def layer(key: Any) -> Any:
        return {"linear": eqx.nn.Linear(8, 8, key=key), "norm": eqx.nn.LayerNorm(8)}

    model = {"layers": eqx.filter_vmap(layer)(jax.random.split(jax.random.key(0), 3))}
    params = eqx.filter(model, eqx.is_inexact_array)
    for stacked in (None, "layers/*", lambda tree: jax.tree.map(lambda _: True, tree)):
        assert chosen_names(kernels_only(stacked=stacked), params) == {"layers/linear/weight"}
    single = eqx.filter(layer(jax.random.key(0)), eqx.is_inexact_array)
    assert chosen_names(kernels_only(), single) == {"linear/weight"}


def test_kernels_by_the_names_of_other_libraries() -> None:
    square, row = jnp.ones((4, 4)), jnp.ones(4)
    tree = {
        "conv": {"w": jnp.ones((3, 3, 4, 4)), "b": row},
        "bn1": {"scale": square, "offset": square},
        "ln_2": {"weight": square},
        "RMSNorm": {"w": square},
        "wte": square,
        "q_bias": square,
        "online": square,
    }
    assert chosen_names(kernels_only(), tree) == {"conv/w", "wte", "online"}
    assert chosen_names(kernels_only(embeddings=False), tree) == {"conv/w", "online"}


def test_a_stacked_pattern_without_a_leaf_is_refused() -> None:
    with pytest.raises(ValueError, match="stacked has the pattern 'blocks/\\*'"):
        adamw(0.1, mask=kernels_only(stacked="blocks/*")).init(sample_params())
    with pytest.raises(ValueError, match="embeddings must be True or False"):
        kernels_only(embeddings="no")  # type: ignore[arg-type]
