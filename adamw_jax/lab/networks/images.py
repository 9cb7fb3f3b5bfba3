"""Make the task of training a network on images, and its test with augmented copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from adamw_jax.lab.adapters import from_nnx
from adamw_jax.lab.networks.augment import crop_and_flip, mean_probabilities
from adamw_jax.lab.task import Data, Task, Tree

Prepare = Callable[[jax.Array], jax.Array]


def image_task(
    make: Callable[[nnx.Rngs], Any],
    data: Data,
    prepare: Prepare = lambda images: images,
    pad: int = 4,
    *,
    frozen_norms: bool = False,
    **options: Any,
) -> Task:
    """Return the task of classifying images, with crops and flips in training.

    On a CPU, steps are called one by one from Python, because XLA slows convolutions down inside
    its loops.

    Args:
      make: ``rngs -> module``, from prepared images to logits.
      data: pairs of images (n, height, width, channels) and labels (n,), int32.
      prepare: what is done to a batch of images first, such as ``standardize(mean, deviation)``.
      pad: largest shift of a crop.
      frozen_norms: use the averages of batch norm in training too, and leave them as they are.
      **options: ``name``, ``about`` and others of ``Task``.
    """

    def loss(net: Any, batch: Any, key: jax.Array) -> jax.Array:
        if frozen_norms:
            net.eval()
        logits = net(crop_and_flip(key, prepare(batch[0]), pad))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    def evaluate(net: Any, batch: Any) -> dict[str, jax.Array]:
        logits = net(prepare(batch[0]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return {"loss": losses, "accuracy": logits.argmax(-1).astype(batch[1].dtype) == batch[1]}

    one_by_one = {"lanes": 1, "steps_per_call": 1 if jax.default_backend() == "cpu" else None}
    return from_nnx(make, loss, data, evaluate, **(one_by_one | options))


def standardize(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Prepare:
    """Return a function from bytes to numbers with about mean 0 and deviation 1 per channel."""
    low, scale = np.asarray(mean, np.float32), np.asarray(deviation, np.float32)

    def prepare(images: jax.Array) -> jax.Array:
        shape = (1, 1, 1, images.shape[-1])
        return (images.astype(jnp.float32) / 255 - low.reshape(shape)) / scale.reshape(shape)

    return prepare


def augmented_accuracy(
    make: Callable[[nnx.Rngs], Any], prepare: Prepare, pad: int, examples: Any, evaluated: int
) -> Callable[[Tree, Tree], dict[str, float]]:
    """Return a function of final weights that gives ``test_accuracy_augmented``.

    It is the accuracy of the mean probabilities of each image and four augmented copies. For
    ``Run.at_end``.

    Args:
      make: see ``image_task``.
      prepare: see ``image_task``.
      pad: see ``image_task``.
      examples: images and labels.
      evaluated: images at once.
    """
    structure = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)[0]

    @jax.jit
    def right(params: Tree, state: Tree, images: jax.Array, labels: jax.Array, key: jax.Array):
        net = nnx.merge(structure, params, state, copy=True)
        net.eval()
        probabilities = mean_probabilities(net, key, prepare(images), pad)
        return (probabilities.argmax(-1).astype(labels.dtype) == labels).sum()

    def accuracy(params: Tree, state: Tree) -> dict[str, float]:
        images, labels = examples
        found = 0
        for number, i in enumerate(range(0, len(labels), evaluated)):
            key = jax.random.fold_in(jax.random.key(0), number)
            part = slice(i, i + evaluated)
            found += int(right(params, state, images[part], labels[part], key))
        return {"test_accuracy_augmented": found / len(labels)}

    return accuracy
