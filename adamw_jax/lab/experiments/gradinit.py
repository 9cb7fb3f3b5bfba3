"""Run GradInit on a deep plain network whose first weights have a good or bad scale."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import sgdw
from adamw_jax.initialization import GradInit, overlapping_pair
from adamw_jax.lab.experiments.common import ACCURACY_MARGIN, LOSS_MARGIN, interval, mean_sd
from adamw_jax.lab.experiments.parts import (
    begun,
    column,
    columns,
    curves,
    experiment,
    losses,
    stacked,
    steps,
    unique,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner, finite

PLAIN, GRADINIT = "as drawn", "after GradInit"
GOOD = 1.0
SEARCHED = 1  # another stream of batches than in training
LITERATURE = (
    "Zhu et al., abstract: faster convergence and better accuracy of many convolutional networks, "
    "also without normalisation."
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Networks of ReLU layers without normalisation.

    Attributes:
      gains: factors of He's weights; 1 is He's own scale.
      depth: layers of weights.
      width: width of the hidden layers.
      seeds: seeds of weights and batches.
      rate: learning rate of SGD, and eta of GradInit.
      gamma: bound on the norm of the gradient.
      scale_lr: learning rate of the scales.
      search_steps: steps of GradInit; a batch of 3/2 ``batch_size`` gives a pair.
      steps: steps of SGD.
      points: points of the curves.
      batch_size: examples per step.
    """

    gains: tuple[float, ...] = (0.5, 1.0, 1.3)
    depth: int = 12
    width: int = 48
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    rate: float = 0.1
    gamma: float = 1.0
    scale_lr: float = 1e-2
    search_steps: int = 200
    steps: int = 300
    points: int = 30
    batch_size: int = 64


def network(s: Settings, seed: int, gain: float, features: int, classes: int) -> list[Any]:
    """Draw He's weights times the gain, and biases of zero, layer by layer."""
    rng = np.random.default_rng([seed, s.depth])
    sizes = [features, *[s.width] * (s.depth - 1), classes]
    return [
        {
            "bias": np.zeros([fan_out], np.float32),
            "kernel": (gain * rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))).astype("f4"),
        }
        for fan_in, fan_out in itertools.pairwise(sizes)
    ]


def logits_of(params: list[Any], x: jax.Array) -> jax.Array:
    """Return the output of the network."""
    for i, layer in enumerate(params):
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"][None]
    return x


