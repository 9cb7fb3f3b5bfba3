"""Measure how much of a weight decays if its gradient is noise of several sizes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax import adam, adamw
from adamw_jax.lab.experiments.parts import (
    against,
    begun,
    column,
    columns,
    experiment,
    steps,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import spread
from adamw_jax.lab.theory import decoupled_decay_kept, l2_decay_kept
from adamw_jax.lab.train import Runner

DECOUPLED, L2 = "AdamW", "Adam + L2"
TOLERANCE = 0.03


@dataclasses.dataclass(frozen=True)
class Settings:
    """One weight vector per noise size, all in one run."""

    noises: tuple[float, ...] = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1.0, 3.0, 10.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    weights: int = 256
    steps: int = 4000
    learning_rate: float = 1e-3
    decay: float = 0.2


def measure(s: Settings, runner: Runner) -> Rows:
    """Run both forms of decay."""
    runner.progress.begin("pure noise", 2 * s.steps * len(s.seeds))
    rows: Rows = []
    sizes = jnp.asarray(s.noises, jnp.float32)[None, :, None]
    # All sizes share one stream of noise per seed.
    streams = [
        np.random.default_rng(seed).standard_normal((s.steps, 1, 1, s.weights)) for seed in s.seeds
    ]
    noise = jnp.asarray(np.concatenate(streams, axis=1), jnp.float32)
    for name, tx in (
        (DECOUPLED, adamw(s.learning_rate, weight_decay=s.decay)),
        (L2, adam(s.learning_rate, l2=s.decay)),
    ):

        @jax.jit
        def kept(noise: jax.Array, tx: Any = tx) -> jax.Array:
            weights = jnp.ones((len(s.seeds), len(s.noises), s.weights), jnp.float32)

            carry, _ = steps(tx, begun(tx, weights), lambda _, z: (sizes * z, None), noise)
            return carry[0].mean(axis=-1)

        left = np.asarray(kept(noise))
        runner.progress.advance(
            s.steps * len(s.seeds), f"{name}: keeps {left.mean():.2f} on average"
        )
        rows += [
            {"series": name, "seed": seed, "noise": noise, "kept": float(left[i, j])}
            for i, seed in enumerate(s.seeds)
            for j, noise in enumerate(s.noises)
        ]
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare with theory."""
    lines, worst = [], {}
    for name in (DECOUPLED, L2):
        off = []
        for noise in s.noises:
            value = spread(column(where(rows, series=name, noise=noise), "kept"))
            expected = _theory(s, name, noise)
            off.append(abs(value.mean - expected))
            lines.append({"series": name, "noise": noise, "kept": value.mean, "sd": value.sd,
                          "theory": expected})  # fmt: skip
        worst[name] = max(off)
    kept = {name: [r["kept"] for r in lines if r["series"] == name] for name in (DECOUPLED, L2)}
    steady = max(kept[DECOUPLED]) - min(kept[DECOUPLED])
    moving = max(kept[L2]) - min(kept[L2])
    ok = max(*worst.values(), steady) <= TOLERANCE < moving
    verdict = Verdict(
        claim="Decoupled decay shrinks every weight alike; L2 under Adam depends on the "
        "gradient's size",
        task="pure-noise gradients",
        word="shown" if ok else "contradicted",
        evidence=f"Kept: AdamW {min(kept[DECOUPLED]):.2f} to {max(kept[DECOUPLED]):.2f} at all "
        f"sizes, Adam + L2 {abs(min(kept[L2])):.2f} to {max(kept[L2]):.2f}; largest distance to "
        f"theory {max(worst.values()):.3f}.",
        rule=f"Both within {TOLERANCE:g} of theory at every size, and AdamW varying by at most "
        f"{TOLERANCE:g} and L2 by more: shown; else contradicted.",
        literature="Loshchilov & Hutter: follows from the equations.",
    )
    shown = columns(
        "series: optimizer | noise: gradient sd {:g} | kept: weight kept {:.3f} | sd: ± sd "
        "{:.3f} | theory {:.3f}"
    )
    table = Table("kept", "What is left of a weight", shown, lines)
    return Result([verdict], [table], [_figure(s, lines)])


def _theory(s: Settings, name: str, noise: float) -> float:
    if name == DECOUPLED:
        return decoupled_decay_kept(s.steps, s.learning_rate, s.decay)
    return l2_decay_kept(s.steps, s.learning_rate, s.decay, noise)


def _figure(s: Settings, lines: Sequence[Row]) -> Figure:
    fine = np.geomspace(min(s.noises), max(s.noises), 25)
    rows: list[Row] = []
    for name in (DECOUPLED, L2):
        kept = [row["kept"] for row in lines if row["series"] == name]
        rows += against(name, s.noises, kept, fine, functools.partial(_theory, s, name))
    return Figure(
        name="kept",
        title="Weight decay against the size of the gradient",
        alt="Part of the weight that is left, against the standard deviation of pure-noise "
        f"gradients: {_ends(lines, DECOUPLED)} and {_ends(lines, L2)} from the smallest to the "
        "largest. Markers are measured, lines are analytic.",
        panels=[
            Panel(
                f"{s.steps:,} steps, lr {s.learning_rate:g}, decay {s.decay:g}",
                theory(
                    "standard deviation of the gradient",
                    "part of the weight left",
                    xscale="log",
                    ylim=(-0.03, 1.03),
                    legend="upper left",
                ),
                rows,
            )
        ],
        columns=1,
        panel_size=(7.0, 3.9),
    )


def _ends(lines: Sequence[Row], name: str) -> str:
    kept = [abs(r["kept"]) for r in lines if r["series"] == name]
    return f"{name} keeps {kept[0]:.2f} to {kept[-1]:.2f}"


EXPERIMENT = experiment(
    "decay_scale", Settings(), measure, analyse,
    tiny={"noises": (0.01, 1.0, 10.0), "seeds": (0, 1), "weights": 64},
    title="Weight decay against the size of the gradient",
    question="Adam divides the gradient by its own size, and with it an L2 term in the gradient. "
    "Does L2 still shrink all weights at the same rate?",
    setup="A weight of 1 with gradients of pure noise, so that only the decay shrinks it. The "
    "lines are (1 - lr wd)^T for AdamW and the solution of dw/dt = -lr l2 w / sqrt(noise^2 + (l2 "
    "w)^2) for Adam with L2; nothing is fitted.",
    reference="Loshchilov & Hutter, arXiv 1711.05101",
)  # fmt: skip
