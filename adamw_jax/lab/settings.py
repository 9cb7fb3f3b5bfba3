"""Record what was compared, as a report needs it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

Row = dict[str, Any]
SHARES = ("accuracy", "acc", "f1", "auc", "precision", "recall")
"""Metrics with these words are shares, which are better if higher and printed in per cent."""
LOWER = ("loss", "error", "perplexity", "mse", "mae", "rmse", "nll")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was compared; everything that a report needs besides the rows.

    Attributes:
      task: title of the task.
      about: model and data in words.
      optimizers: names; the first is the baseline.
      spaces: the search space of each in words.
      steps: steps of a run.
      evaluations: evaluations in a run.
      batch_size: examples per step; None if the data gives batches.
      trials: trials of each optimizer, if its space is not a grid.
      tuning_seeds: seeds of each trial.
      seeds: fresh seeds of the chosen trials.
      extend: how often a space was extended where the best trial was at its edge.
      schedule: schedule of the learning rate.
      metric: what is judged.
      higher_is_better: direction of the metric.
      margin: largest difference that does not matter; None for ``margin_of``.
      target: value of the metric on validation data whose first evaluation is noted; None for what
        the baseline reached while its settings were chosen, less the margin.
      split: where results are reported.
    """

    task: str = "digits"
    about: str = ""
    optimizers: tuple[str, ...] = ("adamw", "radam")
    spaces: tuple[str, ...] = ()
    steps: int = 400
    evaluations: int = 10
    batch_size: int | None = 100
    trials: int = 8
    tuning_seeds: int = 2
    seeds: int = 32
    extend: int = 0
    schedule: str = "warmup_cosine"
    metric: str = "accuracy"
    higher_is_better: bool = True
    margin: float | None = None
    target: float | None = None
    split: str = "test"

    @property
    def percent(self) -> bool:
        """Whether the metric is a share."""
        return is_share(self.metric)

    def text(self, value: float, signed: bool = False) -> str:
        """Format a value of the metric, or with ``signed`` a difference."""
        if not math.isfinite(value):
            return "diverged"
        if self.percent:
            return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f} %"
        return f"{value:+.4g}" if signed else f"{value:.4g}"


def is_share(metric: str) -> bool:
    """Return whether a metric is a share between 0 and 1, by its name."""
    return any(word in SHARES for word in metric.lower().split("_"))


KNOWN = {"task", "stage", "optimizer", "trial", "seed", "step", "epoch", "seconds", "train_loss"}


def numbers_of(row: Row) -> dict[str, float]:
    """Return the hyperparameters in a row."""
    splits = ("validation_", "test_")
    return {k: v for k, v in row.items()
            if k not in KNOWN and not k.startswith(splits) and v is not None}  # fmt: skip
