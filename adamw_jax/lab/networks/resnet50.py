"""ResNet-50, with the weights of PyTorch's model from a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from adamw_jax.lab.networks.wide_resnet import conv, norm

STAGES = (3, 4, 6, 3)


class Bottleneck(nnx.Module):
    """Convolutions of 1, 3 and 1 beside a shortcut; the stride is in the middle, as in PyTorch."""

    def __init__(self, before: int, inside: int, stride: int, dtype: Any, rngs: nnx.Rngs):
        """Draw the weights.

        Args:
          before: channels of the input.
          inside: channels of the middle; the output has four times as many.
          stride: stride of the middle.
          dtype: of the arithmetic.
          rngs: random generators.
        """
        self.conv1 = conv(before, inside, 1, 1, dtype, rngs)
        self.bn1 = norm(inside, dtype, rngs)
        self.conv2 = conv(inside, inside, 3, stride, dtype, rngs)
        self.bn2 = norm(inside, dtype, rngs)
        self.conv3 = conv(inside, 4 * inside, 1, 1, dtype, rngs)
        self.bn3 = norm(4 * inside, dtype, rngs)
        wider = before != 4 * inside or stride != 1
        shortcut = [conv(before, 4 * inside, 1, stride, dtype, rngs), norm(4 * inside, dtype, rngs)]
        self.downsample = nnx.List(shortcut if wider else [])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the output for images of shape (batch, height, width, channels)."""
        beside = x
        for layer in self.downsample:
            beside = layer(beside)
        x = nnx.relu(self.bn1(self.conv1(x)))
        x = nnx.relu(self.bn2(self.conv2(x)))
        return nnx.relu(self.bn3(self.conv3(x)) + beside)


class ResNet50(nnx.Module):
    """A residual network of 50 layers (He, Zhang, Ren & Sun, arXiv 1512.03385).

    Its parts have the names that they have in PyTorch's model.

    >>> net = nnx.eval_shape(lambda: ResNet50(196, rngs=nnx.Rngs(0)))
    >>> net.fc.kernel.shape
    (2048, 196)
    """

    def __init__(self, classes: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs):
        """Draw the weights, by He's initialization.

        Args:
          classes: number of classes.
          dtype: of the arithmetic; weights are float32, and the logits too.
          rngs: random generators.
        """
        self.conv1, self.bn1 = conv(3, 64, 7, 2, dtype, rngs), norm(64, dtype, rngs)
        now = 64
        for stage, blocks in enumerate(STAGES):
            made = []
            for number in range(blocks):
                stride = 2 if stage and not number else 1
                made.append(Bottleneck(now, 64 * 2**stage, stride, dtype, rngs))
                now = 256 * 2**stage
            setattr(self, f"layer{stage + 1}", nnx.List(made))
        self.fc = nnx.Linear(now, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits of shape (batch, classes) from images (batch, height, width, 3)."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        padding: Any = ((1, 1), (1, 1))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        for stage in range(len(STAGES)):
            for block in getattr(self, f"layer{stage + 1}"):
                x = block(x)
        return self.fc(x.mean((1, 2)).astype(jnp.float32))


NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def load_weights(net: nnx.Module, path: Path, *, head: str = "fc") -> None:
    """Set the weights of a network to those of PyTorch's model in a safetensors file.

    Kernels are turned to the order of Flax. The head keeps its drawn weights if the file has
    another number of classes, or no head.

    Args:
      net: a network whose parts have the names of the file, such as ``ResNet50``.
      path: the file; such files hold arrays only, no code.
      head: name of the last layer.

    Raises:
      ValueError: the file is damaged, or lacks an array, or has one of another shape.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        raise ValueError(
            'weights in a file need safetensors: pip install "adamw-jax[demo,images]".'
        ) from error
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"cannot read the weights {path}: {error}") from error
    state = nnx.state(net, (nnx.Param, nnx.BatchStat))
    for names, leaf in nnx.to_flat_state(state):
        name = ".".join(map(str, (*names[:-1], NAMES.get(str(names[-1]), names[-1]))))
        array = stored.get(name)
        if array is not None:
            array = array.transpose((2, 3, 1, 0)) if array.ndim == 4 else array.T
        shape = leaf.get_value().shape
        if array is None or array.shape != shape:
            if names[0] == head:
                continue
            found = "it is not there" if array is None else f"it has the shape {array.shape}"
            raise ValueError(f"{path} must have {name} of shape {shape}, but {found}.")
        leaf.set_value(jnp.asarray(np.ascontiguousarray(array), jnp.float32))
    nnx.update(net, state)
