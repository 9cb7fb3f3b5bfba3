"""Updates that are too large when the second moment is slow, and Adafactor's two cures."""

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

from adamw_jax import adafactor, scale_by_adafactor
from adamw_jax.lab.experiments.common import column, unique, where
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.models import mlp
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner, finite

SCHEDULE = "1 - t^-0.8"
UNCLIPPED = 1e30
TOLERANCE = 0.05
LOG_MARGIN, ACCURACY_MARGIN = 0.05, 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """Gradients of pure noise that grow at once, then training without warm-up.

    Attributes:
      b2: constant decay rates of the second moment; the last is the slow one that is judged.
      jump: the noise's deviation after ``before`` steps; 1 until then.
      before: steps until the jump.
      after: steps from then on.
      weights: gradients per step.
      task: what is trained on.
      learning_rates: constant, from the first step.
      steps: of training.
      batch_size: examples per step.
      seeds: of the noise, and of initial weights and order of examples.
      points: windows over which training's largest RMS is noted.
    """

    b2: tuple[float, ...] = (0.9, 0.99, 0.999)
    jump: float = 100.0
    before: int = 3000
    after: int = 600
    weights: int = 2048
    task: str = "mnist1d"
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    steps: int = 800
    batch_size: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    points: int = 40


def label(b2: float) -> str:
    """What a decay rate is called in tables and pictures; 0 is the schedule."""
    return f"b2 {b2:g}" if b2 else SCHEDULE


def exponent(b2: Any) -> Callable[[Any], jax.Array]:
    """Adafactor's ``decay_rate`` for which its second moment is Adam's, bias correction included.

    A corrected average with constant b2 weighs the newest square by
    ``(1 - b2) / (1 - b2^t) = t^-decay_rate``. A b2 of 0 stands for the paper's 0.8.
    """

    def rate(count: Any) -> jax.Array:
        t = jnp.asarray(count, jnp.float32) + jnp.float32(1)
        constant = jnp.where(b2 > 0, b2, jnp.float32(0.5))
        newest = (1 - constant) / -jnp.expm1(t * jnp.log(constant))
        later = -jnp.log(newest) / jnp.log(jnp.maximum(t, jnp.float32(2)))
        # Any power of the first step's 1 is 1.
        return jnp.where((t < 2) | (b2 == 0), jnp.float32(0.8), later)

    return rate


def newest_weight(b2: float, t: np.ndarray) -> np.ndarray:
    """Weight of the newest square in the second moment at step t."""
    return (1 - b2) / (1 - b2**t) if b2 else t**-0.8


def expected_rms(b2: float, sizes: np.ndarray) -> float:
    """Root of the mean of g^2 / V at the last step, for normal gradients of these deviations.

    V = sum of w_i g_i^2, and 1 / V is the integral of exp(-x V) over x, so that the mean over
    independent normal g_i is a product under one integral:

        E g_T^2 / V = integral of (1 + 2 c_T x)^-1 prod_i (1 + 2 c_i x)^(-1/2) dx

    with c_i = w_i sizes_i^2 / sizes_T^2.
    """
    weight = newest_weight(b2, np.arange(1, len(sizes) + 1, dtype=np.float64))
    left = np.append(np.cumprod((1 - weight)[:0:-1])[::-1], 1.0)  # of step i, at the last
    c = weight * left * (sizes / sizes[-1]) ** 2
    x = np.geomspace(1e-9, 1e13, 220)
    log = -0.5 * np.log1p(np.multiply.outer(x, 2 * c)).sum(axis=1)
    value = np.exp(log) / (1 + 2 * c[-1] * x)
    return float(np.sqrt(np.trapezoid(value * x, np.log(x))))


def rms(tree: Any) -> jax.Array:
    """The largest root mean square of a leaf."""
    return jnp.stack([jnp.sqrt(jnp.mean(jnp.square(x))) for x in jax.tree.leaves(tree)]).max()


def arguments(b2: Any, threshold: Any) -> dict[str, Any]:
    """Adafactor with whole second moments and steps of absolute size."""
    return {
        "decay_rate": exponent(b2),
        "clipping_threshold": threshold,
        "multiply_by_parameter_scale": False,
        "factored": False,
    }


