"""Run a comparison: tuning, extension of spaces, confirmation, in pieces that can be continued."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adamw_jax.lab.comparison import CONFIRM, TUNE, Comparison, Row
from adamw_jax.lab.contenders import Contender
from adamw_jax.lab.engine import Engine, Lane
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.recipes import tables
from adamw_jax.lab.settings import Settings
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

    Example:
      >>> from adamw_jax.lab import Budget
      >>> Budget(steps=100, evaluations=4).marks
      (25, 50, 75, 100)
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
        self.progress = self.progress or Silent()
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
        return Comparison(self.settings, ordered(self.settings, rows), time.perf_counter() - clock)

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
        total = sum(len(piece.lanes) for piece in pieces)
        self.progress.begin(self.settings.task, total * self.settings.steps)
        self._say(old * self.settings.steps, "continued")
        self.engine.each(self._train, [piece for piece in pieces if missing(piece)], store)
        self.progress.end()

    def _say(self, steps: int, message: str) -> None:
        if steps:
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
