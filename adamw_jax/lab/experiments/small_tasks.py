"""Try every optimizer on small hard tasks: how often it succeeds, and after how many attempts.

In the manner of LightBench (HomebrewML), the suite of HeavyBall, with tasks of our own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LinearSegmentedColormap

from adamw_jax import info, list_optimizers
from adamw_jax.lab.contenders import LARGE_LEARNING_RATES, LEARNING_RATES, contender
from adamw_jax.lab.engine import Lane
from adamw_jax.lab.experiments.parts import columns, network_experiment, unique, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.models import mlp
from adamw_jax.lab.plots.style import INK, PAPER, SERIES
from adamw_jax.lab.recipes import tables
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table
from adamw_jax.lab.spaces import trials
from adamw_jax.lab.task import Data, Task
from adamw_jax.lab.train import Runner

SIZE, GOAL, SPIRALS = 16, 0.03, "spirals"
COLORS = LinearSegmentedColormap.from_list("success", [PAPER, SERIES[0]])


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of a vector to minimize.

    Attributes:
      about: why it is hard.
      loss: (vector, key) -> loss, with noise by the key.
      error: vector -> what must become small, by default the mean square.
      start: what is added to normal numbers to begin with.
    """

    about: str
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    error: Callable[[jax.Array], jax.Array] = lambda x: jnp.mean(x**2)
    start: float = 0.0


