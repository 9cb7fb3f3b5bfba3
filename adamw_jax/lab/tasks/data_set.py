"""Define a data set: inputs and labels, split for training, validation and test."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """Inputs of shape (n, features), float32, and labels of shape (n,), int32."""

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A classification task on data in memory.

    Attributes:
      name: name on the command line.
      title: name in plots.
      about: one or two sentences about the data.
      train: data for training.
      validation: data for choosing learning rates and decays.
      test: data for results; nothing is chosen on it.
      classes: number of classes.
    """

    name: str
    title: str
    about: str
    train: Split
    validation: Split
    test: Split
    classes: int

    @property
    def features(self) -> int:
        """Return the number of inputs per example."""
        return self.train.inputs.shape[1]


def standardized(train: Split, *others: Split) -> tuple[Split, ...]:
    """Shift and scale all splits by the mean and standard deviation of the training inputs."""
    mean, deviation = train.inputs.mean(), train.inputs.std()
    return tuple(
        Split(((split.inputs - mean) / deviation).astype(np.float32), split.labels)
        for split in (train, *others)
    )
