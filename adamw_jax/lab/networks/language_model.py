"""Define recurrent language models: AWD-LSTM and QRNN.

Merity, Keskar & Socher, Regularizing and Optimizing LSTM Language Models, ICLR 2018,
arXiv 1708.02182; Bradbury, Merity, Xiong & Socher, Quasi-Recurrent Neural Networks, ICLR 2017,
arXiv 1611.01576. Arrays have the shape (time, batch, features).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

LSTM_CELLS, QRNN_CELLS = "LSTM", "QRNN"


@dataclasses.dataclass(frozen=True)
class LanguageShape:
    """Sizes and dropout of a language model; by default the AWD-LSTM for WikiText-2.

    Attributes:
      cells: ``LSTM_CELLS`` or ``QRNN_CELLS``.
      vocabulary: number of different words.
      embedding: numbers for each word; the last layer has as many outputs, because the weights of
        the embedding also give the logits.
      hidden: outputs of the other layers.
      layers: recurrent layers.
      drop_input: dropout of the first layer's input.
      drop_hidden: dropout between layers.
      drop_output: dropout of the last layer's output.
      drop_weights: dropout of the weights from hidden state to hidden state; for a QRNN of all
        weights.
      drop_words: probability that the embedding of a word is zero in a batch.
    """

    cells: str = LSTM_CELLS
    vocabulary: int = 33_278
    embedding: int = 400
    hidden: int = 1150
    layers: int = 3
    drop_input: float = 0.6
    drop_hidden: float = 0.2
    drop_output: float = 0.4
    drop_weights: float = 0.5
    drop_words: float = 0.1


def uniform(limit: float) -> nnx.Initializer:
    """Return an initializer that draws from [-limit, limit)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -limit, limit
    )


def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Return x @ kernel + bias."""
    return x @ kernel + jnp.expand_dims(bias, tuple(range(x.ndim - 1)))


class LSTM(nnx.Module):
    """One layer of LSTM with dropped recurrent weights.

        i, f, o, g = W x_t + U h_(t-1) + b
        c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g)
        h_t = sigmoid(o) tanh(c_t)

    One mask drops entries of U for a whole sequence. The products with x are computed for all
    times at once.
    """

    def __init__(self, inputs: int, outputs: int, drop_weights: float, *, rngs: nnx.Rngs):
        """Draw the weights, uniform within ±1/sqrt(outputs) as in PyTorch."""
        draw, key = uniform(outputs**-0.5), rngs.params
        self.input = nnx.Param(draw(key(), (inputs, 4 * outputs)))
        self.recurrent = nnx.Param(draw(key(), (outputs, 4 * outputs)))
        self.bias = nnx.Param(draw(key(), (4 * outputs,)))
        self.drop = nnx.Dropout(drop_weights, rngs=rngs)
        self.outputs = outputs

    def start(self, batch: int) -> tuple[jax.Array, jax.Array]:
        """Return the state (h, c) before the first word."""
        return jnp.zeros((batch, self.outputs)), jnp.zeros((batch, self.outputs))

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Return h for all times, and the state after each time."""
        recurrent = self.drop(self.recurrent[...])

        def step(state: Any, now: jax.Array) -> Any:
            h, c = state
            i, f, o, g = jnp.split(now + h @ recurrent, 4, axis=-1)
            c = nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g)
            h = nnx.sigmoid(o) * jnp.tanh(c)
            return (h, c), (h, c)

        seen = affine(x, self.input[...], self.bias[...])
        states = jax.lax.scan(step, state, seen)[1]
        return states[0], states


