"""Define the models of the lab in Flax NNX, as pure functions.

``nnx.split`` separates structure and parameters once. Then ``jax.jit``, ``jax.vmap`` and
``jax.lax.scan`` work on the parameters alone, without extra cost per call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx


class MLP(nnx.Module):
    """Two hidden layers with ReLU."""

    def __init__(self, features: int, hidden: int, classes: int, *, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          features: numbers per example.
          hidden: width of both hidden layers.
          classes: number of outputs.
          rngs: random generators for the weights.
        """
        self.first = nnx.Linear(features, hidden, rngs=rngs)
        self.second = nnx.Linear(hidden, hidden, rngs=rngs)
        self.last = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return logits of shape (batch, classes) from inputs of shape (batch, features)."""
        hidden = nnx.relu(self.first(inputs))
        hidden = nnx.relu(self.second(hidden))
        return self.last(hidden)


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as two pure functions.

    Attributes:
      init: seed -> parameters, a tree of NumPy arrays.
      apply: (parameters, inputs) -> logits.
    """

    init: Callable[[int], Any]
    apply: Callable[[Any, jax.Array], jax.Array]


def mlp(features: int, classes: int, hidden: int = 128) -> Network:
    """Return the network of all experiments with ``Runner``: two hidden layers.

    Weights have He's normal distribution, biases are zero. NumPy draws them, so a seed gives the
    same weights with every version of JAX and nothing is compiled for them.
    """
    abstract = nnx.eval_shape(lambda: MLP(features, hidden, classes, rngs=nnx.Rngs(0)))
    structure, state = nnx.split(abstract)
    shapes = nnx.to_pure_dict(state)

    def init(seed: int) -> Any:
        rng = np.random.default_rng([seed, hidden])

        def draw(leaf: Any) -> np.ndarray:
            if len(leaf.shape) == 1:
                return np.zeros(leaf.shape, np.float32)
            return rng.normal(0, np.sqrt(2 / leaf.shape[0]), leaf.shape).astype(np.float32)

        return jax.tree.map(draw, shapes)

    def apply(params: Any, inputs: jax.Array) -> jax.Array:
        return nnx.merge(structure, nnx.State(params))(inputs)

    return Network(init, apply)
