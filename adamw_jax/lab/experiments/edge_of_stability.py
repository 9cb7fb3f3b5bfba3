"""Measure the rise of the sharpness to the stability threshold, also under Adam."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax import adam, sgdw
from adamw_jax.curvature import preconditioned_sharpness, sharpness, stability_threshold
from adamw_jax.lab.experiments.parts import (
    begun,
    column,
    columns,
    curves,
    experiment,
    level,
    stacked,
    steps,
    unique,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner, finite

ADAM, DESCENT = "Adam", "gradient descent"
KINDS = {ADAM: "adam", DESCENT: "sgd"}
FORMULAS = {ADAM: "(2 + 2 b1) / ((1 - b1) lr)", DESCENT: "2 / lr"}
BAND = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """A tanh network with squared loss on all its examples at once.

    Attributes:
      adam: pairs of learning rate and b1.
      descent: the same for gradient descent, whose b1 is 0.
      b2: b2 of Adam.
      eps: eps of Adam.
      seeds: seeds of the weights.
      examples: number of images of digits.
      hidden: width of both hidden layers.
      steps: steps of a run.
      points: measurements of the sharpness, evenly spread.
      last: steps at the end over which the ratio to the threshold is averaged.
      lanczos: number of Lanczos steps.
    """

    adam: tuple[tuple[float, float], ...] = ((3e-3, 0.9), (1e-3, 0.9), (2e-3, 0.8), (1e-3, 0.5))
    descent: tuple[tuple[float, float], ...] = ((0.3, 0.0),)
    b2: float = 0.99
    eps: float = 1e-7
    seeds: tuple[int, ...] = (0, 1, 2)
    examples: int = 300
    hidden: int = 32
    steps: int = 2400
    points: int = 24
    last: int = 1000
    lanczos: int = 20

    def lanes(self) -> list[tuple[str, float, float]]:
        """Return optimizer, learning rate and b1 of every run."""
        pairs = {ADAM: self.adam, DESCENT: self.descent}
        return [(name, *pair) for name, each in pairs.items() for pair in each]


def examples(s: Settings) -> tuple[jax.Array, jax.Array]:
    """Return pixels, each centred and scaled by its range, and one-hot labels."""
    task = get_task("digits")
    x = task.train.inputs[: s.examples] / np.ptp(task.train.inputs)
    x = (x - x.mean(0)) / (x.std(0) + 0.1)
    return jnp.asarray(x), jax.nn.one_hot(task.train.labels[: s.examples], task.classes)


def weights(s: Settings, seed: int, inputs: int, outputs: int) -> list[Any]:
    """Draw normal weights of variance 1 / inputs, and biases of zero, layer by layer."""
    rng = np.random.default_rng([seed, s.hidden])
    return [
        {
            "bias": np.zeros([after], np.float32),
            "kernel": rng.normal(0, before**-0.5, (before, after)).astype(np.float32),
        }
        for before, after in itertools.pairwise((inputs, s.hidden, s.hidden, outputs))
    ]


def loss_of(params: list[Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return half the squared error, summed over outputs, mean over examples."""
    x, y = batch
    for i, layer in enumerate(params):
        x = (jnp.tanh(x) if i else x) @ layer["kernel"] + layer["bias"][None]
    return 0.5 * jnp.sum((x - y) ** 2, axis=1).mean()


