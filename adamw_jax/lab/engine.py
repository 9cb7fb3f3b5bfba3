"""Train many runs of a task in a few compiled programs.

A program trains several runs, its lanes, under ``jax.vmap`` for a stretch of steps under
``jax.lax.scan``, and evaluates them. Numbers of an optimizer are arrays in the program, so all
learning rates and decays share one compilation. If the functions of the task or the optimizer
cannot be traced in this way, the numbers become constants, or runs are trained one by one.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import eval_params
from adamw_jax.lab.environment import cores
from adamw_jax.lab.recipes import Carrier, Recipe
from adamw_jax.lab.task import Data, Task, Tree

CPU_LANES, LANES = 8, 64
TABLE = 1024
EVALUATED = 1000
"""Examples that are evaluated at once."""

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lane:
    """One run.

    Attributes:
      seed: of the initial weights, the order of the examples and dropout.
      learning_rates: the learning rate of every step.
      momenta: the momentum of every step, for optimizers that take a schedule of it.
      numbers: hyperparameters of the optimizer by name.
    """

    seed: int
    learning_rates: np.ndarray
    momenta: np.ndarray
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


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
        futures = {pool.submit(work, piece): piece for piece in pieces}
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
                    made = self._train(task, recipe, chosen, marks, size, traced, say)
                    rows |= dict(zip(part, made, strict=True))
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
    ) -> list[list[Row]]:
        padded = [*lanes, *[lanes[-1]] * (width - len(lanes))]
        seeds = jnp.asarray([lane.seed for lane in padded], jnp.uint32)
        curves = tuple(_schedules([getattr(lane, name) for lane in padded])
                       for name in ("learning_rates", "momenta"))  # fmt: skip
        numbers = {name: jnp.asarray([lane.numbers[name] for lane in padded], jnp.float32)
                   for name in lanes[0].numbers}  # fmt: skip
        static = None if traced else tuple(sorted(lanes[0].numbers.items()))
        known = (task, recipe.name, static, width)
        starts = {lane.seed: _initial(task, lane.seed) for lane in lanes}
        stacked = _stacked([starts[lane.seed] for lane in padded])
        args = (stacked, numbers, curves)
        begin = functools.partial(_start, recipe, static, width)
        carry = self._compiled((*known, "start"), begin, args)(*args)
        data, source = (
            _on_device(task),
            _source(task.data, [lane.seed for lane in lanes], marks[-1]),
        )
        stretch = functools.partial(_stretch, task, recipe, static, width)
        rows: list[list[Row]] = [[] for _ in lanes]
        seconds, before = 0.0, 0
        for mark in marks:
            if self.stop.is_set():
                raise Stopped
            batches = source(before, mark, width)
            args = (carry, numbers, curves, seeds, np.int32(before), batches, data)
            program = self._compiled((*known, "stretch"), stretch, args, donate=0)
            clock = time.perf_counter()
            carry, metrics = program(*args)
            metrics = {name: np.asarray(value)[: len(lanes)] for name, value in metrics.items()}
            seconds += (time.perf_counter() - clock) / width
            for i, own in enumerate(rows):
                own.append(
                    {"step": mark, "seconds": round(seconds, 4)}
                    | {name: finite(value[i]) for name, value in metrics.items()}
                )
            say((mark - before) * len(lanes), metrics)
            before = mark
        return rows

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


def _start(recipe: Recipe, static: Any, width: int, starts: Any, numbers: Any, curves: Any) -> Any:
    def lane(start: Any, numbers: Any, curves: Any) -> Any:
        params, state = start
        numbers = numbers if static is None else dict(static)
        return params, state, recipe.build(Carrier(*curves), numbers).init(params)

    return _over_lanes(lane, width)(starts, numbers, curves)


def _stretch(
    task: Task,
    recipe: Recipe,
    static: Any,
    width: int,
    carry: Any,
    numbers: Any,
    curves: Any,
    seeds: jax.Array,
    before: jax.Array,
    batches: Any,
    data: Mapping[str, Any],
) -> Any:
    """Make some steps in all lanes; return also the metrics, arrays of shape (lanes,)."""

    def lane(carry: Any, numbers: Any, curves: Any, seed: jax.Array, batches: Any) -> Any:
        numbers = numbers if static is None else dict(static)
        tx = optax.with_extra_args_support(recipe.build(Carrier(*curves), numbers))
        root = jax.random.key(seed)

        def step(carry: Any, now: Any) -> Any:
            (params, state, inner), (count, batch) = carry, now
            if data["train"] is not None:
                batch = jax.tree.map(lambda a: a[batch], data["train"])
            key = jax.random.fold_in(root, count)

            def loss_of(params: Any) -> Any:
                losses, new = task.losses(params, state, batch, key)
                return jnp.mean(losses), (jnp.mean(losses * losses), new)

            (loss, (squares, state_)), slope = jax.value_and_grad(loss_of, has_aux=True)(params)
            updates, inner = tx.update(
                slope, inner, params, value=loss, grad=slope, value_sq_mean=squares,
                value_fn=lambda params: loss_of(params)[0],
            )  # fmt: skip
            return (optax.apply_updates(params, updates), state_, inner), loss

        length = jax.tree.leaves(batches)[0].shape[0]
        counts = before + jnp.arange(length, dtype=jnp.int32)
        carry, losses = jax.lax.scan(step, carry, (counts, batches))
        params, state, inner = carry
        weights = eval_params(inner, params)
        metrics = {"train_loss": losses.mean()}
        for name, examples in data["held out"].items():
            found = _evaluated(task, weights, state, examples)
            metrics |= {f"{name}_{key}": value for key, value in found.items()}
        return carry, metrics

    return _over_lanes(lane, width)(carry, numbers, curves, seeds, batches)


def _over_lanes(lane: Callable[..., Any], width: int) -> Callable[..., Any]:
    """Vectorize a function of one lane; a single lane is not vectorized."""
    if width > 1:
        return jax.vmap(lane)

    def alone(*args: Any) -> Any:
        made = lane(*jax.tree.map(lambda a: a[0], args))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], made)

    return alone


def _evaluated(task: Task, weights: Any, state: Any, examples: Any) -> dict[str, jax.Array]:
    """Return the mean metrics over all examples, evaluated in portions."""
    size = jax.tree.leaves(examples)[0].shape[0]
    portions = max(size // EVALUATED, 1)
    each = min(size, EVALUATED)

    def means(batch: Any) -> dict[str, jax.Array]:
        made = task.metrics(weights, state, batch)
        return {name: jnp.mean(jnp.asarray(v).astype(jnp.float32)) for name, v in made.items()}

    if portions == 1:
        total = {name: value * each for name, value in means(_cut(examples, 0, each)).items()}
    else:
        whole = jax.tree.map(lambda a: a[: portions * each].reshape(portions, each, *a.shape[1:]),
                             examples)  # fmt: skip
        total = {name: value.sum() * each for name, value in jax.lax.map(means, whole).items()}
    if size > portions * each:
        rest = means(_cut(examples, portions * each, size))
        total = {name: v + rest[name] * (size - portions * each) for name, v in total.items()}
    return {name: value / size for name, value in total.items()}


def _cut(tree: Any, begin: int, end: int) -> Any:
    return jax.tree.map(lambda a: a[begin:end], tree)


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics; it also finds out whether the functions fit together."""
    params, state = _initial(task, 0)
    sample = jax.tree.map(lambda a: a[:EVALUATED], task.data.validation)
    return tuple(jax.eval_shape(task.metrics, params, state, sample))