def measure(s: Settings, runner: Runner) -> Rows:
    """Watches pure noise that grows, then trains."""
    lanes = 4 * len(s.learning_rates)
    runner.progress.begin("too large updates", lanes + 1)
    rows = _jump(s)
    runner.progress.advance(1, "gradients that grow")
    rows += _train(s, runner)
    runner.progress.end()
    return rows


def _sizes(s: Settings) -> np.ndarray:
    return np.repeat([1.0, s.jump], [s.before, s.after])


def _noted(s: Settings) -> np.ndarray:
    """Steps after the jump that are written down."""
    return np.unique(np.geomspace(1, s.after, 30).astype(int))


def _jump(s: Settings) -> Rows:
    """RMS of the direction, unclipped and clipped, around the jump."""
    cases = [(b2, seed) for b2 in (*s.b2, 0.0) for seed in s.seeds]

    @jax.jit
    @jax.vmap
    def watch(b2: jax.Array, key: jax.Array) -> Any:
        free: Any = scale_by_adafactor(**arguments(b2, None))
        clipped: Any = scale_by_adafactor(**arguments(b2, 1.0))
        zeros = jnp.zeros(s.weights, jnp.float32)

        def step(carry: Any, size: jax.Array) -> Any:
            key, *states = carry
            key, now = jax.random.split(key)
            g = size * jax.random.normal(now, (s.weights,), jnp.float32)
            seen = []
            for i, tx in enumerate((free, clipped)):
                u, states[i] = tx.update(g, states[i], zeros)
                seen.append(rms(u))
            return (key, *states), jnp.stack(seen)

        carry = (key, free.init(zeros), clipped.init(zeros))
        return jax.lax.scan(step, carry, jnp.asarray(_sizes(s), jnp.float32))[1]

    b2 = jnp.asarray([b2 for b2, _ in cases], jnp.float32)
    seen = np.asarray(watch(b2, jnp.stack([jax.random.key(seed) for _, seed in cases])))
    return [
        {"part": "jump", "decay": label(b2), "seed": seed, "step": int(n),
         "rms": float(mine[s.before + n - 1, 0]), "clipped": float(mine[s.before + n - 1, 1])}
        for (b2, seed), mine in zip(cases, seen, strict=True)
        for n in _noted(s)
    ]  # fmt: skip