@functools.cache
def spirals() -> Task:
    """Return the task of telling two spirals apart, each of one turn and a half."""
    rng, labels = np.random.default_rng(0), np.arange(600, dtype=np.int32) % 2
    turn = np.sqrt(rng.random(600)) * 3 * np.pi
    points = turn / 5 * np.stack([np.cos(turn + np.pi * labels), np.sin(turn + np.pi * labels)])
    inputs = (points.T + 0.05 * rng.standard_normal((600, 2))).astype(np.float32)
    network = mlp(2, 2, hidden=32)

    def loss(params: Any, batch: Any) -> jax.Array:
        logits = network.apply(params, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    return Task(
        lambda key: network.init(int(jax.random.key_data(key)[-1])), loss,
        Data((inputs[:400], labels[:400]), (inputs[400:], labels[400:]), batch_size=50),
        lambda params, batch: {"error": network.apply(params, batch[0]).argmax(-1) != batch[1]},
        name=SPIRALS,
    )  # fmt: skip


@functools.cache
def functions() -> dict[str, Function]:
    """Return the functions by name."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0]
    turn = jnp.asarray(turn, jnp.float32)

    def bend(x: jax.Array, key: Any = None) -> jax.Array:
        a, b = jnp.split(x, 2)
        return jnp.mean((1 - a) ** 2 + 100 * (b - a**2) ** 2)

    def valley(x: jax.Array, key: Any = None) -> jax.Array:
        return jnp.mean(jnp.logspace(0, 3, SIZE) * (turn @ x) ** 2)

    def scales(x: jax.Array, key: Any) -> jax.Array:
        return jnp.sum(jnp.logspace(-4, 2, SIZE) * x**2) / 2

    def plateau(x: jax.Array, key: Any = None) -> jax.Array:
        return jnp.mean(x**2 / (1 + x**2))

    def rare(x: jax.Array, key: jax.Array) -> jax.Array:
        return SIZE / 2 * x[jax.random.randint(key, (), 0, SIZE)] ** 2

    def tails(x: jax.Array, key: jax.Array) -> jax.Array:
        sign, size = jax.random.normal(key, (2, SIZE))
        return jnp.sum(x**2) / 2 + x @ (sign * jax.scipy.stats.norm.sf(size) ** (-2 / 3))

    def bursts(x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.exp(3 * jax.random.normal(key)) * jnp.sum(x**2) / 2

    return {
        "bend": Function("eight of Rosenbrock's bent valleys", bend, bend),
        "valley": Function("a turned quadratic, curvatures 1 to 1,000", valley, valley),
        "scales": Function("a quadratic along the axes, curvatures 1e-4 to 100", scales),
        "plateau": Function("nearly flat at 10, where it begins", plateau, plateau, 10.0),
        "rare": Function("a quadratic, of which a step sees one coordinate of 16", rare),
        "tails": Function("a quadratic with noise of infinite variance", tails),
        "bursts": Function("a quadratic times a random factor, often < 1/20 or > 20", bursts),
    }


@functools.cache
def together() -> Task:
    """Return the task of all functions, so that one program trains them; the state says which."""
    losses, errors = zip(*((one.loss, one.error) for one in functions().values()), strict=True)
    none = (np.zeros((1, 1), np.float32),)
    return Task(
        lambda key: (jnp.zeros(SIZE), jnp.int32(0)),
        lambda x, which, batch, key: (jax.lax.switch(which, losses, x, key), which),
        Data(none, none),
        lambda x, which, batch: {"error": jax.lax.switch(which, errors, x)},
        stateful=True,
        name="functions",
    )


def begin(name: str, seed: int) -> tuple[np.ndarray, np.int32] | None:
    """Return where a function is begun and its number; None for the spirals."""
    if name == SPIRALS:
        return None
    x = np.random.default_rng(seed).standard_normal(SIZE) + functions()[name].start
    return x.astype(np.float32), np.int32(list(functions()).index(name))


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is tried.

    Attributes:
      tasks: names of tasks.
      optimizers: names for ``create``.
      attempts: learning rates, tried in a fixed order until one succeeds.
      seeds: of start, noise and order of examples.
      steps: steps of an attempt.
    """

    tasks: tuple[str, ...] = (*functions(), SPIRALS)
    optimizers: tuple[str, ...] = list_optimizers()
    attempts: int = 8
    seeds: tuple[int, ...] = tuple(range(8))
    steps: int = 1000


def measure(s: Settings, runner: Runner) -> Rows:
    """Train every optimizer: all learning rates, seeds and functions in one program."""
    engine, rows = runner.engine, []
    groups = [[name for name in s.tasks if name != SPIRALS], [SPIRALS] * (SPIRALS in s.tasks)]
    pieces = [(name, group) for name in s.optimizers for group in groups if group]

    def train(piece: tuple[str, list[str]]) -> Rows:
        one, group = contender(piece[0], shared={"weight_decay": (0.0,)}), piece[1]
        tried = trials(one.space, s.attempts, seed=0)
        runs = [*itertools.product(group, s.seeds, enumerate(tried, 1))]
        lanes = [
            Lane(seed, *tables("cosine", own["learning_rate"], s.steps, one.recipe.momentum), own,
                 begin(task, seed))
            for task, seed, (_, own) in runs
        ]  # fmt: skip

        def say(steps: int, metrics: Any) -> None:
            runner.progress.advance(steps, f"{one.name}, {', '.join(group)}")

        task = spirals() if group == [SPIRALS] else together()
        made = engine.train(task, one.recipe, lanes, [s.steps], len(lanes), say)
        errors = [own[-1]["validation_error"] for own in made]
        return [
            {"task": task, "optimizer": one.name, "seed": seed, "attempt": attempt, **own,
             "error": error, "success": error is not None and error <= GOAL}
            for (task, seed, (attempt, own)), error in zip(runs, errors, strict=True)
        ]  # fmt: skip

    runs = len(s.optimizers) * len(s.tasks) * len(s.seeds) * s.attempts
    runner.progress.begin("small tasks", runs * s.steps)
    engine.each(train, pieces, lambda piece, made: rows.extend(made))
    runner.progress.end()
    order = {name: place for place, name in enumerate(s.optimizers)}
    return sorted(rows, key=lambda row: (order[row["optimizer"]], s.tasks.index(row["task"])))


def attempts(rows: Sequence[Row]) -> list[int | None]:
    """Return for each seed the first attempt that succeeded, or None."""
    found = []
    for seed in unique(rows, "seed"):
        fine = [row["attempt"] for row in where(rows, seed=seed) if row["success"]]
        found.append(min(fine, default=None))
    return found


def analyse(s: Settings, rows: Rows) -> Result:
    """Return the success rate and the mean attempts of every optimizer, the best first."""
    lines = []
    for name in s.optimizers:
        mine = where(rows, optimizer=name)
        own = {task: attempts(where(mine, task=task)) for task in s.tasks}
        found = [n for each in own.values() for n in each]
        fine = [n for n in found if n is not None]
        lines.append({
            "optimizer": name, "rate": len(fine) / len(found),
            "attempts": float(np.mean(fine)) if fine else None,
            **{task: sum(n is not None for n in each) / len(each) for task, each in own.items()},
        })  # fmt: skip
    lines.sort(key=lambda line: (-line["rate"], line["attempts"] or 0.0))
    shown = columns("optimizer | rate: solved {:.0%} | attempts: attempts {:.1f} | "
                    + " | ".join(f"{task} {{:.0%}}" for task in s.tasks))  # fmt: skip
    cells = [{"optimizer": line["optimizer"], "task": task, "share": line[task]}
             for line in lines for task in s.tasks]  # fmt: skip
    figure = Figure(
        "success", "Small tasks: the share of the seeds that some learning rate solved",
        "A heat map with one row for each optimizer and one column for each task; a cell is the "
        "share of the seeds for which one of the learning rates succeeded, in per cent.",
        [Panel("", _heat, cells)], columns=1, panel_size=(9.0, 1.2 + 0.28 * len(lines)),
    )  # fmt: skip
    about = {name: one.about for name, one in functions().items()}
    about[SPIRALS] = "two spirals, told apart by a network with two hidden layers of 32"
    others = ", ".join(name for name in s.optimizers if info(name).degree != 0)
    remarks = [
        f"Tasks: {'; '.join(f'{name}, {about[name]}' for name in s.tasks)}.",
        f"An attempt is one of {s.attempts} learning rates, {LEARNING_RATES}, in a fixed order; "
        f"{LARGE_LEARNING_RATES} if the step depends on the size of the gradient ({others}).",
    ]
    title = f"Tasks solved by one of {s.attempts} learning rates, over {len(s.seeds)} seeds"
    return Result((), [Table("ranking", title, shown, lines)], [figure], remarks)


def _heat(ax: Any, rows: Sequence[Row]) -> None:
    names, kinds = unique(rows, "optimizer"), unique(rows, "task")
    ax.imshow(np.reshape([row["share"] for row in rows], (len(names), len(kinds))), COLORS,
              vmin=0, vmax=1.3, aspect="auto")  # fmt: skip
    for row in rows:
        place = kinds.index(row["task"]), names.index(row["optimizer"])
        ax.text(*place, f"{100 * row['share']:.0f}", ha="center", va="center", color=INK)
    ax.set_xticks(range(len(kinds)), kinds)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.spines[:].set_visible(False)


EXPERIMENT = network_experiment(
    "small_tasks",
    measure,
    analyse,
    cpu=Settings(),
    full=Settings(attempts=32, seeds=tuple(range(16))),
    trial={"attempts": 2, "seeds": (0,), "steps": 20},
    tiny={"tasks": ("valley", "rare"), "optimizers": ("adamw", "sgdw"), "attempts": 4,
          "seeds": (0, 1), "steps": 200},
    title="Small tasks: success rate and attempts",
    question="How often does an optimizer solve a small task that is hard in one way, and how many "
    "learning rates must be tried for it?",
    setup="Every learning rate decays by a cosine; no weight decay, all other numbers at their "
    "defaults. A run succeeds if its error at the end, without noise, is at most 0.03: the value "
    "of the function (bend, valley, plateau), the share of wrong answers (spirals), or the mean "
    "square distance to the minimum.",
    expected="Nothing is published for these tasks; full tries more learning rates and seeds.",
)  # fmt: skip
