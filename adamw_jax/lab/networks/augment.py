"""Augment images: random crops of the reflected image, and flips; also in the test."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

COPIES = 4
"""Augmented copies beside the plain image in the test, as in the fast.ai article."""


def crop_and_flip(key: jax.Array, images: jax.Array, pad: int = 4) -> jax.Array:
    """Shift each image by up to ``pad`` pixels over its reflection, and mirror half of them.

    Args:
      key: random key.
      images: shape (batch, height, width, channels).
      pad: largest shift.

    >>> crop_and_flip(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    shift_key, flip_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (images.shape[0], 2), 0, 2 * pad + 1)
    flips = jax.random.bernoulli(flip_key, 0.5, (images.shape[0], 1, 1, 1))
    around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    padded = jnp.pad(images, around, mode="reflect")

    def crop(image: jax.Array, shift: jax.Array) -> jax.Array:
        start = (shift[0], shift[1], jnp.zeros((), shift.dtype))
        return jax.lax.dynamic_slice(image, start, images.shape[1:])

    moved = jax.vmap(crop)(padded, shifts)
    return jnp.where(flips, moved[:, :, ::-1], moved)


def mean_probabilities(
    predict: Callable[[jax.Array], jax.Array], key: jax.Array, images: jax.Array, pad: int
) -> jax.Array:
    """Return the mean class probabilities of each image and of augmented copies of it.

    Args:
      predict: images to logits of shape (batch, classes).
      key: random key.
      images: shape (batch, height, width, channels).
      pad: largest shift of a copy.
    """
    copies = [crop_and_flip(one, images, pad) for one in jax.random.split(key, COPIES)]
    return jnp.mean(jnp.stack([jax.nn.softmax(predict(x)) for x in (images, *copies)]), 0)
