"""Train many settings and seeds in parallel in a few compiled programs.

A program trains several arms and all their seeds under ``vmap`` for a stretch of steps under
``scan``, and evaluates. Between stretches the host reports progress. A lane is one arm with one
seed. On a CPU two programs run at once, each with few enough lanes for the caches. An accelerator
runs all lanes of a recipe at once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import eval_params
from adamw_jax.lab.environment import cores
from adamw_jax.lab.models import Network, mlp
from adamw_jax.lab.progress import Progress
from adamw_jax.lab.recipes import Arm, Carrier, Recipe, tables
from adamw_jax.lab.tasks import Split, Task, get_task

CPU_LANES = 8
TABLE = 1024
METRICS = (
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)


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

    task: Task
    arms: list[Arm]
    plan: Plan
    width: int


Row = dict[str, Any]


class Runner:
    """Trainer of arms; it keeps compiled programs, so that experiments share them."""

    def __init__(self, progress: Progress, workers: int | None = None):
        """Set up the runner.

        Args:
          progress: receives the progress after every stretch.
          workers: programs at once; None for two on a CPU with two cores or more, else one.
        """
        on_cpu = jax.default_backend() == "cpu"
        self.progress = progress
        self.workers = workers or (2 if on_cpu and cores() > 1 else 1)
        self.lanes = CPU_LANES if on_cpu else 4096
        self._functions: dict[Any, Any] = {}
        self._programs: dict[Any, concurrent.futures.Future] = {}
        self._done: dict[Any, list[Row]] = {}
        self._guard = threading.Lock()

    def train(self, task_name: str, arms: Sequence[Arm], plan: Plan) -> list[Row]:
        """Train every arm with every seed, except those already trained.

        Returns:
          One row per arm, seed and evaluation, in that order: task, the arm's description, seed,
          step, epoch and ``METRICS``.
        """
        return self.train_all([Job(task_name, tuple(arms), plan)])

    def train_all(self, jobs: Sequence[Job]) -> list[Row]:
        """Train several jobs at once, so that one compiles while another trains."""
        chunks: list[Chunk] = []
        for job in jobs:
            distinct = {self._key(job.task, arm, job.plan): arm for arm in job.arms}
            new = [arm for key, arm in distinct.items() if key not in self._done]
            width = max(1, self.lanes // len(job.plan.seeds))
            chunks += _chunks(get_task(job.task), new, job.plan, width)
        if chunks:
            lanes = sum(len(c.arms) * len(c.plan.seeds) * c.plan.steps for c in chunks)
            self.progress.begin(", ".join(dict.fromkeys(c.task.title for c in chunks)), lanes)
            with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
                ordered = _programs_first(chunks)
                for chunk, tables in zip(ordered, pool.map(self._train, ordered), strict=True):
                    for arm, table in zip(chunk.arms, tables, strict=True):
                        self._done[self._key(chunk.task.name, arm, chunk.plan)] = table
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

    def _train(self, chunk: Chunk) -> list[list[Row]]:
        """Train a chunk; return a list of rows for each of its arms."""
        task, arms, plan = chunk.task, chunk.arms, chunk.plan
        steps, stretch = plan.steps, plan.steps // plan.points
        padded = [*arms, *arms[-1:] * (chunk.width - len(arms))]
        data = _on_device(task.name)
        network, start, stretch_of = self._functions_for(task, arms[0].recipe)
        lanes = [(arm, seed) for arm in padded for seed in plan.seeds]
        numbers = _stack([dict(arm.settings) for arm, _ in lanes])
        own = arms[0].recipe.momentum
        curves = [tables(arm.schedule, arm.learning_rate, steps, own) for arm, _ in lanes]
        carriers = tuple(_padded(np.stack(column)) for column in zip(*curves, strict=True))
        orders = {
            seed: order_of(len(task.train), seed, steps, plan.batch_size) for seed in plan.seeds
        }

        params = _stack_trees([network.init(seed) for _, seed in lanes])
        carry = start(params, numbers, carriers)
        rows: list[Row] = []
        for point in range(plan.points):
            window = slice(point * stretch, (point + 1) * stretch)
            order = jnp.asarray(np.stack([orders[seed][window] for _, seed in lanes]))
            program = self._compiled(stretch_of, carry, numbers, carriers, order, data)
            carry, metrics = program(carry, numbers, carriers, order, data)
            table = np.asarray(metrics)[: len(arms) * len(plan.seeds)]
            step = (point + 1) * stretch
            epoch = step * plan.batch_size / len(task.train)
            rows += [
                {"seed": seed, "step": step, "epoch": epoch}
                | {k: finite(v) for k, v in zip(METRICS, values, strict=True)}
                for (_, seed), values in zip(lanes, table, strict=False)
            ]
            table = np.nan_to_num(table, nan=0.0, posinf=0.0)
            self.progress.advance(
                stretch * len(table),
                f"{task.title}, {arms[0].recipe.name}: step {step} of {steps}, loss "
                f"{np.median(table[:, 0]):.3f}, best accuracy {100 * table[:, 2].max():.1f} %",
            )
        each = len(plan.seeds)
        total = len(arms) * each
        return [
            [row for lane in range(i * each, (i + 1) * each) for row in rows[lane::total]]
            for i in range(len(arms))
        ]

    def _functions_for(self, task: Task, recipe: Recipe) -> tuple[Network, Any, Any]:
        """Return the network and the jitted functions of a recipe, made once."""
        key = (recipe.name, task.features, task.classes)
        with self._guard:
            if key not in self._functions:
                network = mlp(task.features, task.classes)
                self._functions[key] = (
                    network,
                    jax.jit(functools.partial(_start, recipe)),
                    jax.jit(functools.partial(_stretch, network, recipe), donate_argnums=0),
                )
            return self._functions[key]

    def _compiled(self, function: Any, *args: Any) -> Any:
        """Return the program for these shapes; the first caller compiles it, the others wait."""
        key = (function, *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args)))
        with self._guard:
            mine = key not in self._programs
            future = self._programs.setdefault(key, concurrent.futures.Future())
        if mine:
            try:
                future.set_result(function.lower(*args).compile())
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def _start(recipe: Recipe, params: Any, numbers: Any, carriers: Any) -> Any:
    def lane(params: Any, numbers: Any, carriers: Any) -> Any:
        return params, recipe.build(Carrier(*carriers), numbers).init(params)

    return jax.vmap(lane)(params, numbers, carriers)


def _stretch(
    network: Network, recipe: Recipe, carry: Any, numbers: Any, carriers: Any, order: Any, data: Any
) -> Any:
    """Make some steps in all lanes; return also the metrics, shape (lanes, len(METRICS))."""
    (inputs, labels), *held_out = data

    def loss_of(params: Any, inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = network.apply(params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (losses * losses).mean()

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def lane(carry: Any, numbers: Any, carriers: Any, order: jax.Array) -> Any:
        tx = optax.with_extra_args_support(recipe.build(Carrier(*carriers), numbers))

        def step(carry: Any, batch: jax.Array) -> Any:
            params, state = carry
            (loss, squares), gradient = gradient_of(params, inputs[batch], labels[batch])
            extra = {"value": loss, "value_sq_mean": squares}  # KOALA's
            updates, state = tx.update(gradient, state, params, **extra)
            return (optax.apply_updates(params, updates), state), loss

        carry, losses = jax.lax.scan(step, carry, order)
        weights = eval_params(carry[1], carry[0])
        metrics = [losses.mean()]
        for x, y in held_out:
            logits = network.apply(weights, x)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            right = (logits.argmax(-1).astype(y.dtype) == y).astype(jnp.float32).mean()
            metrics += [loss, right]
        return carry, jnp.stack(metrics)

    return jax.vmap(lane)(carry, numbers, carriers, order)


def _chunks(task: Task, arms: Sequence[Arm], plan: Plan, width: int) -> Iterator[Chunk]:
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
        program = (chunk.task.name, chunk.arms[0].recipe.name)
        (rest if program in seen else front).append(chunk)
        seen.add(program)
    return front + rest


def _stack(numbers: list[dict[str, float]]) -> dict[str, jax.Array]:
    return {name: jnp.asarray([row[name] for row in numbers], jnp.float32) for name in numbers[0]}


def _padded(curves: np.ndarray) -> jax.Array:
    """Pad schedules to few shapes, so that runs of different lengths share a program."""
    missing = -curves.shape[1] % TABLE
    return jnp.asarray(np.pad(curves, ((0, 0), (0, missing)), mode="edge"))


def finite(value: Any) -> float | None:
    """Return the number, or None if a run has diverged, because JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


def _stack_trees(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def order_of(examples: int, seed: int, steps: int, batch_size: int) -> np.ndarray:
    """Return the examples of each step, permuted in every epoch; shape (steps, batch_size)."""
    rng = np.random.default_rng([seed, examples])
    per_epoch = examples // batch_size
    epochs = -(-steps // per_epoch)
    drawn = [rng.permutation(examples)[: per_epoch * batch_size] for _ in range(epochs)]
    return np.concatenate(drawn).reshape(-1, batch_size)[:steps].astype(np.int32)


@functools.cache
def _on_device(task_name: str) -> tuple[tuple[jax.Array, jax.Array], ...]:
    task = get_task(task_name)

    def put(split: Split) -> tuple[jax.Array, jax.Array]:
        return jnp.asarray(split.inputs), jnp.asarray(split.labels)

    return put(task.train), put(task.validation), put(task.test)
