"""Measure PNM's noise against b0, in the direction and the iterates, and its accuracy."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.linalg import solve_discrete_lyapunov

from adamw_jax import pnm
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.parts import against, column, columns, experiment, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.experiments.studies import by_seed
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.recipes import Arm, catalogue, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.train import Runner

PNM, SGD = "PNM", "SGD with momentum"
TOLERANCE = 0.05
MARGIN = 0.05
PURE = 0.0
"""Curvature of the case without a minimum, in which the direction is watched."""


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Noise of artificial gradients, then training on noisy labels.

    Attributes:
      b0: weights of the negative momentum.
      compared: the two of them for which the noise of the iterates is compared.
      curvatures: lr / norm times the curvature of a quadratic: a soft and a stiff one.
      noise: deviation of the gradient; its mean is 1 without curvature.
      rates: learning rates of SGD with momentum; PNM has them times norm / (1 - b1), which makes
        the mean step the same.
      shrinks: lr times weight decay, the share of the weights removed in a step; per task.
    """

    b0: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    compared: tuple[float, float] = (0.0, 1.0)
    curvatures: tuple[float, ...] = (0.01, 0.2)
    b1: float = 0.9
    noise: float = 3.0
    noise_seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    weights: int = 64
    steps: int = 4000
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    shrinks: tuple[tuple[float, ...], ...] = ((0.0003, 0.001, 0.003), (0.003, 0.01, 0.03))


def norm(b0: Any) -> Any:
    """Return sqrt((1 + b0)^2 + b0^2), by which PNM divides."""
    return np.sqrt((1 + b0) ** 2 + b0**2)


def direction_noise(b0: Any, b1: float, noise: float) -> Any:
    """Return deviation / mean of the direction, for gradients of mean 1."""
    return norm(b0) * noise * np.sqrt((1 - b1**2) / (1 + b1**2))


def iterate_noise(b0: float, b1: float, curvature: float, noise: float) -> float:
    """Return the deviation of theta on curvature/2 theta^2 under white noise, with lr = norm.

    It comes from the stationary covariance of (theta, m now, m before), a linear system.
    """
    keep, take = b1**2, 1 - b1**2
    now = np.array([take * curvature, 0.0, keep])  # the momentum written at this step
    theta = np.array([1.0, b0, 0.0]) - (1 + b0) * now
    step = np.stack([theta, now, [0.0, 1.0, 0.0]])
    kick = take * noise * np.array([-(1 + b0), 1.0, 0.0])
    return float(np.sqrt(solve_discrete_lyapunov(step, np.outer(kick, kick))[0, 0]))


