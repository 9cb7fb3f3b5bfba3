"""Train arms of experiments on the tasks of the lab; the engine does the work."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from adamw_jax.lab.engine import Engine, Lane, Row, finite
from adamw_jax.lab.feeding import order_of
from adamw_jax.lab.models import mlp
from adamw_jax.lab.progress import Progress
from adamw_jax.lab.recipes import Arm, tables
from adamw_jax.lab.task import Data, Task
from adamw_jax.lab.tasks import get_task

__all__ = ["METRICS", "Job", "Plan", "Runner", "finite", "order_of", "task_of"]

METRICS = (
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


@functools.cache
def task_of(name: str, batch_size: int = 100) -> Task:
    """Return the task of training the MLP of the lab on a data set, by its name."""
    found = get_task(name)
    network = mlp(found.features, found.classes)

    def init(key: jax.Array) -> Any:
        return network.init(int(jax.random.key_data(key)[-1]))  # drawn by NumPy

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = network.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    def evaluate(params: Any, batch: Any) -> dict[str, jax.Array]:
        logits, labels = network.apply(params, batch[0]), batch[1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return {"loss": losses, "accuracy": logits.argmax(-1).astype(labels.dtype) == labels}

    splits = [(part.inputs, part.labels) for part in (found.train, found.validation, found.test)]
    about = f"{found.about} The model is an MLP with two hidden layers of 128."
    data = Data(*splits, batch_size=batch_size)
    return Task(init, loss, data, evaluate, name=found.title, about=about)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The length of a run and its evaluations.

    Attributes:
      seeds: each determines initial weights and order of examples.
      steps: steps of a run, a multiple of ``points``.
      points: number of evaluations, evenly spread; the last is at the end.
      batch_size: examples per step.
    """

    seeds: tuple[int, ...]
    steps: int
    points: int
    batch_size: int = 100

    def __post_init__(self) -> None:
        """Check that seeds differ and that the evaluations fit."""
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers, at least one, got {self.seeds!r}.")
        if self.points < 1 or self.steps < 1 or self.steps % self.points:
            raise ValueError(
                f"steps must be a positive multiple of the {self.points} evaluations, got "
                f"{self.steps!r}; try "
                f"{max(1, round(self.steps / max(self.points, 1))) * self.points}."
            )


