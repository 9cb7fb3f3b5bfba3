"""Get the images of the article's experiments, real ones and those that stand in for them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adamw_jax.lab.choices import choose
from adamw_jax.lab.data import CIFAR10
from adamw_jax.lab.data.photographs import photographs
from adamw_jax.lab.networks.images import Prepare, standardize
from adamw_jax.lab.task import Data

TITLES = {"photographs": "natural images", "cifar10": "CIFAR-10", "twin": "CIFAR-10's twin"}
Loaded = tuple[Data, Prepare, int, str]
"""Data, what is done to a batch of images first, number of classes, and a sentence on the data."""

MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of the training images of CIFAR-10, by channel."""


@functools.lru_cache(maxsize=2)
def images(name: str, per_class: int, batch_size: int) -> Loaded:
    """Return images by name.

    Args:
      name: ``"photographs"``, ``"cifar10"`` (downloaded) or ``"twin"`` (made up, in its form).
      per_class: training images of each class, for photographs.
      batch_size: images per step.
    """
    return choose("images", name, SOURCES)(per_class, batch_size)


def _photographs(per_class: int, batch_size: int) -> Loaded:
    found = photographs(per_class=per_class)
    splits = [(part.inputs, part.labels) for part in (found.train, found.validation, found.test)]
    return Data(*splits, batch_size=batch_size), lambda x: x, found.classes, found.about


def _cifar10(per_class: int, batch_size: int) -> Loaded:
    train, test = CIFAR10.load()
    about = "50,000 images to train and 10,000 to report; nothing is chosen on them."
    return Data(train, test, test, batch_size), standardize(MEAN, DEVIATION), 10, about


def _twin(per_class: int, batch_size: int) -> Loaded:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CIFAR10.remote.name
        CIFAR10.write(path, records=400)
        train, test = CIFAR10.read(path)
    held = tuple(np.asarray(part[:100]) for part in test)
    about = "Made-up images in the form of CIFAR-10."
    return Data(train, held, held, batch_size), standardize(MEAN, DEVIATION), 10, about


SOURCES: dict[str, Callable[[int, int], Loaded]] = {
    "photographs": _photographs,
    "cifar10": _cifar10,
    "twin": _twin,
}
