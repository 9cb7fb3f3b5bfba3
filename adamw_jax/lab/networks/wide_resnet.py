"""Wide residual networks with pre-activation, in the form that fastai trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Block(nnx.Module):
    """Two convolutions beside a shortcut: ``x + scale * conv(relu(norm(conv(relu(norm(x))))))``."""

    def __init__(self, before: int, after: int, stride: int, scale: float, dtype: Any, rngs: Any):
        """Draw the weights.

        Args:
          before: channels of the input.
          after: channels of the output.
          stride: stride of the first convolution.
          scale: factor of the residual branch.
          dtype: of the arithmetic.
          rngs: random generators.
        """
        self.scale = scale
        self.first_norm, self.second_norm = norm(before, dtype, rngs), norm(after, dtype, rngs)
        self.first = conv(before, after, 3, stride, dtype, rngs)
        self.second = conv(after, after, 3, 1, dtype, rngs)
        wider = before != after or stride != 1
        self.shortcut = conv(before, after, 1, stride, dtype, rngs) if wider else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output for images of shape (batch, height, width, channels)."""
        inside = nnx.relu(self.first_norm(x))
        beside = x if self.shortcut is None else self.shortcut(inside)
        inside = self.second(nnx.relu(self.second_norm(self.first(inside))))
        return beside + self.scale * inside


class WideResNet(nnx.Module):
    """A wide residual network of depth ``6 * blocks + 4``.

    Zagoruyko & Komodakis, arXiv 1605.07146. The article's network, its WRN-22, is
    ``WideResNet(3, 6, classes=10)``; it scales the second convolution of a block by 0.2.

    >>> small = WideResNet(blocks=1, width=1, classes=16, channels=1, rngs=nnx.Rngs(0))
    >>> small(jnp.ones((2, 32, 32, 1))).shape
    (2, 16)
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        classes: int,
        *,
        channels: int = 3,
        scale: float = 0.2,
        stem_stride: int = 1,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Draw the weights, by He's initialization.

        Args:
          blocks: blocks in each of the three groups, 3 for a depth of 22.
          width: factor of the channels 16, 32 and 64.
          classes: number of classes.
          channels: channels of the images.
          scale: factor of the residual branches, the article's 0.2.
          stem_stride: stride of the first convolution; 2 makes a step four times cheaper.
          dtype: of the arithmetic; weights are float32, and the logits too.
          rngs: random generators.
        """
        now, made = 16, []
        self.stem = conv(channels, now, 3, stem_stride, dtype, rngs)
        for group in range(3):
            for number in range(blocks):
                stride = 2 if group and not number else 1
                made.append(Block(now, 16 * 2**group * width, stride, scale, dtype, rngs))
                now = 16 * 2**group * width
        self.blocks = nnx.List(made)
        self.norm = norm(now, dtype, rngs)
        self.head = nnx.Linear(now, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits of shape (batch, classes) from images (batch, height, width, channels)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(nnx.relu(self.norm(x)).mean((1, 2)).astype(jnp.float32))


def conv(before: int, after: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a convolution without bias, padded as PyTorch does."""
    pad = (size // 2, size // 2)
    return nnx.Conv(
        before, after, (size, size), strides=stride, padding=(pad, pad), use_bias=False,
        dtype=dtype, kernel_init=nnx.initializers.he_normal(), rngs=rngs,
    )  # fmt: skip


def norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Return batch norm with PyTorch's momentum."""
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, dtype=dtype, rngs=rngs)
