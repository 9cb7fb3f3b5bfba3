"""Measure stream and gradient of Transformers before the first step, by normalisation."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.diagnostics import layer_gradient_norms
from adamw_jax.lab.experiments.parts import column, columns, curves, experiment, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import paired, spread
from adamw_jax.lab.train import Runner
from adamw_jax.lab.transformer import POST, PRE, Shape, Transformer

POWER = 0.1
SIZE = 0.07


@dataclasses.dataclass(frozen=True)
class Settings:
    """Transformers of several depths, all of whose matrices are square.

    Attributes:
      depths: numbers of layers.
      width: width of every matrix.
      batch: number of sequences of normal vectors.
      length: vectors in a sequence.
      vocabulary: number of outputs.
      seeds: seeds of weights, vectors and targets.
    """

    depths: tuple[int, ...] = (4, 8, 16, 32)
    width: int = 128
    batch: int = 8
    length: int = 16
    vocabulary: int = 50
    seeds: tuple[int, ...] = tuple(range(24))


def start(s: Settings, placement: str, depth: int) -> Rows:
    """Return size of the stream and gradient of the second feed-forward matrix, by layer."""
    shape = Shape(placement, depth, s.width, s.width, 1, s.vocabulary, s.length, uniform=True)
    network = Transformer(shape)

    @jax.jit
    def look(params: Any, x: jax.Array, tokens: jax.Array) -> Any:
        def loss_of(params: Any) -> Any:
            logits, sums = network.run(params, x)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()
            return loss, jnp.mean(sums**2, axis=(1, 2, 3))

        gradient, squares = jax.grad(loss_of, has_aux=True)(params)
        kernels = gradient["layers"]["fall"]["kernel"]
        norms = layer_gradient_norms([kernels[i] for i in range(depth)])
        return squares, jnp.stack(list(norms.values()))

    rows: Rows = []
    for seed in s.seeds:
        rng = np.random.default_rng([seed, depth, 1])
        x = rng.standard_normal((s.batch, s.length, s.width)).astype(np.float32)
        tokens = rng.integers(0, s.vocabulary, x.shape[:2]).astype(np.int32)
        squares, norms = (np.asarray(v) for v in look(network.init(seed), x, tokens))
        rows += [
            {"series": placement, "depth": depth, "seed": seed, "layer": i + 1,
             "square": float(squares[i]), "norm": float(norms[i])}
            for i in range(depth)
        ]  # fmt: skip
    return rows


def measure(s: Settings, runner: Runner) -> Rows:
    """Measure all depths, with two programs at once if there are cores."""
    runner.progress.begin("Transformers at the start", 2 * len(s.depths))
    rows: Rows = []
    with concurrent.futures.ThreadPoolExecutor(runner.workers) as pool:
        jobs = [pool.submit(start, s, name, depth) for name in (POST, PRE) for depth in s.depths]
        for job in jobs:
            rows += job.result()
            runner.progress.advance(1, f"{rows[-1]['series']}, {rows[-1]['depth']} layers")
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge powers of the depth, and sizes of the stream."""
    table = []
    for placement in (POST, PRE):
        for depth in s.depths:
            mine = where(rows, series=placement, depth=depth)
            norms = spread(column(where(mine, layer=depth), "norm"))
            squares = [spread(column(where(mine, layer=i), "square")).mean for i in (1, depth)]
            table.append(
                {"series": placement, "depth": depth, "norm": norms.mean, "sd": norms.sd,
                 "scaled": norms.mean * math.sqrt(depth), "first": squares[0], "last": squares[1]}
            )  # fmt: skip
    shown = columns(
        "series: placement | depth: layers {:d} | norm: gradient of the last layer {:.3f} | sd: "
        "± sd {:.3f} | scaled: times root of layers {:.3f} | first: |x|^2 / d, first layer "
        "{:.2f} | last: last layer {:.2f}"
    )
    verdicts = [f(s, rows, placement) for f in (_power, _size) for placement in (PRE, POST)]
    table = Table("start", "Before the first step", shown, table)
    return Result(verdicts, [table], [_figure(s, rows)], [_limit(s, rows)])


def _limit(s: Settings, rows: Sequence[Row]) -> str:
    """Describe what the measured streams predict for these depths."""
    squares = [
        spread(column(where(rows, series=PRE, depth=depth, layer=depth), "square")).mean
        for depth in s.depths
    ]
    power = -0.5 * np.polyfit(np.log(s.depths), np.log(squares), 1)[0]
    return (
        "In inverse proportion to the size of the measured last stream the gradient would go with "
        f"a power of {power:.3f} of these depths."
    )