def watch(s: Settings, name: str, batch: Any, params: Any, rate: Any, b1: Any) -> Any:
    """Return losses and sharpnesses along a run, arrays of shape (points,)."""
    key = jax.random.key(0)
    if name == ADAM:
        tx = adam(rate, b1=b1, b2=s.b2, eps=s.eps)
    else:
        tx = sgdw(rate, momentum=None, weight_decay=None)

    def slope(params: Any, _: Any) -> Any:
        return jax.grad(loss_of)(params, batch), None

    def stretch(carry: Any, _: Any) -> Any:
        (params, state), _ = steps(tx, carry, slope, length=s.steps // s.points)
        if name == ADAM:
            found = preconditioned_sharpness(
                loss_of, params, batch, tx, state, key=key, steps=s.lanczos
            )
        else:
            found = sharpness(loss_of, params, batch, key=key, steps=s.lanczos)
        return (params, state), (loss_of(params, batch), found)

    return jax.lax.scan(stretch, begun(tx, params), length=s.points)[1]


def measure(s: Settings, runner: Runner) -> Rows:
    """Train the runs of an optimizer one by one in one program."""
    batch = examples(s)
    stride = s.steps // s.points
    runner.progress.begin("edge of stability", len(s.lanes()) * len(s.seeds) * s.steps)
    drawn = [weights(s, seed, batch[0].shape[1], batch[1].shape[1]) for seed in s.seeds]
    params = stacked(drawn)
    programs = {
        name: jax.jit(
            jax.vmap(lambda p, r, b, n=name: watch(s, n, batch, p, r, b), (0, None, None))
        )
        for name in (ADAM, DESCENT)
    }
    rows: Rows = []
    for name, rate, b1 in s.lanes():
        found = programs[name](params, jnp.float32(rate), jnp.float32(b1))
        losses, sharpest = (np.asarray(x) for x in found)
        threshold = float(stability_threshold(KINDS[name], rate, b1))
        rows += [
            {"series": name, "rate": rate, "b1": b1, "threshold": threshold, "seed": seed,
             "step": (i + 1) * stride, "loss": finite(losses[n, i]),
             "ratio": finite(sharpest[n, i] / threshold)}
            for n, seed in enumerate(s.seeds)
            for i in range(s.points)
        ]  # fmt: skip
        ratio = sharpest[:, -1].mean() / threshold
        runner.progress.advance(len(s.seeds) * s.steps, f"{name}: {ratio:.2f} of the threshold")
    runner.progress.end()
    return rows


def settled(s: Settings, rows: Sequence[Row]) -> list[float]:
    """Return for each seed the mean ratio over the last steps."""
    late = [row for row in rows if row["step"] > s.steps - s.last]
    steps = unique(late, "step")
    return list(np.mean([column(where(late, step=step), "ratio") for step in steps], axis=0))


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare the mean ratio with 1."""
    table, verdicts = [], []
    for name, rate, b1 in s.lanes():
        mine = where(rows, series=name, rate=rate, b1=b1)
        ratios = settled(s, mine)
        end, summary = where(mine, step=s.steps), spread(ratios)
        table.append(
            {"series": name, "rate": rate, "b1": b1, "threshold": mine[0]["threshold"],
             "ratio": summary.mean, "sd": summary.sd, "low": min(ratios), "high": max(ratios),
             "loss": float(np.median(column(end, "loss")))}
        )  # fmt: skip
        verdicts.append(_verdict(s, name, rate, b1, ratios))
    shown = columns(
        f"series: optimizer | rate: lr {{:g}} | b1 {{:g}} | threshold {{:.5g}} | ratio: "
        f"sharpness / threshold, last {s.last} steps {{:.3f}} | sd: ± sd {{:.3f}} | low: least "
        f"{{:.3f}} | high: most {{:.3f}} | loss: training loss, median {{:.2g}}"
    )
    title = "Sharpness (of Adam the preconditioned one) over the threshold of stability"
    return Result(verdicts, [Table("edge", title, shown, table)], [_figure(s, rows)])


def _verdict(s: Settings, name: str, rate: float, b1: float, ratios: Sequence[float]) -> Verdict:
    preconditioned = "preconditioned " * (name == ADAM)
    return Verdict(
        claim=f"The {preconditioned}sharpness of {name} rises to {FORMULAS[name]} and stays there",
        task=f"digits, full batch, lr {rate:g}" + f", b1 {b1:g}" * (name == ADAM),
        word="shown" if all(abs(ratio - 1) <= BAND for ratio in ratios) else "contradicted",
        evidence=f"Ratio to the threshold over the last {s.last} steps: mean "
        f"{spread(ratios).mean:.3f}, from {min(ratios):.3f} to {max(ratios):.3f} over seeds.",
        rule=f"Mean ratio over the last {s.last} steps in [{1 - BAND:g}, {1 + BAND:g}] with every "
        "seed: shown; else contradicted.",
        literature="Cohen et al. 2022: 38 / lr for Adam with b1 = 0.9."
        if name == ADAM
        else "Cohen et al., ICLR 2021.",
    )


def _figure(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for optimizer in (ADAM, DESCENT):
        drawn: list[Row] = []
        for name, rate, b1 in s.lanes():
            if name == optimizer:
                mine = where(rows, series=name, rate=rate, b1=b1)
                label = f"lr {rate:g}" + f", b1 {b1:g}" * (name == ADAM)
                drawn += [{**row, "series": label} for row in curves(mine, "step", "ratio")]
        drawn += level("threshold", (0, s.steps), 1.0)
        panels.append(Panel(optimizer, lines("steps", "sharpness / threshold"), drawn))
    return Figure(
        name="edge",
        title="Sharpness rises to the threshold of stability and hovers there",
        alt="Sharpness over its threshold of stability against steps, for Adam (preconditioned "
        "sharpness) with several learning rates and b1, and for gradient descent, mean and "
        "deviation over seeds, with a line at 1.",
        panels=panels,
    )


EXPERIMENT = experiment(
    "edge_of_stability", Settings(), measure, analyse,
    quick={"adam": ((0.003, 0.9), (0.001, 0.5)), "seeds": (0, 1)},
    tiny={"adam": ((0.03, 0.5),), "descent": ((0.5, 0.0),), "seeds": (0, 1), "examples": 60,
        "hidden": 8, "steps": 200, "points": 10, "last": 100, "lanczos": 12},
    title="The edge of stability",
    question="On a quadratic an optimizer diverges if the curvature exceeds a threshold set by "
    "its learning rate and momentum. Does the sharpness in training on all examples at once stay "
    "below the threshold, or does it rise to it, also under Adam?",
    setup="A tanh network, two hidden layers of 32, half the squared error, 300 images of digits, "
    "all in every step, 2400 steps. Every 100 steps the largest eigenvalue of the Hessian is "
    "computed by 20 Lanczos steps; for Adam (b2 0.99, eps 1e-7) it is that of P^-1 H, where Adam "
    "divides by P. A seed determines the weights; nothing else is random. Learning rates, b2 and "
    "the length of the runs were chosen in a first trial on other images. With b2 0.999 or "
    "smaller learning rates the rise takes longer than these runs.",
    reference="Cohen et al., Adaptive Gradient Methods at the Edge of Stability, 2022, arXiv "
    "2207.14484",
)  # fmt: skip
