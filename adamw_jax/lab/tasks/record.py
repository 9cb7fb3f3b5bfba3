"""What a task is: inputs and labels, split for training, choosing and reporting."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
    """Inputs of shape (n, features), float32, and labels of shape (n,), int32."""

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
      name: what one types.
      title: what a plot says.
      about: one or two sentences on where the data comes from.
      train: the model learns from it.
      validation: learning rates and decays are chosen on it.
      test: results are reported on it, and nothing is chosen on it.
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
        """Numbers per example."""
        return self.train.inputs.shape[1]


def standardized(train: Split, *others: Split) -> tuple[Split, ...]:
    """All splits shifted and scaled by the mean and deviation of the training inputs."""
    mean, deviation = train.inputs.mean(), train.inputs.std()
    return tuple(
        Split(((split.inputs - mean) / deviation).astype(np.float32), split.labels)
        for split in (train, *others)
    )
