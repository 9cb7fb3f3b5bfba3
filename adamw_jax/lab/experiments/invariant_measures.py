"""Measure losses that settle although the weights do not, in two examples with known numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import sgdw
from adamw_jax.curvature import hvp
from adamw_jax.diagnostics import RunningMeasure
from adamw_jax.lab.experiments.parts import column, columns, experiment, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import spread
from adamw_jax.lab.train import Runner

SINES, QUADRATIC = "100 sin a sin b", "noisy quadratic"
SETTLED, AFOOT = 1e-2, 1.0
STILL = 0.05
TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Settings:
    """Gradient descent on 100 sin a sin b, and SGD on a quadratic with noise of deviation 1.

    Attributes:
      rates: of gradient descent, one below and one above 2 / 100 (100: curvature of the minimum).
      start: a and b, near which each seed draws its start.
      jitter: deviation of the starts.
      steps: steps of gradient descent.
      window: steps at the end; the time averages of its halves are compared.
      shown: steps between two points of the picture, odd because of cycles.
      sgd_rates: learning rates on the quadratic.
      curvatures: curvatures of the quadratic.
      sgd_steps: steps on the quadratic; the later half counts.
      copies: runs per seed on the quadratic.
      seeds: seeds of starts and noise.
    """

    rates: tuple[float, float] = (0.01, 0.04)
    start: tuple[float, float] = (-0.5, 0.5)
    jitter: float = 0.1
    steps: int = 2000
    window: int = 1000
    shown: int = 13
    sgd_rates: tuple[float, ...] = (0.02, 0.1, 0.2)
    curvatures: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    sgd_steps: int = 4000
    copies: int = 64
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)


def sines(place: jax.Array) -> jax.Array:
    """Return 100 sin a sin b, whose lowest value is -100."""
    return 100.0 * jnp.prod(jnp.sin(place))


def noisy_quadratic(place: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the sum of c x^2 / 2 plus a random linear term: gradient c x + noise."""
    curvatures, noise = batch
    return jnp.sum(0.5 * curvatures * place**2 + noise * place)


def descend(s: Settings, rate: Any, start: jax.Array) -> Any:
    """Return loss, its running mean and the norm of the gradient by step, and time averages."""
    tx = sgdw(rate, momentum=None, weight_decay=None)
    meter = RunningMeasure(window=s.window)

    def step(carry: Any, _: Any) -> Any:
        place, state, averages = carry
        loss, gradient = jax.value_and_grad(sines)(place)
        seen = {"loss": loss, "gradient": jnp.linalg.norm(gradient)}
        averages = meter.update(averages, seen)
        updates, state = tx.update(gradient, state, place)
        return (optax.apply_updates(place, updates), state, averages), (loss, averages.mean["loss"])

    begin = (start, tx.init(start), meter.init({"loss": 0.0, "gradient": 0.0}))
    (_, _, averages), path = jax.lax.scan(step, begin, length=s.steps)
    return meter.read(averages), path