@dataclasses.dataclass(frozen=True)
class Job:
    """Arms to train on one task."""

    task: str
    arms: tuple[Arm, ...]
    plan: Plan


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Arms that one program trains in parallel, at most ``width``."""

    task: str
    arms: list[Arm]
    plan: Plan
    width: int


class Runner:
    """Trainer of arms; it keeps compiled programs, so that experiments share them."""

    def __init__(self, progress: Progress, workers: int | None = None):
        """Set up the runner.

        Args:
          progress: receives the progress after every stretch.
          workers: programs at once; None for two on a CPU with two cores or more, else one.
        """
        self.progress = progress
        self.engine = Engine(workers)
        self.workers, self.lanes = self.engine.workers, self.engine.lanes
        self._done: dict[Any, list[Row]] = {}
        self.log: Any = None

    @property
    def earlier(self) -> list[Row]:
        """Rows of the running experiment in its log, of whole runs, for ``train_runs``."""
        return self.log.rows if self.log else []

    def keep(self, rows: list[Row]) -> None:
        """Add rows to the log of the running experiment."""
        if self.log:
            self.log.add(rows)

    def train(self, task_name: str, arms: Sequence[Arm], plan: Plan) -> list[Row]:
        """Train every arm with every seed, except those already trained.

        Returns:
          One row per arm, seed and evaluation, in that order: task, the arm's description, seed,
          step, epoch and ``METRICS``. A recipe with views has rows for each, its group.
        """
        return self.train_all([Job(task_name, tuple(arms), plan)])

    def train_all(self, jobs: Sequence[Job]) -> list[Row]:
        """Train several jobs at once, so that one compiles while another trains."""
        chunks: list[Chunk] = []
        for job in jobs:
            distinct = {self._key(job.task, arm, job.plan): arm for arm in job.arms}
            new = [arm for key, arm in distinct.items() if key not in self._done]
            width = max(1, self.lanes // len(job.plan.seeds))
            chunks += _chunks(job.task, new, job.plan, width)
        if chunks:
            lanes = sum(len(c.arms) * len(c.plan.seeds) * c.plan.steps for c in chunks)
            titles = dict.fromkeys(get_task(c.task).title for c in chunks)
            self.progress.begin(", ".join(titles), lanes)
            self.engine.each(self._train, _programs_first(chunks), self._keep)
            self.progress.end()
        return [
            {"task": job.task, **arm.described(), **row}
            for job in jobs
            for arm in job.arms
            for row in self._done[self._key(job.task, arm, job.plan)]
        ]

    @staticmethod
    def _key(task: str, arm: Arm, plan: Plan) -> Any:
        return task, arm.recipe.name, arm.schedule, arm.learning_rate, arm.settings, plan

    def _keep(self, chunk: Chunk, tables: list[list[Row]]) -> None:
        for arm, table in zip(chunk.arms, tables, strict=True):
            self._done[self._key(chunk.task, arm, chunk.plan)] = table

    def _train(self, chunk: Chunk) -> list[list[Row]]:
        """Train a chunk; return a list of rows for each of its arms."""
        plan, recipe = chunk.plan, chunk.arms[0].recipe
        task = task_of(chunk.task, plan.batch_size)
        curves = [tables(a.schedule, a.learning_rate, plan.steps, recipe.momentum)
                  for a in chunk.arms]  # fmt: skip
        lanes = [
            Lane(seed, *own, dict(arm.settings))
            for arm, own in zip(chunk.arms, curves, strict=True)
            for seed in plan.seeds
        ]
        marks = range(plan.steps // plan.points, plan.steps + 1, plan.steps // plan.points)

        def say(steps: int, metrics: Row) -> None:
            known = {name: np.nan_to_num(v, posinf=0.0) for name, v in metrics.items()}
            loss, best = (next(v for name, v in known.items() if name.endswith(metric))
                          for metric in ("train_loss", "validation_accuracy"))  # fmt: skip
            self.progress.advance(
                steps,
                f"{task.name}, {recipe.name}: loss {np.median(loss):.3f}, best accuracy "
                f"{100 * best.max():.1f} %",
            )

        made = self.engine.train(task, recipe, lanes, marks, chunk.width * len(plan.seeds), say)
        per_epoch = plan.batch_size / len(get_task(chunk.task).train)
        views = {name.removesuffix("train_loss") for name in made[0][0] if "train_loss" in name}
        rows = [
            [{"seed": lane.seed, "step": row["step"], "epoch": row["step"] * per_epoch}
             | ({"group": view[:-2]} if view else {})
             | {name: row[view + name] for name in METRICS}
             for view in sorted(views) for row in own]
            for lane, own in zip(lanes, made, strict=True)
        ]  # fmt: skip
        each = len(plan.seeds)
        return [list(itertools.chain(*rows[i : i + each])) for i in range(0, len(rows), each)]


def _chunks(task: str, arms: Sequence[Arm], plan: Plan, width: int) -> Iterator[Chunk]:
    """Yield chunks of arms with the same recipe and names of numbers."""
    groups: dict[Any, list[Arm]] = {}  # one program each
    for arm in arms:
        groups.setdefault((arm.recipe.name, tuple(k for k, _ in arm.settings)), []).append(arm)
    for group in groups.values():
        wide = min(width, len(group))
        for i in range(0, len(group), wide):
            yield Chunk(task, group[i : i + wide], plan, wide)


def _programs_first(chunks: list[Chunk]) -> list[Chunk]:
    """Order chunks so that the first one of every program, which is compiled, comes first."""
    seen, front, rest = set(), [], []
    for chunk in chunks:
        program = (chunk.task, chunk.arms[0].recipe.name)
        (rest if program in seen else front).append(chunk)
        seen.add(program)
    return front + rest
