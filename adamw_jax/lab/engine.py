"""Train many runs of a task in a few compiled programs.

A program trains several runs, its lanes, under ``jax.vmap`` for a stretch of steps under
``jax.lax.scan``, and evaluates them. Numbers of an optimizer are arrays in the program, so all
learning rates and decays share one compilation. If the functions of the task or the optimizer
cannot be traced in this way, the numbers become constants, or runs are trained one by one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax import eval_params
from adamw_jax.lab.environment import cores
from adamw_jax.lab.feeding import initial, on_device, source_of
from adamw_jax.lab.programs import advance, evaluate, start, stretch, views_of
from adamw_jax.lab.recipes import Recipe
from adamw_jax.lab.task import Task, Tree
from adamw_jax.lab.unfinished import Place, Unfinished

CPU_LANES, LANES = 8, 64
TABLE = 1024

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lane:
    """One run.

    Attributes:
      seed: of the initial weights, the order of the examples and dropout.
      learning_rates: the learning rate of every step.
      momenta: the momentum of every step, for optimizers that take a schedule of it.
      numbers: hyperparameters of the optimizer by name.
      start: parameters and state of the task to begin with; None to draw them by the seed.
    """

    seed: int
    learning_rates: np.ndarray
    momenta: np.ndarray
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    start: tuple[Tree, Tree] | None = None

    @property
    def described(self) -> Any:
        """All that determines the run, beside task and optimizer."""
        found = hashlib.sha256(self.learning_rates.tobytes() + self.momenta.tobytes())
        for leaf in jax.tree.leaves(self.start):
            found.update(np.asarray(leaf).tobytes())
        return self.seed, sorted(self.numbers.items()), found.hexdigest()


class Stopped(Exception):
    """The engine was told to stop."""


class Untraceable(Exception):
    """A program cannot be traced in this way; the cause says why."""


class Engine:
    """Trains lanes; it keeps compiled programs, so that experiments share them."""

    def __init__(self, workers: int | None = None):
        """Set up the engine.

        Args:
          workers: programs at once; None for two on a CPU with two cores or more, else one.
        """
        on_cpu = jax.default_backend() == "cpu"
        self.workers = workers or (2 if on_cpu and cores() > 1 else 1)
        self.lanes = CPU_LANES if on_cpu else LANES
        self.stop = threading.Event()
        self.unfinished: Unfinished | None = None
        self._programs: dict[Any, concurrent.futures.Future] = {}
        self._modes: dict[Any, list[tuple[bool, bool]]] = {}
        self._guard = threading.Lock()

    def each(
        self, work: Callable[[Any], Any], pieces: Sequence[Any], done: Callable[[Any, Any], None]
    ) -> None:
        """Work on pieces in parallel and call ``done(piece, result)`` in this thread.

        An exception, also ``KeyboardInterrupt``, ends the other pieces after their stretch.
        """
        self.stop.clear()
        pool = concurrent.futures.ThreadPoolExecutor(self.workers)
        configured = _configuration()
        futures = {pool.submit(configured, work, piece): piece for piece in pieces}
        try:
            for future in concurrent.futures.as_completed(futures):
                done(futures[future], future.result())
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def train(
        self,
        task: Task,
        recipe: Recipe,
        lanes: Sequence[Lane],
        marks: Sequence[int],
        width: int,
        say: Callable[[int, Row], None] = lambda steps, metrics: None,
        at_end: Callable[[int, Tree, Tree], None] | None = None,
    ) -> list[list[Row]]:
        """Train lanes.

        Args:
          task: what to train.
          recipe: the optimizer; its name must be unique.
          lanes: the runs, at most ``width``. Lanes of one number of steps round in the same way
            whatever the others are, because missing ones are filled up.
          marks: the steps after which runs are evaluated; the last is the end.
          width: lanes of the program.
          say: called after a stretch with the number of steps and the metrics, arrays with one
            value per lane.
          at_end: called with the number of each lane, its final parameters for evaluation and the
            state of the task.

        Returns:
          For every lane one row per mark: ``step``, ``seconds`` (its share of the time),
          ``train_loss`` (mean since the last mark) and the metrics of every split; None for a
          number that is not finite.
        """
        key = task, recipe.name
        modes = self._modes.setdefault(key, [(True, True), (True, False), (False, False)])
        while True:
            vmapped, traced = modes[0]
            try:
                parts = _parts(lanes, width if vmapped else 1, traced)
                rows: dict[int, list[Row]] = {}
                for part in parts:
                    chosen = [lanes[i] for i in part]
                    size = width if vmapped else 1
                    made, ends = self._train(
                        task, recipe, chosen, marks, size, traced, say, at_end is not None
                    )
                    rows |= dict(zip(part, made, strict=True))
                    for place, lane in enumerate(part if at_end else ()):
                        params, state, inner = jax.tree.map(lambda a, i=place: a[i], ends)
                        assert at_end is not None
                        at_end(lane, eval_params(inner, params), state)
                return [rows[i] for i in range(len(lanes))]
            except Untraceable as error:
                if len(modes) == 1:
                    raise (error.__cause__ or error) from None
                with self._guard:
                    if modes[0] == (vmapped, traced):
                        del modes[0]

    def _train(
        self,
        task: Task,
        recipe: Recipe,
        lanes: Sequence[Lane],
        marks: Sequence[int],
        width: int,
        traced: bool,
        say: Callable[[int, Row], None],
        wanted: bool,
    ) -> tuple[list[list[Row]], Any]:
        """Return the rows of each lane, and the carry if it is wanted."""
        padded = [*lanes, *[lanes[-1]] * (width - len(lanes))]
        seeds, numbers, curves = _arguments(padded)
        static = None if traced else tuple(sorted(lanes[0].numbers.items()))
        known = (task, recipe.name, static, width, tuple(sorted(numbers)))
        stacked = _stacked([lane.start or initial(task, lane.seed) for lane in padded])
        args = (stacked, numbers, curves)
        begin = functools.partial(start, recipe, static, width)
        carry = self._compiled((*known, "start"), begin, args)(*args)
        key = (task.name, *known[1:], [*marks], [lane.described for lane in lanes])
        place = Place(0, [[] for _ in lanes], 0.0, carry)
        if self.unfinished and (found := self.unfinished.load(key, carry)):
            place = found
            say(place.step * len(lanes), _last(place.rows))
        before, rows, seconds, carry = place
        source = source_of(task.data, [lane.seed for lane in lanes], marks[-1], before)
        go_on = self._by_steps if task.steps_per_call else self._by_stretches
        for mark in marks:
            if mark <= before:
                continue
            if self.stop.is_set():
                if self.unfinished and before:
                    self.unfinished.save(key, Place(before, rows, seconds, carry), now=True)
                raise Stopped
            given = (carry, numbers, curves, seeds)
            carry, metrics, own = go_on(task, recipe, known, given, before, mark, source)
            metrics = {name: np.asarray(value)[: len(lanes)] for name, value in metrics.items()}
            seconds += own / width
            for i, table in enumerate(rows):
                table.append(
                    {"step": mark, "seconds": round(seconds, 6)}
                    | {name: finite(value[i]) for name, value in metrics.items()}
                )
            if self.unfinished:
                place, last = Place(mark, rows, seconds, carry), mark == marks[-1]
                self.unfinished.save(key, place, now=last, ended=last and not wanted)
            say((mark - before) * len(lanes), metrics)
            before = mark
        return rows, carry

    def _by_stretches(
        self,
        task: Task,
        recipe: Recipe,
        known: Any,
        given: Any,
        before: int,
        mark: int,
        source: Callable[[int, int, int], Tree],
    ) -> tuple[Any, dict[str, Any], float]:
        """Make the steps to a mark and evaluate in one program; return carry, metrics, seconds."""
        go_on = functools.partial(stretch, task, recipe, *known[2:4])
        args = (*given, np.int32(before), source(before, mark, known[3]), on_device(task))
        program = self._compiled((*known, "stretch"), go_on, args, donate=0)
        clock = time.perf_counter()
        carry, metrics = jax.block_until_ready(program(*args))
        return carry, metrics, time.perf_counter() - clock

    def _by_steps(
        self,
        task: Task,
        recipe: Recipe,
        known: Any,
        given: Any,
        before: int,
        mark: int,
        source: Callable[[int, int, int], Tree],
    ) -> tuple[Any, dict[str, Any], float]:
        """Do the same in a Python loop over calls with few steps, and over portions of examples."""
        data, seconds, losses = on_device(task), 0.0, []
        carry, *fixed = given
        go_on = functools.partial(advance, task, recipe, *known[2:4])
        for first in range(before, mark, task.steps_per_call or 1):
            if self.stop.is_set():
                raise Stopped
            last = min(first + (task.steps_per_call or 1), mark)
            args = (carry, *fixed, np.int32(first), source(first, last, known[3]), data["train"])
            program = self._compiled((*known, "advance"), go_on, args, donate=0)
            clock = time.perf_counter()
            carry, loss = program(*args)
            losses.append((last - first) * np.asarray(loss, np.float64))
            seconds += time.perf_counter() - clock
        loss = np.sum(losses, axis=0) / (mark - before)
        metrics: dict[str, Any] = {}
        clock = time.perf_counter()
        look = functools.partial(views_of, recipe, known[3])
        views = self._compiled((*known, "views"), look, (carry,))(carry)
        measure = functools.partial(evaluate, task, known[3])
        for view, weights in views.items():
            metrics[f"{view}train_loss"] = loss
            for split, examples in data["held out"].items():
                size = jax.tree.leaves(examples)[0].shape[0]
                for begin in range(0, size, task.evaluated):
                    part = jax.tree.map(lambda a, i=begin: a[i : i + task.evaluated], examples)
                    args = (weights, carry[1], part)
                    found = self._compiled((task, known[3], "evaluate"), measure, args)(*args)
                    share = jax.tree.leaves(part)[0].shape[0] / size
                    for name, value in found.items():
                        full, own = f"{view}{split}_{name}", share * np.asarray(value, np.float64)
                        metrics[full] = metrics.get(full, 0.0) + own
        return carry, metrics, seconds + time.perf_counter() - clock

    def _compiled(self, known: Any, function: Any, args: Any, donate: Any = ()) -> Any:
        """Return the program for these shapes; the first caller compiles it, the others wait."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(args))
        key = (*known, shapes)
        with self._guard:
            mine = key not in self._programs
            future = self._programs.setdefault(key, concurrent.futures.Future())
        if mine:
            try:
                lowered = jax.jit(function, donate_argnums=donate).lower(*args)
            except Exception as error:
                wrapped = Untraceable()
                wrapped.__cause__ = error
                future.set_exception(wrapped)
                raise wrapped from error
            try:
                future.set_result(lowered.compile())
            except BaseException as error:
                future.set_exception(error)
        return future.result()