def balance(s: Settings, rate: Any, noise: jax.Array) -> Any:
    """Return time averages of |grad|^2 and of (lr / 2) g^T H g over the later half."""
    tx = sgdw(rate, momentum=None, weight_decay=None)
    meter = RunningMeasure(window=s.sgd_steps // 2)
    curvatures = jnp.asarray(s.curvatures, jnp.float32)

    def step(carry: Any, noise: jax.Array) -> Any:
        place, state, averages = carry
        batch = curvatures, noise
        gradient = jax.grad(noisy_quadratic)(place, batch)
        bend = jnp.dot(gradient, hvp(noisy_quadratic, place, batch, gradient))
        seen = {"descent": jnp.sum((gradient - noise) ** 2), "bend": 0.5 * rate * bend}
        averages = meter.update(averages, seen)
        updates, state = tx.update(gradient, state, place)
        return (optax.apply_updates(place, updates), state, averages), None

    place = jnp.zeros_like(curvatures)
    begin = (place, tx.init(place), meter.init({"descent": 0.0, "bend": 0.0}))
    (_, _, averages), _ = jax.lax.scan(step, begin, noise)
    return {name: found.window_mean for name, found in meter.read(averages).items()}


def measure(s: Settings, runner: Runner) -> Rows:
    """Run both examples."""
    runner.progress.begin("two examples", s.steps + s.sgd_steps)
    draws = [np.random.default_rng(seed) for seed in s.seeds]
    starts = [s.start + s.jitter * rng.standard_normal(2) for rng in draws]
    every = jax.jit(jax.vmap(lambda r, x: descend(s, r, x), (None, 0)))
    rows: Rows = []
    for rate in s.rates:
        found, path = every(jnp.float32(rate), jnp.asarray(np.stack(starts), jnp.float32))
        losses, means = (np.asarray(x) for x in path)
        late = losses[:, -s.window :]
        for n, seed in enumerate(s.seeds):
            rows.append(
                {"kind": SINES, "rate": rate, "seed": seed,
                 "gradient": float(found["gradient"].window_mean[n]),
                 "loss": float(found["loss"].window_mean[n]),
                 "drift": float(found["loss"].drift[n]),
                 "low": float(late[n].min()), "high": float(late[n].max())}
            )  # fmt: skip
        rows += [
            {"kind": "path", "rate": rate, "step": i + 1, "loss": float(losses[0, i]),
             "mean": float(means[0, i])}
            for i in range(0, s.steps, s.shown)
        ]  # fmt: skip
    runner.progress.advance(s.steps, SINES)
    noise = np.stack(
        [rng.standard_normal((s.copies, s.sgd_steps, len(s.curvatures))) for rng in draws]
    )
    each = jax.vmap(jax.vmap(lambda r, z: balance(s, r, z), (None, 0)), (None, 0))
    for rate in s.sgd_rates:
        found = jax.jit(each)(jnp.float32(rate), jnp.asarray(noise, jnp.float32))
        means = {name: np.asarray(x).mean(axis=1) for name, x in found.items()}
        rows += [
            {"kind": QUADRATIC, "rate": rate, "seed": seed,
             "descent": float(means["descent"][n]), "bend": float(means["bend"][n])}
            for n, seed in enumerate(s.seeds)
        ]  # fmt: skip
    runner.progress.advance(s.sgd_steps, QUADRATIC)
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge whether the loss and the weights are constant, and what balances descent."""
    cycles, balances = [], []
    for rate in s.rates:
        mine = where(rows, kind=SINES, rate=rate)
        cycles.append(
            {"rate": rate, "gradient": spread(column(mine, "gradient")).mean,
             "loss": spread(column(mine, "loss")).mean,
             "drift": max(abs(x) for x in column(mine, "drift")),
             "low": min(column(mine, "low")), "high": max(column(mine, "high"))}
        )  # fmt: skip
    for rate in s.sgd_rates:
        mine = where(rows, kind=QUADRATIC, rate=rate)
        ratio = spread(list(np.divide(column(mine, "descent"), column(mine, "bend"))))
        balances.append(
            {"rate": rate, "descent": spread(column(mine, "descent")).mean,
             "bend": spread(column(mine, "bend")).mean, "ratio": ratio.mean, "sd": ratio.sd}
        )  # fmt: skip
    shown = columns(
        "rate: lr {:g} | gradient: mean |gradient| {:.3g} | loss: mean loss {:.2f} | drift: "
        "largest drift of the mean {:.2g} | low: lowest loss {:.2f} | high: highest loss {:.2f}"
    )
    identity = columns(
        "rate: lr {:g} | descent: E|grad|^2 {:.4f} | bend: lr/2 E[g^T H g] {:.4f} | ratio "
        "{:.4f} | sd: ± sd {:.4f}"
    )
    return Result(
        [
            _verdict(s, where(rows, kind=SINES, rate=s.rates[0]), below=True),
            _verdict(s, where(rows, kind=SINES, rate=s.rates[1]), below=False),
            _identity(balances),
        ],
        [
            Table("cycle", f"{SINES}, last {s.window} steps", shown, cycles),
            Table("balance", f"Balance of descent and bend, {QUADRATIC}", identity, balances),
        ],
        [_figure(s, rows)],
    )


def _verdict(s: Settings, rows: Sequence[Row], *, below: bool) -> Verdict:
    gradients, drifts = column(rows, "gradient"), np.abs(column(rows, "drift"))
    ranges = np.subtract(column(rows, "high"), column(rows, "low"))
    if below:
        shown = max(gradients) <= SETTLED
        law = f"Mean |gradient| over the last {s.window} steps at most {SETTLED:g}"
    else:
        shown = min(gradients) > AFOOT and bool(np.all(drifts <= STILL * ranges))
        law = (
            f"Mean |gradient| over the last {s.window} steps above {AFOOT:g}, and the mean loss of "
            f"their halves differing by at most {STILL:.0%} of the range of the loss"
        )
    return Verdict(
        claim="Below 2 / curvature gradient descent ends at a stationary point"
        if below
        else "Above 2 / curvature the mean loss settles while the gradient does not vanish",
        task=f"{SINES}, lr {rows[0]['rate']:g}",
        word="shown" if shown else "contradicted",
        evidence=f"Mean |gradient| from {min(gradients):.2g} to {max(gradients):.2g} over starts; "
        f"losses from {min(column(rows, 'low')):.1f} to {max(column(rows, 'high')):.1f}, their "
        f"mean drifting by {drifts.max():.2g} at most.",
        rule=f"{law}, from every start: shown; else contradicted.",
        literature="Zhang et al., figure of the same function: the iterates oscillate, their time "
        "average settles." * (not below),
    )


def _identity(balances: Sequence[Row]) -> Verdict:
    ratios = [row["ratio"] for row in balances]
    off = max(abs(ratio - 1) for ratio in ratios)
    return Verdict(
        claim="At rest E|grad|^2 = (lr / 2) E[g^T H g]",
        task=QUADRATIC,
        word="shown" if off <= TOLERANCE else "contradicted",
        evidence="Ratio of the sides "
        + ", ".join(f"{row['ratio']:.4f} at lr {row['rate']:g}" for row in balances)
        + f"; without the factor 1/2 it would be {min(ratios) / 2:.2f} to {max(ratios) / 2:.2f}.",
        rule=f"Mean ratio within {TOLERANCE:.0%} of 1 at every learning rate: shown; else not "
        "shown.",
        literature="Zhang et al., equation 10, which lacks the factor 1/2.",
    )


def _figure(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for rate in s.rates:
        mine = where(rows, kind="path", rate=rate)
        drawn: list[Row] = [
            {"series": name, "x": row["step"], "y": row[key]}
            for name, key in (("of the step", "loss"), ("mean so far", "mean"))
            for row in mine
        ]
        panels.append(Panel(f"lr {rate:g}", lines("steps", "loss"), drawn))
    return Figure(
        name="loss",
        title=f"{SINES}: the loss and its running mean",
        alt="Loss of single steps and its running mean against steps, of gradient descent below "
        "and above twice the inverse curvature: below, both go to -100; above, the loss keeps "
        "swinging while its mean settles.",
        panels=panels,
    )


EXPERIMENT = experiment(
    "invariant_measures", Settings(), measure, analyse,
    quick={"seeds": (0, 1, 2, 3)},
    tiny={"seeds": (0, 1), "sgd_rates": (0.1,), "sgd_steps": 2000, "copies": 128},
    title="Training that settles without converging",
    question="In long trainings at a constant learning rate the loss becomes constant although "
    "gradients do not vanish. How is that possible, and what balances the descent?",
    setup="Gradient descent on 100 sin a sin b from starts near (-0.5, 0.5), 2000 steps, with "
    "learning rates of 0.01 and 0.04 around 2 / 100; where the cycle leads depends on the start. "
    "Then SGD on a quadratic with curvatures 0.5 to 4 and additive normal noise, started at the "
    "minimum: 4000 steps, of which the later half counts, and 64 copies per seed. The equation of "
    "the paper lacks a factor 1/2, which is exact for a quadratic and is included here. Learning "
    "rates, start and lengths were chosen in a first trial.",
    reference="Zhang, Li, Sra & Jadbabaie, Neural Network Weights Do Not Converge to Stationary "
    "Points: An Invariant Measure Perspective, ICML 2022, arXiv 2110.06256",
)  # fmt: skip
