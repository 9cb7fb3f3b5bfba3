"""Measure how uneven the Hessian's diagonal is at the points that optimizers reach."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax import adam, sgdw
from adamw_jax.curvature import hessian_diag, r_med
from adamw_jax.lab.experiments.parts import (
    begun,
    column,
    columns,
    curves,
    experiment,
    stacked,
    steps,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.train import Runner, finite

DESCENT, MOMENTUM, ADAM, RMSPROP = "gradient descent", "SGD with momentum", "Adam", "RMSProp"
UNEVEN, EVEN = (DESCENT, MOMENTUM), (ADAM, RMSPROP)
LAYERS = ("first", "second")
HIGH, LOW = 8.0, 2.0
MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
    """L = |W2 W1 X - A X|^2 / (2 n), from small weights, on all examples at once.

    Attributes:
      size: inputs and hidden units; there is one output.
      examples: n, standard normal.
      scale: deviation of the first weights.
      descent: learning rate of gradient descent.
      momentum: learning rate of SGD with momentum 0.9.
      adaptive: learning rate of Adam with b1 0.9, and of RMSProp, its case b1 0.
      b2: b2 of both.
      seeds: seeds of weights and examples.
      steps: steps of a run.
      points: measurements of the diagonal, evenly spread.
    """

    size: int = 64
    examples: int = 256
    scale: float = 1e-3
    descent: float = 0.05
    momentum: float = 0.01
    adaptive: float = 2e-4
    b2: float = 0.95
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    steps: int = 800
    points: int = 8


def contenders(s: Settings) -> dict[str, tuple[bool, float, float]]:
    """Return by name: whether Adam or SGD, learning rate, and momentum or b1."""
    return {
        DESCENT: (False, s.descent, 0.0),
        MOMENTUM: (False, s.momentum, 0.9),
        ADAM: (True, s.adaptive, 0.9),
        RMSPROP: (True, s.adaptive, 0.0),
    }


def problem(s: Settings, seed: int) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return first weights, and X X^T / n with A, on which alone the loss depends."""
    rng = np.random.default_rng([seed, s.size])
    x = rng.standard_normal((s.size, s.examples))
    sizes = rng.uniform(0.5, 1.5, (1, s.size)) * rng.choice([-1, 1], (1, s.size))
    params = {
        "first": s.scale * rng.standard_normal((s.size, s.size)),
        "second": s.scale * rng.standard_normal((1, s.size)),
    }
    data = x @ x.T / s.examples, sizes / np.sqrt(s.size)
    return jax.tree.map(lambda a: a.astype(np.float32), (params, data))