def measure(s: Settings, runner: Runner) -> Rows:
    """Measure direction and iterates, then train."""
    cases = list(itertools.product((PURE, *s.curvatures), s.b0))
    runner.progress.begin("noise", s.steps * len(s.noise_seeds))
    rows: Rows = []

    @jax.jit
    def watch(noise: jax.Array) -> Any:
        def case(curvature: jax.Array, b0: jax.Array, rate: jax.Array) -> Any:
            tx: Any = pnm(lambda count: rate, b1=s.b1, b0=b0)
            pure = jnp.float32(curvature == 0)

            def step(carry: Any, noise: jax.Array) -> Any:
                theta, state = carry
                gradient = curvature * theta + pure + jnp.float32(s.noise) * noise
                updates, state = tx.update(gradient, state, theta)
                moved: Any = optax.apply_updates(theta, updates)
                seen = jnp.where(curvature == 0, -updates, moved)
                return (moved, state), seen

            theta = jnp.zeros(s.weights, jnp.float32)
            _, seen = jax.lax.scan(step, (theta, tx.init(theta)), noise)
            late = seen[s.steps // 4 :]
            return late.mean(), late.std()

        curvatures, b0 = jnp.asarray(cases, jnp.float32).T
        rates = jnp.asarray([norm(b) if c else 1.0 for c, b in cases], jnp.float32)
        return jax.vmap(case)(curvatures, b0, rates)

    for seed in s.noise_seeds:
        draws = np.random.default_rng(seed).standard_normal((s.steps, s.weights))
        means, deviations = watch(jnp.asarray(draws, jnp.float32))
        rows += [
            {"kind": "noise", "seed": seed, "curvature": curvature, "b0": b0,
             "mean": float(mean), "deviation": float(deviation)}
            for (curvature, b0), mean, deviation in zip(cases, means, deviations, strict=True)
        ]  # fmt: skip
        runner.progress.advance(s.steps, f"seed {seed}")
    runner.progress.end()
    trained = common.train_all(s, runner, lambda task: _arms(s, task))
    return rows + [{"kind": "training", **row} for row in trained]


def _arms(s: Settings, task: str) -> list[Arm]:
    sgd, out = catalogue("sgdw", label="sgd"), []
    for rate, shrink in itertools.product(s.rates, s.shrinks[s.tasks.index(task)]):
        numbers = settings(momentum=s.b1, weight_decay=shrink / rate)
        out.append(Arm(SGD, sgd, "cosine", rate, numbers))
        longer = round(rate * float(norm(1.0)) / (1 - s.b1), 4)
        numbers = settings(b1=s.b1, b0=1.0, weight_decay=shrink / longer)
        out.append(Arm(PNM, catalogue("pnm"), "cosine", longer, numbers))
    return out


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare noise with theory, and accuracies."""
    noise, lines = where(rows, kind="noise"), []
    for curvature, b0 in itertools.product((PURE, *s.curvatures), s.b0):
        mine = where(noise, curvature=curvature, b0=b0)
        deviation, mean = spread(column(mine, "deviation")), spread(column(mine, "mean"))
        if curvature == PURE:
            value, expected = deviation.mean / mean.mean, direction_noise(b0, s.b1, s.noise)
        else:
            value, expected = deviation.mean, iterate_noise(b0, s.b1, curvature, s.noise)
        lines.append(
            {"curvature": curvature, "b0": b0, "gain": norm(b0) * mean.mean, "noise": value,
             "theory": float(expected), "off": abs(value / expected - 1)}
        )  # fmt: skip
    verdicts = [*_direction(s, where(lines, curvature=PURE)), *_iterates(s, noise, lines)]
    training = where(rows, kind="training")
    for task in s.tasks:
        verdicts.append(
            common.compare_groups(
                training, task, PNM, SGD, "PNM reaches a higher accuracy than SGD with momentum",
                literature="The authors' README: CIFAR-10, ResNet18, test error 4.48 % against "
                "5.01 %.",
            )
        )  # fmt: skip
    shown = columns(
        "curvature: lr curvature / norm {:g} | b0 {:g} | noise {:.3f} | theory {:.3f} | off: "
        "off by {:.1%}"
    )
    tables = [
        Table("noise", "Noise over mean of the direction (curvature 0); else of theta", shown,
              lines),
        common.arms_table("settings", "Every setting", training, "weight_decay: decay {:.2g}"),
    ]  # fmt: skip
    remark = (
        "The direction's noise alternates: what one step overshoots the next takes back, since "
        "the same momentum enters with weight 1 + b0 and then with -b0. So hardly any of it stays "
        "in the iterates, until the step comes near the limit of stability, 2 / (1 + 2 b0)."
    )
    dots = by_seed(
        s, training, (SGD, PNM), {"test_accuracy": "validation_accuracy"}, (5.6, 3.4),
        name="seeds",
        title="SGD with momentum and PNM, seed by seed",
        alt="Dots for every seed under SGD with momentum and under PNM, joined by lines, with the "
        "means: test accuracy, each at its best setting.",
    )  # fmt: skip
    return Result(verdicts, tables, [_noise_figure(s, lines), dots], [remark])


def _direction(s: Settings, lines: Sequence[Row]) -> list[Verdict]:
    off, gains = max(row["off"] for row in lines), [row["gain"] for row in lines]
    grown = lines[-1]["noise"] / lines[0]["noise"]
    wide = norm(s.b0[-1]) / norm(s.b0[0])
    bias = max(abs(gain - 1) for gain in gains)
    return [
        Verdict(
            claim="b0 magnifies the noise of the direction against its mean by "
            "sqrt((1 + b0)^2 + b0^2)",
            task="noisy gradients of mean 1",
            word="shown" if off <= TOLERANCE < grown - 1 else "contradicted",
            evidence=f"From b0 {s.b0[0]:g} to {s.b0[-1]:g} noise over mean grows {grown:.2f}-fold, "
            f"in theory {wide:.2f}-fold; off by at most {off:.1%}.",
            rule=f"Within {TOLERANCE:.0%} of the formula at every b0, and growing by more: shown; "
            "else contradicted.",
            literature="Xie et al.: the norm by which they divide.",
        ),
        Verdict(
            claim="The expected direction stays that of the mean gradient",
            task="noisy gradients of mean 1",
            word="shown" if bias <= TOLERANCE else "contradicted",
            evidence=f"Mean direction times sqrt((1 + b0)^2 + b0^2) over mean gradient: "
            f"{min(gains):.3f} to {max(gains):.3f}.",
            rule=f"Within {TOLERANCE:.0%} of 1 at every b0: shown; else contradicted.",
            literature="Follows from the equations.",
        ),
    ]


def _iterates(s: Settings, noise: Sequence[Row], lines: Sequence[Row]) -> list[Verdict]:
    out, (few, more) = [], s.compared
    for curvature in s.curvatures:
        noisier, plain = (
            list(np.log(column(where(noise, curvature=curvature, b0=b0), "deviation")))
            for b0 in (more, few)
        )
        gain = paired(noisier, plain)
        ratio = [float(np.exp(v)) for v in (gain.mean, gain.low, gain.high)]
        expected = [iterate_noise(b0, s.b1, curvature, s.noise) for b0 in (more, few)]
        off = max(row["off"] for row in where(lines, curvature=curvature))
        out.append(
            Verdict(
                claim="At the same mean step, a larger b0 leaves the iterates noisier",
                task=f"quadratic, mean step {curvature:g} of the distance",
                word=decide(gain, MARGIN),
                evidence=f"Deviation at b0 {more:g} over that at {few:g}: {ratio[0]:.2f} "
                f"[{ratio[1]:.2f}, {ratio[2]:.2f}]; in theory {expected[0] / expected[1]:.2f}, the "
                f"direction's {norm(more) / norm(few):.2f}. Off theory by at most {off:.1%}.",
                rule=rule(f"log(deviation at b0 {more:g} / at {few:g})", f"{MARGIN:g}"),
                literature="Xie et al., by their title: PNM manipulates the gradient noise.",
            )
        )
    return out


def _noise_figure(s: Settings, lines: Sequence[Row]) -> Figure:
    fine = np.linspace(s.b0[0], s.b0[-1], 60)
    ends = where(lines, curvature=PURE)
    noise = [row["noise"] for row in ends]
    watched = against(PNM, s.b0, noise, fine, lambda b0: direction_noise(b0, s.b1, s.noise))
    moved: list[Row] = []
    for curvature in s.curvatures:
        zero = iterate_noise(s.b0[0], s.b1, curvature, s.noise)
        seen = [row["noise"] / zero for row in where(lines, curvature=curvature)]

        def law(b0: float, curvature: float = curvature, zero: float = zero) -> float:
            return iterate_noise(b0, s.b1, curvature, s.noise) / zero

        moved += against(f"mean step {curvature:g}", s.b0, seen, fine, law)
    return Figure(
        name="noise",
        title="PNM's noise against b0",
        alt="Left: noise over mean of the direction against b0, from "
        f"{ends[0]['noise']:.2f} to {ends[-1]['noise']:.2f}, on the analytic line. Right: the "
        "deviation of the iterates on a quadratic over that at the smallest b0, for a soft and a "
        "stiff curvature at the same mean step.",
        panels=[
            Panel("direction", theory("b0", "noise / mean", legend="upper left"), watched),
            Panel(
                "iterates on a quadratic",
                theory("b0", "deviation / that at b0 = 0", legend="upper left"),
                moved,
            ),
        ],
    )


EXPERIMENT = experiment(
    "pnm", Settings(), measure, analyse,
    quick=common.short(Settings(), "quick"),
    tiny={"tasks": ("digits",), "epochs": (2,), "seeds": (0, 1), "points": 4, "b0": (0.0, 1.0),
        "noise_seeds": (0, 1), "weights": 256, "steps": 1500, "curvatures": (0.05, 0.4),
        "rates": (0.1,), "shrinks": ((0.003,),)},
    title="PNM's noise and its use",
    question="PNM subtracts an older momentum with weight b0, to increase the gradient noise "
    "without a smaller batch. How much does the noise increase, and does it help?",
    setup="For the direction: gradients of mean 1, and pure noise. Then a quadratic, with lr = "
    "step sqrt((1 + b0)^2 + b0^2), so that the mean step is the same at every b0. The lines are "
    "exact: sqrt((1 + b0)^2 + b0^2) noise sqrt((1 - b1^2)/(1 + b1^2)), and the stationary "
    "covariance of the linear system. Training: cosine schedule, b0 1, momentum 0.9, the same "
    "mean steps and the same shrinkage per step for both; the grids were chosen after trials.",
    reference="Xie, Yuan, Zhu & Sugiyama, Positive-Negative Momentum, arXiv 2103.17182",
)  # fmt: skip
