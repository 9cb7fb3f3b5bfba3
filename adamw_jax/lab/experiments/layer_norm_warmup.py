"""Train Transformers at the full learning rate from the first step, and with a warm-up."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import adam
from adamw_jax.lab.experiments.common import LOSS_MARGIN, interval, mean_sd
from adamw_jax.lab.experiments.parts import (
    begun,
    column,
    columns,
    curves,
    experiment,
    level,
    losses,
    stacked,
    steps,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.train import Runner, finite
from adamw_jax.lab.transformer import POST, PRE, Shape, Transformer

WARM = "Post-LN, warm-up"
ARMS = (POST, PRE, WARM)
LAST = 10


@dataclasses.dataclass(frozen=True)
class Settings:
    """A causal Transformer on sequences whose second half repeats the first.

    Attributes:
      rates: learning rates of Adam.
      warmup: steps of linear warm-up, in runs with one.
      layers: number of layers.
      width: width of the stream; feed-forward layers have four times as many units.
      heads: attention heads.
      tokens: number of different tokens.
      length: tokens in a sequence.
      sequences: per step, always new ones.
      steps: steps of training.
      points: points of the curves.
      seeds: seeds of weights and sequences.
    """

    rates: tuple[float, ...] = (1e-2, 3e-3)
    warmup: int = 100
    layers: int = 6
    width: int = 32
    heads: int = 4
    tokens: int = 16
    length: int = 16
    sequences: int = 32
    steps: int = 400
    points: int = 20
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    @property
    def floor(self) -> float:
        """Return the lowest expected loss; the first half of the tokens cannot be predicted."""
        return (self.length // 2 - 1) / (self.length - 1) * math.log(self.tokens)


def trainer(s: Settings, placement: str) -> Any:
    """Return (params, first halves of sequences, learning rates) -> losses, all with a run axis."""
    network = Transformer(
        Shape(placement, s.layers, s.width, 4 * s.width, s.heads, s.tokens, s.length)
    )

    def loss_of(params: Any, half: jax.Array) -> jax.Array:
        tokens = jnp.concatenate([half, half], axis=1)
        logits = network.apply(params, tokens)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def run(run: Any) -> jax.Array:
        params, halves, rates = run
        tx = adam(lambda count: rates[count], b1=0.9, b2=0.98)
        return steps(tx, begun(tx, params), losses(loss_of), halves)[1]

    return network, jax.jit(functools.partial(jax.lax.map, run))


def train(s: Settings, made: Any, arm: str) -> Rows:
    """Return losses of an arm at every learning rate with every seed."""
    network, every = made
    lanes = [(rate, seed) for rate in s.rates for seed in s.seeds]
    drawn = [network.init(seed) for _, seed in lanes]
    params = stacked(drawn)
    halves = [
        np.random.default_rng(seed).integers(0, s.tokens, (s.steps, s.sequences, s.length // 2))
        for _, seed in lanes
    ]
    ramp = np.minimum(1, np.arange(1, s.steps + 1) / (s.warmup if arm == WARM else 1))
    rates = jnp.asarray([rate * ramp for rate, _ in lanes], jnp.float32)
    found = np.asarray(every((params, jnp.asarray(np.stack(halves), jnp.int32), rates)))
    stride = s.steps // s.points
    return [
        {"series": arm, "rate": rate, "seed": seed, "step": end,
         "loss": finite(found[n, end - min(stride, LAST) : end].mean())}
        for n, (rate, seed) in enumerate(lanes)
        for end in range(stride, s.steps + 1, stride)
    ]  # fmt: skip


def measure(s: Settings, runner: Runner) -> Rows:
    """Train the arms, two at once if there are cores."""
    runner.progress.begin("Transformers", len(ARMS))
    rows: Rows = []
    made = {placement: trainer(s, placement) for placement in (PRE, POST)}
    with concurrent.futures.ThreadPoolExecutor(runner.workers) as pool:
        jobs = [pool.submit(train, s, made[PRE if arm == PRE else POST], arm) for arm in ARMS]
        for job in jobs:
            rows += job.result()
            runner.progress.advance(1, rows[-1]["series"])
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare the losses at the end."""
    ends, table = where(rows, step=s.steps), []
    for rate in s.rates:
        for arm in ARMS:
            end = spread(column(where(ends, series=arm, rate=rate), "loss"))
            table.append({"rate": rate, "series": arm, "loss": end.mean, "sd": end.sd})
    shown = columns(
        "rate: lr {:g} | series: placement | loss: training loss {:.3f} | sd: ± sd {:.3f}"
    )
    title = f"Loss at step {s.steps}; at best {s.floor:.2f}, by guessing {math.log(s.tokens):.2f}"
    return Result(
        [_verdict(s, ends, arm, rate) for arm in (PRE, WARM) for rate in s.rates],
        [Table("training", title, shown, table)],
        [_figure(s, rows)],
    )


def _verdict(s: Settings, ends: Sequence[Row], arm: str, rate: float) -> Verdict:
    mine, post = (column(where(ends, series=name, rate=rate), "loss") for name in (arm, POST))
    gap = paired(post, mine)
    return Verdict(
        claim="Without warm-up Pre-LN trains faster than Post-LN"
        if arm == PRE
        else f"Warm-up lowers the loss of Post-LN within {s.steps} steps",
        task=f"repeated sequences, lr {rate:g}",
        word=decide(gap, LOSS_MARGIN),
        evidence=f"{arm} {mean_sd(mine, 'train_loss')}, {POST} {mean_sd(post, 'train_loss')}; "
        f"reduction {interval(gap, 'train_loss')}.",
        rule=rule(f"the reduction in training loss at step {s.steps}", f"{LOSS_MARGIN:g}"),
        literature="Xiong et al.: without warm-up Post-LN fails with Adam on IWSLT14 (8 BLEU "
        "against 34), Pre-LN does not.",
    )


def _figure(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for rate in s.rates:
        drawn = curves(where(rows, rate=rate), "step", "loss", ARMS)
        drawn += level("best possible", (0, s.steps), s.floor)
        panels.append(Panel(f"lr {rate:g}", lines("steps", "training loss"), drawn))
    return Figure(
        name="loss",
        title="Training with Adam",
        alt="Training loss against steps for Post-LN and Pre-LN without warm-up and for Post-LN "
        "with it, a panel for each learning rate, mean and deviation over seeds.",
        panels=panels,
    )


EXPERIMENT = experiment(
    "layer_norm_warmup", Settings(), measure, analyse,
    quick={"rates": (0.01,), "seeds": (0, 1)},
    tiny={"rates": (0.01,), "warmup": 4, "layers": 2, "width": 8, "heads": 2, "sequences": 4,
        "steps": 8, "points": 2, "seeds": (0, 1)},
    title="Pre-LN and Post-LN Transformers without warm-up",
    question="A Transformer with normalisation after the residual sum needs a warm-up of the "
    "learning rate. Does it train without warm-up if the normalisation comes first?",
    setup="6 layers of width 32, 4 heads, causal, no biases; 16 tokens, the second half of which "
    "repeats the first; batches of 32 new sequences; Adam with b2 0.98, constant learning rates, "
    "or 100 steps of linear warm-up; 400 steps, so that 300 follow the warm-up, and losses over "
    "the last 10. First trials had biases and width 48; another ended at step 150, where Post-LN "
    "with warm-up was unfinished.",
    reference="Xiong et al., On Layer Normalization in the Transformer Architecture, ICML 2020, "
    "arXiv 2002.04745",
)  # fmt: skip