def loss_of(params: list[Any], batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean cross-entropy."""
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, x), y).mean()


def measure(s: Settings, runner: Runner) -> Rows:
    """Rescale every network, and train it as drawn and rescaled, all in parallel."""
    task = get_task("digits")
    data = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)
    test = jnp.asarray(task.test.inputs), jnp.asarray(task.test.labels)
    search = GradInit(loss_of, eta=s.rate, gamma=s.gamma, scale_lr=s.scale_lr)
    tx = sgdw(s.rate, momentum=None, weight_decay=None)
    lanes = [(gain, seed) for gain in s.gains for seed in s.seeds]
    drawn = [network(s, seed, gain, task.features, task.classes) for gain, seed in lanes]
    params = stacked(drawn)

    def order(stream: int, count: int, size: int) -> jax.Array:
        drawn = [
            np.random.default_rng([seed, stream]).integers(0, len(task.train), (count, size))
            for _, seed in lanes
        ]
        return jnp.asarray(np.stack(drawn), jnp.int32)

    @jax.jit
    @jax.vmap
    def rescale(params: Any, order: jax.Array) -> Any:
        def step(state: Any, chosen: jax.Array) -> Any:
            pair = overlapping_pair(jax.tree.map(lambda x: x[chosen], data))
            state, record = search.step(params, state, pair)
            return state, record.gradient_norm

        state, norms = jax.lax.scan(step, search.init(params), order)
        scales = search.blocks(params).per_leaf(state.scales)
        return search.rescaled(params, state), [layer["kernel"] for layer in scales], norms

    @jax.jit
    @jax.vmap
    def train(params: Any, order: jax.Array) -> Any:
        def loss(params: Any, chosen: jax.Array) -> jax.Array:
            return loss_of(params, jax.tree.map(lambda x: x[chosen], data))

        (params, _), seen = steps(tx, begun(tx, params), losses(loss), order)
        right = logits_of(params, test[0]).argmax(-1).astype(jnp.int32) == test[1]
        return seen.reshape(s.points, -1).mean(1), right.astype(jnp.float32).mean()

    runner.progress.begin("rescaling and training", s.search_steps + 2 * s.steps)
    rescaled, scales, norms = rescale(
        params, order(SEARCHED, s.search_steps, 3 * s.batch_size // 2)
    )
    runner.progress.advance(s.search_steps, f"norm {np.median(norms[:, -1]):.2f}")
    rows: Rows = []
    for i, (gain, seed) in enumerate(lanes):
        rows.append({"kind": "norm", "gain": gain, "seed": seed, "before": finite(norms[i, 0]),
                     "after": finite(norms[i, -10:].mean())})  # fmt: skip
        rows += [
            {"kind": "scale", "gain": gain, "seed": seed, "layer": n + 1, "scale": float(scale[i])}
            for n, scale in enumerate(scales)
        ]
    for name, start in ((PLAIN, params), (GRADINIT, rescaled)):
        path, accuracy = jax.device_get(train(start, order(0, s.steps, s.batch_size)))
        runner.progress.advance(s.steps, f"{name}: accuracy {np.median(accuracy):.1%}")
        for i, (gain, seed) in enumerate(lanes):
            mine = {"series": name, "gain": gain, "seed": seed}
            rows += [
                {"kind": "loss", **mine, "step": (n + 1) * s.steps // s.points, "loss": finite(x)}
                for n, x in enumerate(path[i])
            ]
            rows.append({"kind": "end", **mine, "train_loss": finite(path[i, -1]),
                         "test_accuracy": float(accuracy[i])})  # fmt: skip
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare the two starts at every gain."""
    table = []
    for gain in s.gains:
        norm = where(rows, kind="norm", gain=gain)
        for name in (PLAIN, GRADINIT):
            ends = where(rows, kind="end", gain=gain, series=name)
            accuracy = spread(column(ends, "test_accuracy"))
            table.append(
                {"gain": gain, "series": name,
                 "norm": float(np.median(column(norm, "before" if name == PLAIN else "after"))),
                 "loss": float(np.median(column(ends, "train_loss"))),
                 "accuracy": accuracy.mean, "sd": accuracy.sd}
            )  # fmt: skip
    shown = columns(
        "gain {:g} | series: start | norm: gradient norm, median {:.2f} | loss: training loss, "
        "median {:.3f} | accuracy: test accuracy {:.1%} | sd: ± sd {:.1%}"
    )
    return Result(
        [_verdict(s, rows, gain) for gain in s.gains],
        [Table("gradinit", f"SGD for {s.steps} steps, by gain", shown, table)],
        [_loss_figure(s, rows), _scale_figure(s, rows)],
    )


def _verdict(s: Settings, rows: Sequence[Row], gain: float) -> Verdict:
    if gain == GOOD:
        return _speed(s, rows, gain)
    plain, mine = (
        column(where(rows, kind="end", gain=gain, series=name), "test_accuracy")
        for name in (PLAIN, GRADINIT)
    )
    gained = paired(mine, plain)
    return Verdict(
        claim=f"GradInit rescues weights of {gain:g} times the right scale",
        task=_task(s, gain),
        word=decide(gained, ACCURACY_MARGIN),
        evidence=f"{GRADINIT} {mean_sd(mine, 'test_accuracy')}, {PLAIN} "
        f"{mean_sd(plain, 'test_accuracy')}; difference {interval(gained, 'test_accuracy')}.",
        rule=rule("the difference in test accuracy at the end", "1 point"),
        literature=LITERATURE,
    )


def _speed(s: Settings, rows: Sequence[Row], gain: float) -> Verdict:
    """Judge how fast the loss falls, by the mean of its logarithm over training."""
    plain, mine = (
        [
            float(np.mean(np.log(column(where(rows, kind="loss", gain=gain, series=name, seed=seed),
                                        "loss"))))
            for seed in s.seeds
        ]
        for name in (PLAIN, GRADINIT)
    )  # fmt: skip
    gained = paired(plain, mine)
    slower = f" Training is slower {GRADINIT}." if gained.high < 0 else ""
    return Verdict(
        claim="GradInit speeds up training from a good initialisation",
        task=_task(s, gain),
        word=decide(gained, LOSS_MARGIN),
        evidence=f"Mean log training loss over the steps: {GRADINIT} "
        f"{mean_sd(mine, 'train_loss')}, {PLAIN} {mean_sd(plain, 'train_loss')}; reduction "
        f"{interval(gained, 'train_loss')}.{slower}",
        rule=rule("the reduction in the mean log training loss over all steps", f"{LOSS_MARGIN:g}"),
        literature=LITERATURE,
    )


def _task(s: Settings, gain: float) -> str:
    return f"digits, {s.depth} plain layers, gain {gain:g}"


def _loss_figure(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for gain in s.gains:
        mine = where(rows, kind="loss", gain=gain)
        # This order fixes the colours, even if a line is missing.
        points = curves(mine, "step", "loss", (GRADINIT, PLAIN))
        drawn = unique(points, "series")
        note = f" ({drawn[0]}; the other diverges)" if len(drawn) == 1 else ""
        draw = lines("steps", "training loss")
        panels.append(Panel(f"gain {gain:g}{note}", draw, points))
    return Figure(
        name="loss",
        title="SGD from weights as drawn and from those that GradInit rescaled",
        alt="Training loss against steps, a panel for each gain of the initial weights, mean and "
        "deviation over seeds, for the weights as drawn and after GradInit. Where a run has "
        "diverged its line ends.",
        panels=panels,
        columns=3,
    )


def _scale_figure(s: Settings, rows: Sequence[Row]) -> Figure:
    named = [{**row, "series": f"gain {row['gain']:g}"} for row in where(rows, kind="scale")]
    points = curves(named, "layer", "scale", [f"gain {gain:g}" for gain in s.gains])
    draw = lines("layer", "scale", spread="bars", markers=True)
    return Figure(
        name="scales",
        title="The scales that GradInit finds",
        alt="Scale of each layer's weights after GradInit, from the first layer to the last, one "
        "line for each gain of the initial weights, with the deviation over seeds.",
        panels=[Panel(f"after {s.search_steps} steps", draw, points)],
        columns=1,
        panel_size=(6.4, 3.6),
    )


EXPERIMENT = experiment(
    "gradinit", Settings(), measure, analyse,
    quick={"seeds": (0, 1, 2, 3)},
    tiny={"gains": (3.0, 1.0), "depth": 3, "width": 16, "seeds": (0, 1, 2), "search_steps": 60,
        "steps": 40, "points": 4, "batch_size": 32},
    title="GradInit and the scale of the first weights",
    question="A deep network without normalisation trains only if its first weights have the "
    "right scale. Can scales learned from the first step of training repair a wrong scale, and do "
    "they help if the scale is right?",
    setup="12 ReLU layers of width 48 on digits, He's weights times a gain, biases of zero. "
    "GradInit: 200 steps, eta 0.1, gamma 1, learning rate of the scales 0.01, pairs of batches "
    "that share half of their 64 examples. Then 300 steps of SGD at learning rate 0.1, with the "
    "same batches for both starts; a seed determines weights and batches. GradInit's own steps "
    "are not counted. Gains and settings were chosen in a first trial with two seeds. At first, "
    "speed at gain 1 was judged by the last loss, which says little about it; the curves had been "
    "measured already.",
    reference="Zhu, Ni, Xu, Kong, Huang & Goldstein, GradInit, NeurIPS 2021, arXiv 2102.08098",
)  # fmt: skip