class QRNN(nnx.Module):
    """One layer of QRNN with fo-pooling.

        z, f, o = tanh(W_z X), sigmoid(W_f X), sigmoid(W_o X)     X = x_t, or (x_t, x_(t-1))
        c_t = f c_(t-1) + (1 - f) z
        h_t = o c_t

    The recurrence is linear, so an associative scan computes all times in parallel.
    """

    def __init__(
        self, inputs: int, outputs: int, drop_weights: float, window: int, *, rngs: nnx.Rngs
    ):
        """Draw the weights, uniform within ±1/sqrt(inputs of a gate) as in PyTorch.

        Args:
          inputs: size of x.
          outputs: size of h.
          drop_weights: dropout of the weights.
          window: 1, or 2 if the gates also see the input before.
          rngs: random generators.
        """
        draw, key = uniform((window * inputs) ** -0.5), rngs.params
        self.kernel = nnx.Param(draw(key(), (window * inputs, 3 * outputs)))
        self.bias = nnx.Param(draw(key(), (3 * outputs,)))
        self.drop = nnx.Dropout(drop_weights, rngs=rngs)
        self.inputs, self.outputs, self.window = inputs, outputs, window

    def start(self, batch: int) -> tuple[jax.Array, ...]:
        """Return the state before the first word: c, and with a window of 2 the input before."""
        sizes = (self.outputs, self.inputs)[: self.window]
        return tuple(jnp.zeros((batch, size)) for size in sizes)

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Return h for all times, and the state after each time."""
        seen = x
        if self.window == 2:
            seen = jnp.concatenate([x, jnp.concatenate([state[1][None], x[:-1]])], axis=-1)
        gates = affine(seen, self.drop(self.kernel[...]), self.bias[...])
        z, f, o = jnp.split(gates, 3, axis=-1)
        c = pooled(nnx.sigmoid(f), jnp.tanh(z), state[0])
        return nnx.sigmoid(o) * c, (c, x)[: self.window]


def pooled(f: jax.Array, z: jax.Array, before: jax.Array) -> jax.Array:
    """Return c_t = f_t c_(t-1) + (1 - f_t) z_t for all times, where c_(-1) is ``before``."""
    added = (1 - f) * z
    added = added.at[0].add(f[0] * before)

    def joined(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(joined, (f, added))[1]


class LanguageModel(nnx.Module):
    """Embedding, recurrent layers and logits that share the embedding's weights.

    Each dropout of activations draws one mask for a whole sequence ("locked").
    """

    def __init__(self, shape: LanguageShape, *, rngs: nnx.Rngs):
        """Draw the weights; those of the embedding uniform within ±0.1."""
        self.shape = shape
        self.embedding = nnx.Param(uniform(0.1)(rngs.params(), (shape.vocabulary, shape.embedding)))
        self.bias = nnx.Param(jnp.zeros(shape.vocabulary))
        sizes = [shape.embedding, *[shape.hidden] * (shape.layers - 1), shape.embedding]
        self.layers = nnx.List(
            [self._layer(i, sizes[i], sizes[i + 1], rngs) for i in range(shape.layers)]
        )
        rates = [shape.drop_input, *[shape.drop_hidden] * (shape.layers - 1), shape.drop_output]
        self.drops = nnx.List([nnx.Dropout(rate, broadcast_dims=(0,), rngs=rngs) for rate in rates])
        self.drop_words = nnx.Dropout(shape.drop_words, rngs=rngs)

    def _layer(self, place: int, inputs: int, outputs: int, rngs: nnx.Rngs) -> Any:
        drop = self.shape.drop_weights
        if self.shape.cells == LSTM_CELLS:
            return LSTM(inputs, outputs, drop, rngs=rngs)
        return QRNN(inputs, outputs, drop, 2 if place == 0 else 1, rngs=rngs)

    def start(self, batch: int) -> Any:
        """Return the hidden state before the first word of each of ``batch`` texts."""
        return tuple(layer.start(batch) for layer in self.layers)

    def __call__(
        self, words: jax.Array, state: Any, length: Any = None
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Read words.

        Args:
          words: numbers of words, shape (time, batch).
          state: hidden state before them, from ``start`` or the call before.
          length: only so many of the times count for the new state; None for all.

        Returns:
          The last layer's output without and with dropout, (time, batch, embedding), and the
          hidden state after the words. ``logits`` makes logits of the output.
        """
        kept = self.drop_words(jnp.ones((self.shape.vocabulary, 1)))
        x = self.drops[0](self.embedding[words] * kept[words])
        end, h, after = (words.shape[0] if length is None else length) - 1, x, []
        for layer, before, drop in zip(self.layers, state, list(self.drops)[1:], strict=True):
            h, states = layer(x, before)
            x = drop(h)
            after.append(jax.tree.map(lambda a: a[end], states))
        return h, x, tuple(after)

    def logits(self, output: jax.Array) -> jax.Array:
        """Return the logits of the next word."""
        return affine(output, self.embedding[...].T, self.bias[...])
