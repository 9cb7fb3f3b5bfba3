"""Compare optimizers on a task: tune each with the same budget, confirm with fresh seeds."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adamw_jax.lab.choices import choose
from adamw_jax.lab.comparison import CONFIRM, LOWER, TUNE, Comparison, Row, Settings, is_share
from adamw_jax.lab.contenders import Contender, Make, Optimizer, contenders, in_words
from adamw_jax.lab.engine import Engine, Lane, metric_names
from adamw_jax.lab.recipes import tables
from adamw_jax.lab.spaces import Numbers, extended, trials
from adamw_jax.lab.task import Task

FRESH = 1000
"""The first seed of the confirming runs; tuning begins at 0."""
SOBOL_SEED = 0

OnRows = Callable[[list[Row]], None]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every optimizer gets.

    Attributes:
      steps: steps of every run.
      trials: settings to try, if a space has a range; a grid has as many as combinations.
      tuning_seeds: runs of every setting.
      evaluations: evaluations in a run, evenly spread; the last is at the end.
    """

    steps: int
    trials: int = 8
    tuning_seeds: int = 2
    evaluations: int = 10

    def __post_init__(self) -> None:
        """Check the numbers."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name} must be a whole number >= 1, got {value!r}.")

    @property
    def marks(self) -> tuple[int, ...]:
        """The steps after which runs are evaluated."""
        count = min(self.evaluations, self.steps)
        return tuple(round(self.steps * (i + 1) / count) for i in range(count))


def compare(
    task: Task,
    optimizers: Sequence[Make | Optimizer] | Mapping[str, Make | Optimizer],
    *,
    budget: Budget | int,
    seeds: int = 32,
    metric: str | None = None,
    higher_is_better: bool | None = None,
    margin: float | None = None,
    target: float | None = None,
    space: Mapping[str, Any] | None = None,
    schedule: str = "warmup_cosine",
    extend: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_rows: OnRows | None = None,
    progress: Any = None,
) -> Comparison:
    """Compare optimizers on a task.

    1. Every optimizer gets the same number of *trials* from its search space, each with a few
       seeds. The best trial by the metric on validation data is chosen. A setting with diverged
       runs comes after those with fewer.
    2. Each chosen setting runs with *fresh* seeds, which choosing has not seen, and is judged on
       test data, by paired differences to the first optimizer, the baseline.

    The verdict on "better than the baseline" is one of five words: *shown* or *contradicted* (a
    paired t-test finds a difference), *equivalent* (two one-sided tests find it smaller than the
    margin), *undecided*, or *does not apply* (runs diverged). p-values are corrected for the number
    of optimizers by Holm's method.

    Args:
      task: what to train.
      optimizers: two or more; the first is the baseline. Each is a name such as ``"adamw"`` or
        ``"lookahead_radam"``, a function of hyperparameters such as ``optax.adamw`` or your own, an
        optax transformation as it is, or an ``Optimizer`` with a space of its own. A dict gives
        names.
      budget: a ``Budget``, or the number of steps.
      seeds: fresh seeds of the chosen settings, at least 2. 32 suit small tasks; the result says
        which differences they can see.
      metric: what is judged: a key of ``task.evaluate``. By default accuracy, if there is one, else
        loss, else the only one.
      higher_is_better: direction of the metric; by default by its name.
      margin: largest difference that does not matter, in the unit of the metric; by default 0.01
        for a share such as accuracy, else 2 % of the baseline's mean.
      target: value of the metric on validation data; steps and seconds to it are reported. By
        default what the baseline reached while its setting was chosen, less the margin.
      space: axes of the search for every optimizer that takes them, over the default space:
        ``learning_rate`` from 1e-4 to 0.1 (from 0.001 to 10 for SGD and others of this library
        whose steps grow with the gradient), and ``weight_decay`` from 0.001 to 1 for all that take
        it. ``{"weight_decay": None}`` leaves every optimizer its own decay.
      schedule: shape of the learning rate: ``"warmup_cosine"`` (linear over a tenth of the steps),
        ``"cosine"``, ``"constant"`` or ``"one_cycle"``, in which optimizers of this library also
        cycle the momentum.
      extend: how often a space is extended where the best trial is at its edge. The additional
        trials, half as many, are counted in the result.
      out: folder for live logs and the report; None for neither.
      resume: continue an interrupted comparison in ``out``; finished runs are kept.
      overwrite: replace earlier results in ``out``, when the new ones are whole.
      on_rows: called with the new rows after every group of runs, for a logger of your own.
      progress: a ``Progress``; by default nothing is shown.

    Raises:
      ValueError: an argument does not fit.

    >>> import jax, jax.numpy as jnp
    >>> from adamw_jax.lab import Task, split
    >>> x = np.linspace(-1, 1, 60, dtype=np.float32)
    >>> line = Task(
    ...     init=lambda key: {"slope": jax.random.normal(key)},
    ...     loss=lambda params, batch: (params["slope"] * batch[0] - batch[1]) ** 2,
    ...     data=split((x, 3 * x)),
    ... )
    >>> found = compare(line, ["adamw", "sgdw"], budget=Budget(20, trials=2), seeds=3)
    >>> [row["optimizer"] for row in found.ranking()]
    ['sgdw', 'adamw']
    """
    budget = budget if isinstance(budget, Budget) else Budget(budget)
    tables(schedule, 1.0, budget.steps)  # it checks the name and the steps
    made = contenders(optimizers, space, schedule == "constant")
    if seeds < 2 or seeds > 10_000:
        raise ValueError(f"seeds must be between 2 and 10000, got {seeds}.")
    if margin is not None and not margin >= 0:
        raise ValueError(f"margin must be a number >= 0, got {margin}.")
    if extend < 0:
        raise ValueError(f"extend must be 0 or more, got {extend}.")
    metric, higher_is_better = _metric(task, metric, higher_is_better)
    settings = Settings(
        task=task.name,
        about=task.about,
        optimizers=tuple(contender.name for contender in made),
        spaces=tuple(in_words(contender.space) for contender in made),
        steps=budget.steps,
        evaluations=budget.evaluations,
        batch_size=task.data.batch_size if task.data.size is not None else None,
        trials=budget.trials,
        tuning_seeds=budget.tuning_seeds,
        seeds=seeds,
        extend=extend,
        schedule=schedule,
        metric=metric,
        higher_is_better=higher_is_better,
        margin=margin,
        target=target,
        split="validation" if task.data.test is None else "test",
    )
    study = Study(task, made, budget, settings, on_rows, progress)
    if out is None:
        return study.run([])
    from adamw_jax.lab.runs import run_study

    return run_study(study, Path(out), resume=resume, overwrite=overwrite)


def _metric(task: Task, metric: str | None, higher: bool | None) -> tuple[str, bool]:
    """Return the metric and its direction."""
    names = metric_names(task)
    if metric is None:
        usual = [name for name in ("accuracy", "loss", *names) if name in names]
        if not {"accuracy", "loss"} & set(names) and len(names) > 1:
            raise ValueError(f"metric must be one of {', '.join(names)}: name the one to judge.")
        metric = usual[0]
    choose("metric", metric, dict.fromkeys(names))
    if higher is None:
        lower = any(word in LOWER for word in metric.lower().split("_"))
        if not lower and not is_share(metric):
            raise ValueError(
                f"higher_is_better must be True or False for the metric {metric!r}, whose name "
                "does not tell."
            )
        higher = not lower
    return metric, higher


@dataclasses.dataclass(frozen=True)
class Runs:
    """Lanes of one program: an optimizer, and for each lane its stage, trial and numbers."""

    contender: Contender
    stage: str
    lanes: tuple[tuple[int, tuple[tuple[str, float], ...], int], ...]  # trial, numbers, seed


@dataclasses.dataclass
class Study:
    """A comparison that is to be run."""

    task: Task
    contenders: list[Contender]
    budget: Budget
    settings: Settings
    on_rows: OnRows | None = None
    progress: Any = None

    def __post_init__(self) -> None:
        """Make the engine."""
        self.engine = Engine()
        self.width = self.task.lanes or self.engine.lanes

    def run(self, rows: list[Row], keep: OnRows | None = None) -> Comparison:
        """Do all runs that are not among the rows, and return the comparison.

        Args:
          rows: rows of earlier runs.
          keep: stores new rows.
        """
        clock, rows = time.perf_counter(), list(rows)

        def add(new: list[Row]) -> None:
            rows.extend(new)
            for receive in (keep, self.on_rows):
                if receive is not None:
                    receive(new)

        spaces = {c.name: [c.space, c.space] for c in self.contenders}  # the whole, its parts
        self._begin()
        with terminated_like_interrupted():
            for number in range(self.settings.extend + 1):
                self._work(
                    [
                        piece
                        for contender in self.contenders
                        for piece in self._tuning(contender, spaces[contender.name])
                    ],
                    rows,
                    add,
                )
                if number < self.settings.extend and not self._extend(rows, spaces):
                    break
            best = Comparison(self.settings, rows)
            self._work([piece for contender in self.contenders
                        for piece in self._confirming(contender, best)], rows, add)  # fmt: skip
        if self.progress is not None:
            self.progress.end()
        return Comparison(self.settings, ordered(self.settings, rows), time.perf_counter() - clock)

    def _begin(self) -> None:
        s, steps = self.settings, 0
        for contender in self.contenders:
            count = len(trials(contender.space, s.trials, SOBOL_SEED))
            steps += s.steps * (s.seeds + count * s.tuning_seeds)
        if self.progress is not None:
            self.progress.begin(s.task, steps)

    def _trials(self, spaces: Sequence[Any]) -> list[Numbers]:
        """Return all trials: those of the space, and half as many for every extension."""
        found = trials(spaces[1], self.settings.trials, SOBOL_SEED)
        more = max(self.settings.trials // 2, 1)
        for number, space in enumerate(spaces[2:], 1):
            found += trials(space, more, SOBOL_SEED + number)
        return found

    def _extend(self, rows: list[Row], spaces: dict[str, list[Any]]) -> bool:
        """Extend every space whose best trial is at its edge; return whether there is one."""
        edges = Comparison(self.settings, rows).at_edge()
        for name, at_edge in edges.items():
            whole, *parts = spaces[name]
            new, whole = extended(whole, at_edge)
            spaces[name] = [whole, *parts, new]
        return bool(edges)

    def _tuning(self, contender: Contender, spaces: Sequence[Any]) -> Iterator[Runs]:
        found = enumerate(self._trials(spaces))
        lanes = [
            (trial, tuple(numbers.items()), seed)
            for trial, numbers in found
            for seed in range(self.settings.tuning_seeds)
        ]
        return self._pieces(contender, TUNE, lanes)

    def _confirming(self, contender: Contender, best: Comparison) -> Iterator[Runs]:
        chosen = best.chosen(contender.name)
        assert chosen is not None  # every trial has been run
        trial, numbers = chosen
        seeds = range(FRESH, FRESH + self.settings.seeds)
        return self._pieces(contender, CONFIRM, [(trial, tuple(numbers.items()), s) for s in seeds])

    def _pieces(self, contender: Contender, stage: str, lanes: list[Any]) -> Iterator[Runs]:
        for i in range(0, len(lanes), self.width):
            yield Runs(contender, stage, tuple(lanes[i : i + self.width]))

    def _work(self, pieces: list[Runs], rows: list[Row], add: OnRows) -> None:
        """Do the pieces of which rows are missing; a piece is done as a whole."""
        done = set(Comparison(self.settings, rows).runs)

        def missing(piece: Runs) -> bool:
            return any((piece.stage, piece.contender.name, trial, seed) not in done
                       for trial, _, seed in piece.lanes)  # fmt: skip

        def store(piece: Runs, tables: list[list[Row]]) -> None:
            add(
                [
                    row
                    for own in tables
                    for row in own
                    if (row["stage"], row["optimizer"], row["trial"], row["seed"]) not in done
                ]
            )

        old = sum(len(piece.lanes) for piece in pieces if not missing(piece))
        self._say(old * self.settings.steps, "continued")
        self.engine.each(self._train, [piece for piece in pieces if missing(piece)], store)

    def _say(self, steps: int, message: str) -> None:
        if self.progress is not None and steps:
            self.progress.advance(steps, message)

    def _train(self, piece: Runs) -> list[list[Row]]:
        """Train the lanes of a piece; return the rows of each."""
        s, recipe, name = self.settings, piece.contender.recipe, piece.contender.name
        lanes = []
        for _, numbers, seed in piece.lanes:
            given = dict(numbers)
            curves = tables(s.schedule, given.get("learning_rate", 1.0), s.steps, recipe.momentum)
            lanes.append(Lane(seed, *curves, given))

        def say(steps: int, metrics: Mapping[str, np.ndarray]) -> None:
            values = metrics[f"validation_{s.metric}"]
            fine = values[np.isfinite(values)]
            best = (
                s.text(float(fine.max() if s.higher_is_better else fine.min()))
                if fine.size
                else "diverged"
            )
            self._say(steps, f"{name}, {piece.stage}: best {s.metric} {best}")

        made = self.engine.train(self.task, recipe, lanes, self.budget.marks, self.width, say)
        size, batch = self.task.data.size, s.batch_size
        return [
            [
                {"task": s.task, "stage": piece.stage, "optimizer": name, "trial": trial,
                 **dict(numbers), "seed": seed, **_epoch(row["step"], size, batch), **row}
                for row in own
            ]
            for (trial, numbers, seed), own in zip(piece.lanes, made, strict=True)
        ]  # fmt: skip


def _epoch(step: int, size: int | None, batch_size: int | None) -> dict[str, float]:
    return {} if size is None or batch_size is None else {"epoch": step * batch_size / size}


def ordered(settings: Settings, rows: list[Row]) -> list[Row]:
    """Return rows in the order of stages, optimizers, trials, seeds and steps."""
    place = {name: i for i, name in enumerate(settings.optimizers)}
    return sorted(rows, key=lambda row: (row["stage"] == CONFIRM, place[row["optimizer"]],
                                         row["trial"], row["seed"], row["step"]))  # fmt: skip


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Turn SIGTERM into ``KeyboardInterrupt`` meanwhile, so that what is finished is kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
