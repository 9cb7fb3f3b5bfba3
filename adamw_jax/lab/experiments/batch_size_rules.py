"""Measure how the learning rate depends on the batch size, for SGD and Adam."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import adam, scale_learning_rate, sgdw
from adamw_jax.lab.experiments.parts import (
    against,
    begun,
    columns,
    experiment,
    losses,
    stacked,
    steps,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.models import mlp
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import Interval, paired, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner, finite

SGD, ADAM = "SGD", "Adam"
RULES = {SGD: "linear", ADAM: "sqrt"}
POWERS = {"linear": 1.0, "sqrt": 0.5}
BAND = 0.1
LARGEST, BEST = "largest", "best"
WINDOW = 1.5  # octaves on either side of the best rate, for the parabola


@dataclasses.dataclass(frozen=True)
class Settings:
    """A small network, a few epochs, every batch size at every learning rate.

    Attributes:
      fitted: batch sizes over which the power is fitted.
      beyond: larger batch sizes, only shown.
      octaves: first and last learning rate of SGD and of Adam, as powers of 2.
      per_octave: learning rates in an octave.
      epochs: passes over 1,000 images, the same for all batch sizes.
      hidden: width of both hidden layers.
      late: share of the steps, at the end, over which the loss is averaged.
      seeds: seeds of weights and batches.
    """

    fitted: tuple[int, ...] = (1, 2, 4, 8, 16)
    beyond: tuple[int, ...] = (32, 64)
    octaves: tuple[tuple[int, int], tuple[int, int]] = ((-8, 1), (-10, -1))
    per_octave: int = 2
    epochs: int = 3
    hidden: int = 32
    late: float = 0.1
    seeds: tuple[int, ...] = tuple(range(12))

    def grid(self, name: str) -> np.ndarray:
        """Return base-2 logarithms of the learning rates of an optimizer."""
        first, last = self.octaves[(SGD, ADAM).index(name)]
        return np.linspace(first, last, (last - first) * self.per_octave + 1)

    @property
    def batches(self) -> tuple[int, ...]:
        """Return all batch sizes."""
        return self.fitted + self.beyond


def measure(s: Settings, runner: Runner) -> Rows:
    """Train all learning rates and seeds of a batch size in parallel."""
    task = get_task("digits")
    x, y = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)
    network = mlp(task.features, task.classes, s.hidden)
    drawn = [network.init(seed) for seed in s.seeds]
    params = stacked(drawn)

    def loss_of(params: Any, chosen: jax.Array) -> jax.Array:
        logits = network.apply(params, x[chosen])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[chosen]).mean()

    def train(name: str, late: int, params: Any, order: jax.Array, rate: jax.Array) -> jax.Array:
        sgd = sgdw(rate, momentum=None, weight_decay=None)
        tx = sgd if name == SGD else adam(rate)

        return steps(tx, begun(tx, params), losses(loss_of), order)[1][-late:].mean()

    runner.progress.begin("batch sizes", 2 * len(s.batches))
    rows: Rows = []
    for batch in s.batches:
        count = s.epochs * len(task.train) // batch
        orders = [
            np.random.default_rng([seed, batch]).integers(0, len(task.train), (count, batch))
            for seed in s.seeds
        ]
        order = jnp.asarray(np.stack(orders), jnp.int32)
        for name in (SGD, ADAM):
            late = max(1, round(s.late * count))
            one = jax.vmap(lambda p, o, r, n=name, k=late: train(n, k, p, o, r), (0, 0, None))
            rates = jnp.asarray(2.0 ** s.grid(name), jnp.float32)
            ends = np.asarray(jax.jit(jax.vmap(one, (None, None, 0)))(params, order, rates))
            rows += [
                {"series": name, "batch": batch, "octave": float(octave), "seed": seed,
                 "loss": finite(ends[i, n])}
                for i, octave in enumerate(s.grid(name))
                for n, seed in enumerate(s.seeds)
            ]  # fmt: skip
            runner.progress.advance(1, f"{name}, batch size {batch}")
    runner.progress.end()
    return rows


def largest(octaves: np.ndarray, losses: np.ndarray, bound: float) -> float:
    """Return the first rate above the best at which the loss crosses the bound, in octaves."""
    i = int(np.argmin(losses))
    while i + 1 < len(losses) and losses[i + 1] <= bound:
        i += 1
    if i + 1 == len(losses):
        return float(octaves[i])
    low, high = np.log(losses[i]), np.log(losses[i + 1])
    share = np.clip((math.log(bound) - low) / (high - low), 0, 1)
    return float(octaves[i] + share * (octaves[i + 1] - octaves[i]))


def best(octaves: np.ndarray, losses: np.ndarray) -> float:
    """Return the lowest point of a parabola through the logs near the smallest, in octaves."""
    near = np.abs(octaves - octaves[np.argmin(losses)]) <= WINDOW
    bend, slope, _ = np.polyfit(octaves[near], np.log(losses[near]), 2)
    inside = octaves[near]
    lowest = -slope / (2 * bend) if bend > 0 else octaves[np.argmin(losses)]
    return float(np.clip(lowest, inside[0], inside[-1]))


def found(s: Settings, rows: Sequence[Row], name: str, batch: int) -> dict[str, list[float]]:
    """Return for each seed the largest learning rate that trains and the best one, in octaves."""
    guess = math.log(get_task("digits").classes)
    out: dict[str, list[float]] = {LARGEST: [], BEST: []}
    for seed in s.seeds:
        mine = where(rows, series=name, batch=batch, seed=seed)
        octaves = np.array([row["octave"] for row in mine])
        losses = np.array([guess if row["loss"] is None else row["loss"] for row in mine])
        losses = np.minimum(losses, guess)
        out[LARGEST].append(largest(octaves, losses, guess / 2))
        out[BEST].append(best(octaves, losses))
    return out


def powers(s: Settings, octaves: dict[int, list[float]]) -> list[float]:
    """Return for each seed the power of the batch size with which the learning rate grows."""
    x = np.log2(s.fitted)
    return [
        float(np.polyfit(x, [octaves[batch][n] for batch in s.fitted], 1)[0])
        for n in range(len(s.seeds))
    ]


def analyse(s: Settings, rows: Rows) -> Result:
    """Fit powers."""
    table, verdicts, panels = [], [], []
    for which in (LARGEST, BEST):
        drawn: list[Row] = []
        for name in (SGD, ADAM):
            octaves = {batch: found(s, rows, name, batch)[which] for batch in s.batches}
            verdicts.append(_verdict(s, name, which, powers(s, octaves)))
            means = {batch: 2 ** spread(octaves[batch]).mean for batch in s.batches}
            first = s.fitted[0]
            ruled = {
                batch: scale_learning_rate(means[first], first, batch, RULES[name])
                for batch in s.batches
            }
            for batch in s.batches:
                table.append(
                    {"series": name, "which": which, "batch": batch, "rate": means[batch],
                     "sd": spread(octaves[batch]).sd, "rule": ruled[batch]}
                )  # fmt: skip
            drawn += against(name, s.batches, list(means.values()), s.batches, ruled.get)
        panels.append(Panel(_words(which), _logarithmic, drawn))
    shown = columns(
        "series: optimizer | which: learning rate | batch: batch size {:d} | rate: found {:.2g} "
        "| sd: ± sd, octaves {:.2f} | rule: by rule from the first {:.2g}"
    )
    figure = Figure(
        name="rules",
        title="Learning rate against batch size",
        alt="The largest learning rate that trains, and the best one, against the batch size on "
        "logarithmic axes, for SGD with a line of slope 1 and for Adam with one of slope 1/2 "
        "through the first point.",
        panels=panels,
    )
    title = f"Learning rates after {s.epochs} epochs, geometric means over seeds"
    return Result(verdicts, [Table("rules", title, shown, table)], [figure], _beyond(s, table))


def _words(which: str) -> str:
    return "largest learning rate that trains" if which == LARGEST else "best learning rate"


def _verdict(s: Settings, name: str, which: str, slopes: Sequence[float]) -> Verdict:
    power = POWERS[RULES[name]]
    found: Interval = paired(slopes, [0.0] * len(slopes))
    if max(abs(found.low - power), abs(found.high - power)) <= BAND:
        word = "shown"
    else:
        word = "undecided" if found.low <= power <= found.high else "contradicted"
    return Verdict(
        claim=f"{name}'s learning rate goes with "
        + ("the batch size" if power == 1 else "the root of the batch size"),
        task=f"digits, {_words(which)}",
        word=word,
        evidence=f"Power of the batch size {found.mean:.2f} [{found.low:.2f}, {found.high:.2f}], "
        f"fitted from {s.fitted[0]} to {s.fitted[-1]}.",
        rule=f"95 % interval of the fitted power within {BAND:g} of {power:g}: shown; else, if it "
        f"holds {power:g}, undecided; else contradicted.",
        literature="Granziol et al., abstract: linear for SGD up to a largest batch size, the "
        "square root for adaptive methods.",
    )


def _beyond(s: Settings, table: Sequence[Row]) -> list[str]:
    """Describe the power beyond the fitted batch sizes."""
    if not s.beyond:
        return []
    first, last = s.fitted[-1], s.beyond[-1]
    said = []
    for name in (SGD, ADAM):
        for which in (LARGEST, BEST):
            rates = [
                where(table, series=name, which=which, batch=batch)[0]["rate"]
                for batch in (first, last)
            ]
            power = math.log(rates[1] / rates[0]) / math.log(last / first)
            said.append(f"{power:.2f} for {name}'s {_words(which)}")
    return [f"From a batch size of {first} to {last} the power is {', '.join(said)}."]


def _logarithmic(ax: Any, rows: Sequence[Row]) -> None:
    theory("batch size", "learning rate", xscale="log")(ax, rows)
    ax.set_yscale("log")


EXPERIMENT = experiment(
    "batch_size_rules", Settings(), measure, analyse,
    quick={"fitted": (2, 4, 8, 16), "beyond": (64,), "seeds": (0, 1, 2)},
    tiny={"fitted": (16, 64), "beyond": (), "octaves": ((-4, 0), (-8, -2)), "epochs": 1,
        "hidden": 16, "seeds": (0, 1)},
    title="Learning rate and batch size",
    question="A larger batch has less noise and allows a larger learning rate. Does the learning "
    "rate of SGD grow with the batch size, and that of Adam with its root?",
    setup="A network with two hidden layers of 32 on digits, 3 epochs for every batch size, "
    "constant learning rates half an octave apart, Adam with b1 0.9, b2 0.999. The measure is the "
    "mean loss of the last tenth of the steps. The largest learning rate that trains is the one "
    "at which this reaches half the loss of guessing. The best one is the lowest point of a "
    "parabola through its logarithm, 1.5 octaves around the smallest. A first trial, with batches "
    "from 1 to 128, decided three things: the grid; to evaluate in two ways, because the minima "
    "are flat; and to fit the power up to a batch size of 16, because SGD's learning rates grow "
    "more slowly beyond, as theory predicts where curvature dominates noise. The rule of the "
    "verdicts was narrowed after a run, because the original bands of 0.25 around 1 and 1/2 "
    "touch. Four seeds left Adam's powers undecided; these are twelve.",
    reference="Granziol, Zohren & Roberts, Learning Rates as a Function of Batch Size: A Random "
    "Matrix Theory Approach to Neural Network Training, JMLR 2022, arXiv 2006.09092",
)  # fmt: skip