def _power(s: Settings, rows: Sequence[Row], placement: str) -> Verdict:
    """Judge the power of the depth to which the last layer's gradient is proportional, by seed."""
    norms = [
        column(where(rows, series=placement, depth=depth, layer=depth), "norm")
        for depth in s.depths
    ]
    slopes = np.polyfit(np.log(s.depths), np.log(norms), 1)[0]
    found = paired(list(slopes), [0.0] * len(slopes))
    falls = placement == PRE
    shown = max(abs(found.low + 0.5), abs(found.high + 0.5)) <= POWER if falls else (
        found.low >= -POWER)  # fmt: skip
    return Verdict(
        claim="The gradient of Pre-LN's last layer falls with the root of the depth"
        if falls
        else "The gradient of Post-LN's last layer does not fall with the depth",
        task=f"uniform attention, width {s.width}",
        word="shown" if shown else "contradicted",
        evidence=f"Power of the depth {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}].",
        rule="95 % interval of the fitted power "
        + (f"within {POWER:g} of -1/2" if falls else f"above -{POWER:g}")
        + ": shown; else contradicted.",
        literature="Xiong et al., theorem 1.",
    )


def _size(s: Settings, rows: Sequence[Row], placement: str) -> Verdict:
    """Compare mean squares over seeds at every layer of every depth with the lemma."""
    off = []
    for depth in s.depths:
        for layer in range(1, depth + 1):
            mine = where(rows, series=placement, depth=depth, layer=layer)
            square = spread(column(mine, "square")).mean
            if placement == PRE:
                low, high = 1 + layer / 2, 1 + 3 * layer / 2
            else:
                low, high = 1.5 * (1 - SIZE), 1.5 * (1 + SIZE)
            off.append(max(low / square, square / high))
    law = "between 1 + l/2 and 1 + 3 l/2" if placement == PRE else f"within {SIZE:.0%} of 3/2"
    return Verdict(
        claim=f"{placement}'s stream has the size that the paper says",
        task=f"uniform attention, width {s.width}",
        word="shown" if max(off) <= 1 else "contradicted",
        evidence=f"|x|^2 / d {law} in {sum(x <= 1 for x in off)} of {len(off)} layers; the worst "
        f"is at {max(off):.3f} of a bound.",
        rule=f"Mean over seeds of |x|^2 / d at layer l {law}, at every layer of every depth: "
        "shown; else contradicted.",
        literature="Xiong et al., lemma 2.",
    )


def _figure(s: Settings, rows: Sequence[Row]) -> Figure:
    ends, depth = [row for row in rows if row["layer"] == row["depth"]], s.depths[-1]
    gradient = curves(ends, "depth", "norm", (POST, PRE))
    square = curves(where(rows, depth=depth), "layer", "square", (POST, PRE))
    draw = lines("layers", "norm", xscale="log", yscale="log", spread="bars", markers=True,
                 ticks_at_data=True)  # fmt: skip
    return Figure(
        name="start",
        title="Before the first step",
        alt="Left: gradient of the last layer's second feed-forward matrix against the number of "
        "layers, rising a little for Post-LN, falling for Pre-LN. Right: mean square of the stream "
        "against the layer, level at 1.5 for Post-LN, growing for Pre-LN.",
        panels=[
            Panel("gradient of the last layer", draw, gradient),
            Panel(f"{depth} layers", lines("layer", "|x|^2 / d"), square),
        ],
    )


EXPERIMENT = experiment(
    "layer_norm_scaling", Settings(), measure, analyse,
    quick={"depths": (4, 16), "seeds": (0, 1, 2, 3)},
    tiny={"depths": (1, 2), "width": 32, "seeds": (0, 1)},
    title="Pre-LN and Post-LN Transformers at the start",
    question="Why does a Transformer with normalisation after the residual sum need a warm-up? "
    "How large are its gradients before the first step, and how do they depend on the depth?",
    setup="Single-head uniform attention, square matrices of width 128 with Xavier's normal "
    "weights, 8 sequences of 16 normal vectors, random targets out of 50. The gradient is that of "
    "the second feed-forward matrix of the last layer, and the stream is the sum after it. Sizes "
    "and tolerances were chosen in a first trial, whose 4 and then 12 seeds left too much noise.",
    reference="Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020, "
    "arXiv 2002.04745",
)  # fmt: skip
