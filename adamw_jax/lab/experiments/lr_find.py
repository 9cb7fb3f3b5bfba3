"""Run the learning-rate range test on a task of the lab."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import create, lr_range_test
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.compare import check_optimizer, numbers_for
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.models import mlp
from adamw_jax.lab.plots.finder import finder
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner, finite


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of ``adamw-jax lr-find``.

    Attributes:
      task: name of a task.
      optimizer: name for ``create``.
      seeds: one run each.
      steps: largest number of steps; a run ends earlier if the loss diverges.
      start: first learning rate.
      end: last learning rate.
      weight_decay: decoupled decay.
      b2: b2 if the optimizer's default is Adam's 0.999; None for the default.
    """

    task: str = "digits"
    optimizer: str = "adamw"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 200
    start: float = 1e-6
    end: float = 10.0
    weight_decay: float = 0.0
    b2: float | None = 0.99

    def __post_init__(self) -> None:
        """Check the settings before any work."""
        get_task(self.task)
        check_optimizer(self.optimizer)
        if not 0 < self.start < self.end:
            raise ValueError(
                f"start and end must satisfy 0 < start < end, got {self.start}, {self.end}."
            )
        if self.steps < 20:
            raise ValueError(f"steps must be 20 or more for a suggestion, got {self.steps}.")
        if not self.seeds:
            raise ValueError("seeds must be 1 or more.")


def measure(s: Settings, runner: Runner) -> Rows:
    """Make one run per seed."""
    task = get_task(s.task)
    network = mlp(task.features, task.classes)
    numbers = numbers_for(s.optimizer, s.weight_decay, s.b2)

    def loss_of(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        logits = network.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(state: Any, learning_rate: jax.Array, batch: Any) -> Any:
        params, inner = state
        loss, gradient = jax.value_and_grad(loss_of)(params, *batch)
        tx = create(s.optimizer, learning_rate.astype(jnp.float32), **numbers)
        updates, inner = tx.update(gradient, inner, params, value=loss)
        return (optax.apply_updates(params, updates), inner), loss

    runner.progress.begin(task.title, len(s.seeds))
    rows: Rows = []
    for seed in s.seeds:
        params = jax.tree.map(jnp.asarray, network.init(seed))
        state = params, create(s.optimizer, 1e-3, **numbers).init(params)
        order = np.random.default_rng([seed, len(task.train)]).permutation(len(task.train))
        batches = [
            (jnp.asarray(task.train.inputs[part]), jnp.asarray(task.train.labels[part]))
            for part in np.split(order, len(order) // common.BATCH_SIZE)
        ]
        found = lr_range_test(step, state, batches, s.start, s.end, s.steps)
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
        runner.progress.advance(1, f"seed {seed}: {said or 'run too short for a suggestion'}")
    runner.progress.end()
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
    title = f"Suggested learning rates for {s.optimizer} on {get_task(s.task).title}"
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
        title=f"Learning-rate range test: {s.optimizer} on {get_task(s.task).title}",
        alt="Smoothed training loss against a growing learning rate, one line per seed: flat, then "
        "falling, then blowing up. Vertical lines mark the suggested rates.",
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