def loss_of(params: dict[str, jax.Array], data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return half the mean squared error."""
    moment, goal = data
    error = params["second"] @ params["first"] - goal
    return 0.5 * jnp.sum((error @ moment) * error)


def measure(s: Settings, runner: Runner) -> Rows:
    """Train all seeds in parallel and compute the exact diagonal at the points."""
    stride = s.steps // s.points
    runner.progress.begin("two linear layers", len(contenders(s)) * len(s.seeds) * s.steps)
    posed = [problem(s, seed) for seed in s.seeds]
    params, data = stacked(posed)
    diagonal = jax.jit(jax.vmap(lambda p, d: r_med(hessian_diag(loss_of, p, d))))

    def run(adaptive: bool, params: Any, data: Any, rate: Any, b1: Any) -> Any:
        sgd = sgdw(rate, momentum=b1, weight_decay=None)
        tx = adam(rate, b1=b1, b2=s.b2) if adaptive else sgd

        def slope(params: Any, _: Any) -> Any:
            return jax.grad(loss_of)(params, data), None

        def stretch(carry: Any, _: Any) -> Any:
            carry, _ = steps(tx, carry, slope, length=stride)
            return carry, (carry[0], loss_of(carry[0], data))

        return jax.lax.scan(stretch, begun(tx, params), length=s.points)[1]

    runs = {
        adaptive: jax.jit(jax.vmap(functools.partial(run, adaptive), (0, 0, None, None)))
        for adaptive in (False, True)
    }
    rows: Rows = []
    for name, (adaptive, *numbers) in contenders(s).items():
        paths, losses = runs[adaptive](params, data, *map(jnp.float32, numbers))
        for i in range(s.points):
            ratios = diagonal(jax.tree.map(lambda x, i=i: x[:, i], paths), data)
            rows += [
                {"series": name, "seed": seed, "step": (i + 1) * stride,
                 "loss": finite(losses[n, i]),
                 **{layer: finite(ratios[layer][n]) for layer in LAYERS}}
                for n, seed in enumerate(s.seeds)
            ]  # fmt: skip
        runner.progress.advance(len(s.seeds) * s.steps, name)
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare the ratios at the end with 8 and 2."""
    ends = where(rows, step=s.steps)
    table = []
    for name in contenders(s):
        mine = where(ends, series=name)
        line: dict[str, Any] = {"series": name, "loss": float(np.median(column(mine, "loss")))}
        for layer in LAYERS:
            x = spread(column(mine, layer))
            line |= {layer: x.mean, f"{layer}_sd": x.sd}
        table.append(line)
    shown = columns(
        "series: optimizer | first: R_med of the first layer {:.2f} | first_sd: ± sd {:.2f} | "
        "second: of the second {:.2f} | second_sd: ± sd {:.2f} | loss: loss, median {:.1e}"
    )
    title = f"Largest over median entry of the Hessian's diagonal after {s.steps} steps"
    return Result(
        [_verdict(s, where(ends, series=name), name) for name in contenders(s)],
        [Table("r_med", title, shown, table)],
        [_figure(s, rows)],
    )


def _verdict(s: Settings, ends: Sequence[Row], name: str) -> Verdict:
    """Judge by the layer that supports the claim least, seed by seed."""
    layers = [column(ends, layer) for layer in LAYERS]
    uneven = name in UNEVEN
    decisive = [min(pair) if uneven else max(pair) for pair in zip(*layers, strict=True)]
    bound = math.log(HIGH if uneven else LOW)
    gap = paired([math.log(r) if uneven else bound for r in decisive],
                 [bound if uneven else math.log(r) for r in decisive])  # fmt: skip
    word = "smaller" if uneven else "larger"
    sign = 1 if uneven else -1
    low, mean, high = (
        math.exp(sign * (x + sign * bound)) for x in (gap.low, gap.mean, gap.high)[::sign]
    )
    return Verdict(
        claim=f"{name} leads to "
        + (f"an uneven diagonal, R_med above {HIGH:g}" if uneven else f"R_med below {LOW:g}")
        + " in the geometric mean over seeds",
        task=f"two linear layers of {s.size}",
        word=decide(gap, MARGIN),
        evidence=f"First layer {spread(layers[0]).mean:.2f}, second {spread(layers[1]).mean:.2f}; "
        f"the {word} of the two {mean:.2f} [{low:.2f}, {high:.2f}] in the geometric mean, from "
        f"{min(decisive):.2f} to {max(decisive):.2f} over seeds.",
        rule=rule(
            f"the mean of log(R_med / {HIGH:g}) of the smaller layer's"
            if uneven
            else f"the mean of log({LOW:g} / R_med) of the larger layer's",
            f"{MARGIN:g}",
        ),
        literature="Jiang et al., abstract: adaptive methods bias the trajectory towards regions "
        "where R_med is small, SGD towards those where it is large.",
    )


def _figure(s: Settings, rows: Sequence[Row]) -> Figure:
    draw = lines("steps", "R_med", ylim=(0, None), markers=True)
    panels = [Panel(f"{layer} layer", draw, curves(rows, "step", layer)) for layer in LAYERS]
    return Figure(
        name="r_med",
        title="Largest over median entry of the Hessian's diagonal",
        alt="R_med of each of two linear layers against steps, mean and deviation over seeds, for "
        "gradient descent, SGD with momentum, Adam and RMSProp.",
        panels=panels,
    )


EXPERIMENT = experiment(
    "local_geometry", Settings(), measure, analyse,
    quick={"seeds": (0, 1, 2, 3), "points": 2},
    tiny={"size": 16, "examples": 64, "seeds": (0, 1, 2), "points": 2},
    title="Local geometry under adaptive optimizers",
    question="Do adaptive optimizers reach points where the diagonal of the Hessian is more even "
    "than at the points that SGD reaches?",
    setup="Two linear layers, 64 inputs, 64 hidden units, 1 output, weights of deviation 1e-3, "
    "256 standard normal inputs, targets of a linear map with entries of random sign and size 0.5 "
    "to 1.5 over 8. Full batch, 800 steps, constant learning rates: 0.05, with momentum 0.01, "
    "Adam and RMSProp 2e-4. R_med is the largest entry of the exact diagonal divided by the "
    "median entry, by layer; absolute values and one value per layer are our interpretation of "
    "the paper. Learning rates and the bounds 8 and 2 were chosen in a first trial with two "
    "seeds. The optimizers end at different losses, which the table shows.",
    reference="Jiang, Malik & Li, How Does Adaptive Optimization Impact Local Neural Network "
    "Geometry?, NeurIPS 2023, arXiv 2211.02254",
)  # fmt: skip
