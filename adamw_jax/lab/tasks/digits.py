"""Load scikit-learn's digits: 1,797 grey images of 8 by 8 pixels, contained in that package."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from adamw_jax.lab.tasks.data_set import DataSet, Split, standardized

SPLIT_SEED = 1
NOISE_SEED = 2
NOISE = 0.2


def _load() -> tuple[Split, Split, Split]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(data.target))
    inputs = np.asarray(data.data, np.float32)[order]
    labels = np.asarray(data.target, np.int32)[order]
    cuts = (0, 1000, 1397, len(order))
    train, validation, test = (Split(inputs[a:b], labels[a:b]) for a, b in itertools.pairwise(cuts))
    return train, validation, test


def digits() -> DataSet:
    """Return 1,000 training, 397 validation and 400 test images."""
    train, validation, test = standardized(*_load())
    return DataSet(
        name="digits",
        title="digits",
        about="scikit-learn's 1,797 images of 8 by 8 pixels: 1,000 to train, 397 to choose, 400 to "
        "report. Nearly saturated: most optimizers reach 97 to 98 %.",
        train=train,
        validation=validation,
        test=test,
        classes=10,
    )


def digits_noisy() -> DataSet:
    """Return the digits with random labels for 20 % of the training images."""
    train, validation, test = standardized(*_load())
    rng = np.random.default_rng(NOISE_SEED)
    noisy = rng.random(len(train)) < NOISE
    labels = np.where(noisy, rng.integers(0, 10, len(train)), train.labels).astype(np.int32)
    return DataSet(
        name="digits_noisy",
        title="digits, 20 % label noise",
        about="scikit-learn's digits with 20 % of the 1,000 training labels drawn at random, so "
        "that there is something to lose by fitting them; validation and test labels are clean.",
        train=Split(train.inputs, labels),
        validation=validation,
        test=test,
        classes=10,
    )