def _configuration() -> Callable[[Callable[[Any], Any], Any], Any]:
    """Return a function that works in another thread under the JAX contexts of this one."""
    names = ("enable_x64", "default_matmul_precision", "numpy_dtype_promotion",
             "numpy_rank_promotion")  # fmt: skip
    values = {name: getattr(jax.config, f"jax_{name}") for name in names}

    def configured(work: Callable[[Any], Any], piece: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for name, value in values.items():
                stack.enter_context(getattr(jax, name)(value))
            return work(piece)

    return configured


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics; it also finds out whether the functions fit together."""
    params, state = initial(task, 0)
    sample = jax.tree.map(lambda a: a[: task.evaluated], task.data.validation)
    return tuple(jax.eval_shape(task.metrics, params, state, sample))


def _parts(lanes: Sequence[Lane], width: int, traced: bool) -> list[list[int]]:
    """Cut lanes into parts for one program each; untraced numbers need one program per value."""
    groups: dict[Any, list[int]] = {}
    for i, lane in enumerate(lanes):
        groups.setdefault(None if traced else tuple(sorted(lane.numbers.items())), []).append(i)
    return [own[i : i + width] for own in groups.values() for i in range(0, len(own), width)]


def _arguments(lanes: Sequence[Lane]) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Return seeds, numbers and schedules as arrays with one entry per lane."""
    seeds = jnp.asarray([lane.seed for lane in lanes], jnp.uint32)
    numbers = {name: jnp.asarray([lane.numbers[name] for lane in lanes], jnp.float32)
               for name in lanes[0].numbers}  # fmt: skip
    curves = [_schedules([getattr(lane, name) for lane in lanes])
              for name in ("learning_rates", "momenta")]  # fmt: skip
    return seeds, numbers, tuple(curves)


def _last(rows: list[list[Row]]) -> Row:
    """Return the metrics of the last rows, arrays with one value per lane."""
    names = [name for name in rows[0][-1] if name not in ("step", "seconds")]
    return {name: np.array([own[-1][name] for own in rows], float) for name in names}


def finite(value: Any) -> float | None:
    """Return the number, or None if a run has diverged, because JSON has no infinity."""
    return float(value) if np.isfinite(value) else None


def _schedules(curves: Sequence[np.ndarray]) -> jax.Array:
    """Stack schedules, padded to few shapes, so that runs of different lengths share a program."""
    stacked = np.stack(curves)
    missing = -stacked.shape[1] % TABLE
    return jnp.asarray(np.pad(stacked, ((0, 0), (0, missing)), mode="edge"), jnp.float32)


def _stacked(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)