def _train(s: Settings, runner: Runner) -> Rows:
    """Trains every learning rate with every seed; notes the RMS before clipping."""
    task = get_task(s.task)
    network = mlp(task.features, task.classes)
    per_epoch = len(task.train) // s.batch_size

    def order(seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 7])
        drawn = [rng.permutation(len(task.train)) for _ in range(-(-s.steps // per_epoch))]
        cut = [p[: per_epoch * s.batch_size].reshape(per_epoch, -1) for p in drawn]
        return np.concatenate(cut)[: s.steps].astype(np.int32)

    def loss_of(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        logits = network.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def run(numbers: jax.Array, params: Any, order: jax.Array, data: Any) -> Any:
        (inputs, labels), *held_out = data
        b2, threshold, rate = numbers
        free: Any = scale_by_adafactor(**arguments(b2, None))
        tx: Any = adafactor(lambda count: rate, **arguments(b2, threshold))

        def step(carry: Any, batch: jax.Array) -> Any:
            params, state, watched = carry
            gradient = jax.grad(loss_of)(params, inputs[batch], labels[batch])
            direction, watched = free.update(gradient, watched, params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, watched), rms(direction)

        carry = (params, tx.init(params), free.init(params))
        carry, seen = jax.lax.scan(step, carry, order)
        metrics = [loss_of(carry[0], inputs, labels)]
        for x, y in held_out:
            right = (network.apply(carry[0], x).argmax(-1).astype(y.dtype) == y).astype(jnp.float32)
            metrics += [loss_of(carry[0], x, y), right.mean()]
        return jnp.stack(metrics), seen.reshape(s.points, -1).max(axis=1)

    splits = (task.train, task.validation, task.test)
    data = [(jnp.asarray(split.inputs), jnp.asarray(split.labels)) for split in splits]
    params = [network.init(seed) for seed in s.seeds]
    stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *params)
    orders = jnp.asarray(np.stack([order(seed) for seed in s.seeds]))
    seeds = jax.jit(jax.vmap(run, in_axes=(None, 0, 0, None)))
    names = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    rows: Rows = []
    for b2, threshold, rate in itertools.product(
        (s.b2[-1], 0.0), (UNCLIPPED, 1.0), s.learning_rates
    ):
        numbers = jnp.asarray([b2, threshold, rate], jnp.float32)
        metrics, seen = (np.asarray(x) for x in seeds(numbers, stacked, orders, data))
        rows += [
            {"part": "training", "decay": label(b2), "clipping": threshold < UNCLIPPED,
             "learning_rate": rate, "seed": seed, "peak": finite(seen[i].max()),
             "path": [finite(x) for x in seen[i]],
             **{k: finite(v) for k, v in zip(names, metrics[i], strict=True)}}
            for i, seed in enumerate(s.seeds)
        ]  # fmt: skip
        runner.progress.advance(1, f"{label(b2)}, lr {rate:g}")
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compares the jump with theory, then judges the two cures in training."""
    jump, training = where(rows, part="jump"), where(rows, part="training")
    slow = label(s.b2[-1])
    verdicts = [
        _too_large(s, jump),
        _slower_is_larger(s, training, slow),
        *_clipping(s, training, slow),
    ]
    out = []
    for decay in unique(training, "decay"):
        for clipping in (False, True):
            for rate in s.learning_rates:
                mine = where(training, decay=decay, clipping=clipping, learning_rate=rate)
                accuracy = spread(column(mine, "test_accuracy"))
                out.append({
                    "decay": decay, "clipping": "d = 1" if clipping else "none", "rate": rate,
                    "peak": spread(column(mine, "peak")).mean,
                    "train_loss": spread(column(mine, "train_loss")).mean,
                    "validation_loss": spread(column(mine, "validation_loss")).mean,
                    "test_accuracy": accuracy.mean, "sd": accuracy.sd,
                })  # fmt: skip
    columns = [
        Column("decay", "second moment"),
        Column("clipping", "clipping"),
        Column("rate", "lr", "{:g}"),
        Column("peak", "largest RMS before clipping", "{:.2f}"),
        Column("train_loss", "training loss", "{:.3f}"),
        Column("validation_loss", "validation loss", "{:.3f}"),
        Column("test_accuracy", "test accuracy", "{:.1%}"),
        Column("sd", "± sd", "{:.1%}"),
    ]
    table = Table("settings", "Every setting", columns, out)
    late = 1 / np.sqrt(newest_weight(0.0, np.array([s.steps, s.before, 100_000.0])))
    remark = (
        "A rising decay rate helps early steps only. After a large jump the update can be "
        f"{late[0]:.0f} times the usual at step {s.steps:,} under {SCHEDULE}, {late[1]:.0f} times "
        f"at {s.before:,} and {late[2]:.0f} times at 100,000; with b2 {s.b2[-1]:g}, "
        f"{1 / np.sqrt(1 - s.b2[-1]):.0f} times at any late step. Clipping bounds all of them."
    )
    return Result(verdicts, [table], [_jump_figure(s, jump), _training_figure(s, training)],
                  [remark])  # fmt: skip


@functools.cache
def _expected(s: Settings, decay: str, step: int) -> float:
    """Theory, so many steps after the jump."""
    (b2,) = (b for b in (*s.b2, 0.0) if label(b) == decay)
    return expected_rms(b2, _sizes(s)[: s.before + step])


def _means(rows: Sequence[Row], decay: str, key: str) -> tuple[list[int], list[float]]:
    mine = where(rows, decay=decay)
    steps = unique(mine, "step")
    return steps, [spread(column(where(mine, step=n), key)).mean for n in steps]


def _too_large(s: Settings, rows: Sequence[Row]) -> Verdict:
    peaks, off = {}, 0.0
    for decay in unique(rows, "decay"):
        steps, means = _means(rows, decay, "rms")
        expected = np.array([_expected(s, decay, n) for n in steps])
        off = max(off, float(np.max(np.abs(np.array(means) / expected - 1))))
        peaks[decay] = max(means)
    clipped = max(row["clipped"] for row in rows)
    constant = [peaks[label(b)] for b in s.b2]
    ok = off <= TOLERANCE and constant == sorted(constant) and constant[-1] > 2 and clipped <= 1.001
    return Verdict(
        claim="Updates become too large when gradients grow and the second moment decays slowly; "
        "clipping bounds them",
        task="pure noise that grows",
        word="shown" if ok else "not shown",
        evidence="Largest RMS, usually 1: "
        + ", ".join(f"{peak:.1f} with {decay}" for decay, peak in peaks.items())
        + f"; clipped {clipped:.2f}; largest distance to theory {100 * off:.1f} %.",
        rule=f"All within {100 * TOLERANCE:g} % of theory, the peak rising with b2 and above 2 for "
        f"{s.b2[-1]:g}, and at most 1.001 when clipped at 1: shown; else not shown.",
        literature="Shazeer & Stern: yes (larger than desired if the decay is too slow).",
    )


def _slower_is_larger(s: Settings, rows: Sequence[Row], slow: str) -> Verdict:
    def peaks(decay: str) -> list[float]:
        """Mean over learning rates of the log of the peak, per seed."""
        mine = where(rows, decay=decay, clipping=False)
        table = [column(where(mine, learning_rate=r), "peak") for r in s.learning_rates]
        return [float(x) for x in np.log(table).mean(axis=0)]

    difference = paired(peaks(slow), peaks(SCHEDULE))
    ratio = [float(np.exp(x)) for x in (difference.mean, difference.low, difference.high)]
    return Verdict(
        claim=f"Without warm-up, {slow} makes larger updates than the rising {SCHEDULE}",
        task=get_task(s.task).title,
        word=decide(difference, LOG_MARGIN),
        evidence=f"Largest RMS of a run: {np.exp(spread(peaks(slow)).mean):.1f} against "
        f"{np.exp(spread(peaks(SCHEDULE)).mean):.1f}, geometric means over learning rates; ratio "
        f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}].",
        rule=rule("the log ratio of the largest RMS, mean over learning rates", f"{LOG_MARGIN:g}"),
        literature="Shazeer & Stern: a rising decay rate is one of two remedies.",
    )


def _clipping(s: Settings, rows: Sequence[Row], slow: str) -> list[Verdict]:
    """What clipping brings: over all learning rates, and at the best one."""
    table: dict[bool, list[list[float]]] = {}
    best: dict[bool, list[float]] = {}
    for clipping in (True, False):
        mine = where(rows, decay=slow, clipping=clipping)
        per_rate = [where(mine, learning_rate=r) for r in s.learning_rates]
        table[clipping] = [column(x, "test_accuracy") for x in per_rate]
        chosen = min(per_rate, key=lambda x: spread(column(x, "validation_loss")).mean)
        best[clipping] = column(chosen, "test_accuracy")
    over_rates = {k: [float(x) for x in np.mean(v, axis=0)] for k, v in table.items()}
    margin = f"{100 * ACCURACY_MARGIN:g} point"
    verdicts = []
    for values, claim, what in (
        (over_rates, "is more accurate over a range of learning rates",
         "the difference in test accuracy, mean over all learning rates"),
        (best, "is more accurate when tuned",
         "the difference in test accuracy, each at its lowest validation loss"),
    ):  # fmt: skip
        difference = paired(values[True], values[False])
        d = difference.scaled(100)
        mean = {k: 100 * spread(v).mean for k, v in values.items()}
        verdicts.append(
            Verdict(
                claim=f"With {slow} and no warm-up, training with updates clipped at 1 {claim}",
                task=get_task(s.task).title,
                word=decide(difference, ACCURACY_MARGIN),
                evidence=f"{mean[True]:.1f} % clipped, {mean[False]:.1f} % not; difference "
                f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}].",
                rule=rule(what, margin),
                literature="Shazeer & Stern: update clipping is one of two remedies.",
            )
        )
    return verdicts


def _jump_figure(s: Settings, rows: Sequence[Row]) -> Figure:
    out: list[Row] = []
    decays = unique(rows, "decay")
    for decay in decays:
        steps, means = _means(rows, decay, "rms")
        out += [
            {"series": decay, "kind": "measured", "x": x, "y": y}
            for x, y in zip(steps, means, strict=True)
        ]
        out += [
            {"series": decay, "kind": "theory", "x": n, "y": _expected(s, decay, n)} for n in steps
        ]
    peaks = ", ".join(f"{max(_means(rows, d, 'rms')[1]):.1f} with {d}" for d in decays)
    return Figure(
        name="jump",
        title=f"After the gradient has grown {s.jump:g} times, at step {s.before:,}",
        alt="Root mean square of Adafactor's unclipped update against steps after a jump of the "
        f"gradient's size; it starts at {peaks} and falls back to 1. Pale broad lines are "
        "measured, thin ones analytic.",
        panels=[
            Panel(
                "usual size: 1",
                theory(
                    "steps after the jump", "RMS of the update, unclipped", xscale="log",
                    dense=True, legend="upper right",
                ),
                out,
            )
        ],
        columns=1,
        panel_size=(7.0, 3.9),
    )  # fmt: skip


def _training_figure(s: Settings, rows: Sequence[Row]) -> Figure:
    top = max(s.learning_rates)
    paths: list[Row] = []
    accuracy: list[Row] = []
    width = s.steps // s.points
    for decay in unique(rows, "decay"):
        mine = where(rows, decay=decay, clipping=False, learning_rate=top)
        seen = np.array([[np.nan if x is None else x for x in row["path"]] for row in mine])
        paths += [
            {"series": decay, "x": (i + 1) * width, "y": float(seen[:, i].mean()),
             "low": float(seen[:, i].min()), "high": float(seen[:, i].max())}
            for i in range(s.points)
            if np.isfinite(seen[:, i]).all()
        ]  # fmt: skip
        for clipping in (False, True):
            for rate in s.learning_rates:
                same = where(rows, decay=decay, clipping=clipping, learning_rate=rate)
                value = spread(column(same, "test_accuracy"))
                name = f"{decay}, {'clipped' if clipping else 'unclipped'}"
                accuracy.append(
                    {"series": name, "x": rate, "y": value.mean, "low": value.mean - value.sd,
                     "high": value.mean + value.sd}
                )  # fmt: skip
    return Figure(
        name="training",
        title=f"Training on {get_task(s.task).title} without warm-up",
        alt="Left, the largest root mean square of an unclipped update in each stretch of "
        f"training at learning rate {top:g}, for a constant and for a rising decay rate, mean and "
        "range over seeds. Right, test accuracy against learning rate for both, with and without "
        "clipping, mean and standard deviation over seeds.",
        panels=[
            Panel(f"lr {top:g}, unclipped", lines("steps", "largest RMS of the update"), paths),
            Panel(
                "at the end",
                lines(
                    "learning rate", "test accuracy", xscale="log", percent=True, spread="bars",
                    markers=True, ticks_at_data=True,
                ),
                accuracy,
            ),
        ],
    )  # fmt: skip


EXPERIMENT = register(
    Experiment(
        name="adafactor",
        title="Adafactor: updates that are too large",
        question="A second moment that averages over many steps is out of date when gradients "
        "grow. How large do updates become, and do clipping them or a rising decay rate help?",
        setup="First gradients of pure noise that grow at once: the lines are exact "
        "means for normal noise under the published weights; nothing is fitted. Then training from "
        "the first step at a constant learning rate, without momentum, parameter scale or "
        "factoring, so that only the decay rate (bias corrected, as in Adam, where it is constant) "
        "and the clipping differ. RMS means the largest of a leaf, before clipping. Changed after "
        "a first look, the rules not: more noise weights, and the exact mean in place of the "
        "ratio of means as theory.",
        presets={
            "demo": Settings(),
            "quick": Settings(steps=200, learning_rates=(0.003, 0.03)),
            "tiny": Settings(
                b2=(0.9, 0.99), before=300, after=100, task="digits",
                learning_rates=(0.01, 0.1), steps=20, points=4, seeds=(0, 1),
            ),
        },
        measure=measure,
        analyse=analyse,
        reference="Shazeer & Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, "
        "ICML 2018, arXiv 1804.04235",
    )
)  # fmt: skip
