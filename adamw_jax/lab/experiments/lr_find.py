"""Show the learning-rate range test of a task: suggestions and curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.contenders import Make, Optimizer
from adamw_jax.lab.engine import finite
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.finder import finder
from adamw_jax.lab.progress import Progress
from adamw_jax.lab.range_test import check, lr_find
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table
from adamw_jax.lab.task import Task
from adamw_jax.lab.train import Runner, task_of


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of ``adamw-jax lr-find``.

    Attributes:
      task: name or title of the task.
      optimizer: name of the optimizer.
      seeds: one run each.
      steps: largest number of steps; a run ends earlier if the loss diverges.
      start: first learning rate.
      end: last learning rate.
      weight_decay: decoupled decay; None for that of the optimizer.
    """

    task: str = "digits"
    optimizer: str = "adamw"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 200
    start: float = 1e-6
    end: float = 10.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Check the settings before any work."""
        check(self.start, self.end, self.steps)


def measure(s: Settings, runner: Runner) -> Rows:
    """Run the test on a task of the lab."""
    return measured(task_of(s.task), s.optimizer, s, runner.progress)


def measured(task: Task, optimizer: Make | Optimizer, s: Settings, progress: Progress) -> Rows:
    """Run the test once per seed; the rows are curves and suggestions."""
    if s.weight_decay is not None:
        own = optimizer if isinstance(optimizer, Optimizer) else Optimizer(optimizer)
        space = {**own.space, "weight_decay": s.weight_decay}
        optimizer = dataclasses.replace(own, space=space)
    progress.begin(task.name, len(s.seeds))
    rows: Rows = []
    for seed in s.seeds:
        found = lr_find(task, optimizer, start=s.start, end=s.end, steps=s.steps, seed=seed)
        curve = zip(found.learning_rates, found.losses, found.smoothed, strict=True)
        rows += [
            {"kind": "curve", "seed": seed, "rule": "", "learning_rate": float(rate),
             "loss": finite(loss), "smoothed": finite(smoothed)}
            for rate, loss, smoothed in curve
        ]  # fmt: skip
        rows += [
            {"kind": "suggestion", "seed": seed, "rule": rule, "learning_rate": float(rate)}
            for rule, rate in found.suggestions.items()
        ]
        said = ", ".join(f"{rule} {rate:.2g}" for rule, rate in found.suggestions.items())
        progress.advance(1, f"seed {seed}: {said or 'run too short for a suggestion'}")
    progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Return median and range of the suggestion of every rule."""
    suggested = common.where(rows, kind="suggestion")
    lines: list[Row] = []
    for rule in common.unique(suggested, "rule"):
        rates = sorted(row["learning_rate"] for row in common.where(suggested, rule=rule))
        lines.append(
            {
                "rule": rule,
                "median": float(np.median(rates)),
                "least": rates[0],
                "most": rates[-1],
                "meaning": MEANING.get(rule, ""),
            }
        )
    columns = [
        Column("rule", "rule"),
        Column("median", "learning rate", "{:.2g}"),
        Column("least", "least", "{:.2g}"),
        Column("most", "most", "{:.2g}"),
        Column("meaning", "meaning"),
    ]
    title = f"Suggested learning rates for {s.optimizer} on {s.task}"
    table = Table("suggestions", f"{title}, median of {len(s.seeds)} runs", columns, lines)
    return Result(
        tables=[table],
        figures=[_figure(s, rows, lines)],
        remarks=[
            "A suggestion is a starting point; the loss of a short run cannot see over-fitting."
        ],
    )


MEANING = {
    "valley": "the middle of the longest descent (fastai's default)",
    "steep": "where the loss falls fastest",
    "minimum": "a tenth of the rate with the least loss",
    "slide": "before the loss turns up",
}


def _figure(s: Settings, rows: Sequence[Row], lines: Sequence[Row]) -> Figure:
    points: list[Row] = [
        {
            "kind": "curve",
            "series": f"seed {r['seed']}",
            "x": r["learning_rate"],
            "y": r["smoothed"],
        }
        for r in common.where(rows, kind="curve")
        if r["smoothed"] is not None
    ]
    points += [
        {"kind": "suggestion", "series": r["rule"], "x": r["median"], "y": None} for r in lines
    ]
    return Figure(
        name="loss",
        title=f"Learning-rate range test: {s.optimizer} on {s.task}",
        alt="Smoothed training loss against a growing learning rate, one line per seed. "
        "Vertical lines mark the suggested rates.",
        panels=[Panel("", finder(), points)],
        columns=1,
        panel_size=(8.0, 4.2),
    )


EXPERIMENT = register(
    Experiment(
        name="lr_find",
        title="Learning-rate range test",
        question="Which learning rate is a good first choice for this model with this optimizer?",
        setup="One short run per seed, in which the learning rate grows geometrically. The loss is "
        "a bias-corrected moving average, and the run ends when it exceeds four times its lowest "
        "value.",
        presets={"demo": Settings(), "quick": Settings(seeds=(0,)),
                 "tiny": Settings(seeds=(0, 1), steps=40)},
        measure=measure,
        analyse=analyse,
        reference="Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186",
    )
)  # fmt: skip