@functools.lru_cache(maxsize=256)
def _initial(task: Task, seed: int) -> tuple[Tree, Tree]:
    """Return the start of a run, drawn alone, so that it does not depend on other lanes."""
    return _drawn(task)(jax.random.key(seed))


@functools.lru_cache(maxsize=8)
def _drawn(task: Task) -> Callable[[jax.Array], Any]:
    """Return ``task.start``, compiled if it can be traced."""
    compiled = jax.jit(task.start)
    try:
        compiled.lower(jax.random.key(0))
    except jax.errors.JAXTypeError:
        return task.start  # it draws with NumPy
    return compiled


def _parts(lanes: Sequence[Lane], width: int, traced: bool) -> list[list[int]]:
    """Cut lanes into parts for one program each; untraced numbers need one program per value."""
    groups: dict[Any, list[int]] = {}
    for i, lane in enumerate(lanes):
        groups.setdefault(None if traced else tuple(sorted(lane.numbers.items())), []).append(i)
    return [own[i : i + width] for own in groups.values() for i in range(0, len(own), width)]


def _source(data: Data, seeds: Sequence[int], steps: int) -> Callable[[int, int, int], Tree]:
    """Return (begin, end, lanes) -> indices or batches of shape (lanes, end - begin, ...)."""
    distinct = list(dict.fromkeys(seeds))
    if data.size is not None:
        size, batch_size = data.size, data.batch_size
        orders = {seed: order_of(size, seed, steps, batch_size) for seed in distinct}

        def read(begin: int, end: int) -> dict[int, Tree]:
            return {seed: order[begin:end] for seed, order in orders.items()}
    else:
        streams: dict[int, Iterator[Tree]] = {seed: data.batches(seed) for seed in distinct}

        def read(begin: int, end: int) -> dict[int, Tree]:
            return {
                seed: jax.tree.map(lambda *a: np.stack(a),
                                   *(next(stream) for _ in range(begin, end)))
                for seed, stream in streams.items()
            }  # fmt: skip

    def source(begin: int, end: int, width: int) -> Tree:
        found = read(begin, end)
        mine = [found[seed] for seed in seeds]
        mine += mine[-1:] * (width - len(mine))
        return jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *mine)

    return source


def order_of(examples: int, seed: int, steps: int, batch_size: int) -> np.ndarray:
    """Return the examples of each step, permuted in every epoch; shape (steps, batch_size)."""
    rng = np.random.default_rng([seed, examples])
    per_epoch = examples // batch_size
    epochs = -(-steps // per_epoch)
    drawn = [rng.permutation(examples)[: per_epoch * batch_size] for _ in range(epochs)]
    return np.concatenate(drawn).reshape(-1, batch_size)[:steps].astype(np.int32)


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


@functools.lru_cache(maxsize=4)
def _on_device(task: Task) -> dict[str, Any]:
    data = task.data
    train = data.train if data.size is not None else None
    return {"train": jax.tree.map(jnp.asarray, train),
            "held out": jax.tree.map(jnp.asarray, data.held_out)}  # fmt: skip
