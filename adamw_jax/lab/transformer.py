"""Define a small Transformer with normalisation before or after the residual sum.

    Post-LN:  x <- LN(x + f(x))          Pre-LN:  x <- x + f(LN(x)),  and LN before the output

f is first attention, then two feed-forward layers (Xiong et al., ICML 2020, arXiv 2002.04745).
There are no biases. All layers have the same shapes, so their weights are stacked along a first
axis and one ``scan`` runs them.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PRE, POST = "Pre-LN", "Post-LN"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a Transformer.

    Attributes:
      placement: ``PRE`` or ``POST``.
      layers: number of layers.
      width: width of the residual stream.
      hidden: width of the feed-forward layers.
      heads: number of attention heads.
      vocabulary: number of different tokens.
      length: tokens per sequence.
      uniform: give all tokens the same attention, without positions; else causal attention.
    """

    placement: str
    layers: int
    width: int
    hidden: int
    heads: int
    vocabulary: int
    length: int
    uniform: bool = False


class Layer(nnx.Module):
    """Attention and two feed-forward layers, each with its sum and normalisation."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        """Make the structure."""
        self.shape = shape
        width, hidden = shape.width, shape.hidden
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.mix = linear(width, width if shape.uniform else 3 * width)
        self.out = linear(width, width)
        self.rise, self.fall = linear(width, hidden), linear(hidden, width)
        self.norms = nnx.List([nnx.LayerNorm(width, use_bias=False, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The stream behind the layer, and the last sum in it, which Pre-LN does not normalise."""
        if self.shape.placement == PRE:
            x = x + self.attend(self.norms[0](x))
            x = x + self.feed(self.norms[1](x))
            return x, x
        x = self.norms[0](x + self.attend(x))
        x = x + self.feed(x)
        return self.norms[1](x), x

    def attend(self, x: jax.Array) -> jax.Array:
        """Apply attention to (batch, length, width)."""
        mixed = self.mix(x)
        if self.shape.uniform:
            mean = jnp.mean(mixed, axis=1, keepdims=True)
            return jnp.broadcast_to(self.out(mean), x.shape)
        heads = (*x.shape[:2], self.shape.heads, -1)
        query, key, value = (part.reshape(heads) for part in jnp.split(mixed, 3, axis=-1))
        seen = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.out(seen.reshape(x.shape))

    def feed(self, x: jax.Array) -> jax.Array:
        """Apply two linear layers with ReLU between them."""
        return self.fall(nnx.relu(self.rise(x)))


class Ends(nnx.Module):
    """Parameters before and after the layers."""

    def __init__(self, shape: Shape, *, rngs: nnx.Rngs):
        """Make the structure."""
        self.tokens = nnx.Embed(shape.vocabulary, shape.width, rngs=rngs)
        self.positions = nnx.Embed(shape.length, shape.width, rngs=rngs)
        self.norm = nnx.LayerNorm(shape.width, use_bias=False, rngs=rngs)
        self.output = nnx.Linear(shape.width, shape.vocabulary, use_bias=False, rngs=rngs)


class Transformer:
    """Pure functions of a tree of parameters, ``{"ends": ..., "layers": ...}``."""

    def __init__(self, shape: Shape):
        """Split the structure from the parameters."""
        self.shape = shape
        self._structures, self._shapes = {}, {}
        for name, kind in (("ends", Ends), ("layers", Layer)):
            abstract = nnx.eval_shape(lambda kind=kind: kind(shape, rngs=nnx.Rngs(0)))
            self._structures[name], state = nnx.split(abstract)
            self._shapes[name] = nnx.to_pure_dict(state)

    def init(self, seed: int) -> Any:
        """Draw Xavier's normal weights, embeddings of variance 1, and gains of 1."""
        rng = np.random.default_rng([seed, self.shape.layers])

        def draw(path: Any, leaf: Any, stack: tuple[int, ...]) -> np.ndarray:
            name, shape = path[-1].key, (*stack, *leaf.shape)
            if name == "scale":
                return np.ones(shape, np.float32)
            before, after = leaf.shape
            if path[-2].key == "mix":  # query, key and value side by side
                after = self.shape.width
            deviation = 1.0 if name == "embedding" else np.sqrt(2 / (before + after))
            return rng.normal(0, deviation, shape).astype(np.float32)

        stacks = {"ends": (), "layers": (self.shape.layers,)}
        return {
            name: jax.tree_util.tree_map_with_path(
                lambda path, leaf, stack=stack: draw(path, leaf, stack), self._shapes[name]
            )
            for name, stack in stacks.items()
        }

    def run(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return logits and the last sum of every layer from a stream (batch, length, width)."""
        ends = self._merge("ends", params["ends"])

        def step(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
            return self._merge("layers", layer)(x)

        x, sums = jax.lax.scan(step, x, params["layers"])
        return ends.output(ends.norm(x) if self.shape.placement == PRE else x), sums

    def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Return logits (batch, length, vocabulary) from tokens (batch, length)."""
        ends = self._merge("ends", params["ends"])
        positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        x = ends.tokens(tokens) + ends.positions(positions)[None]
        return self.run(params, x)[0]

    def _merge(self, name: str, numbers: Any) -> Any:
        return nnx.merge(self._structures[name], nnx.State(numbers))
