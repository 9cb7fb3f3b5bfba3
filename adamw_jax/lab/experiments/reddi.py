"""Run Reddi's counter-example: Adam goes to the wrong end, AMSGrad to the right one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import adam, amsgrad
from adamw_jax.lab.experiments.parts import columns, experiment, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.theory import reddi_drift, reddi_path
from adamw_jax.lab.train import Runner

TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """Loss ``large x`` once in ``period`` steps, ``-small x`` otherwise; x in [-1, 1] from 0."""

    large: float = 1010.0
    small: float = 10.0
    period: int = 101
    periods: int = 3000
    learning_rate: float = 1.5
    offset: int = 10_000
    b1: float = 0.9
    b2: float = 0.99
    points: int = 120


def measure(s: Settings, runner: Runner) -> Rows:
    """Run Adam and AMSGrad; record x at the end of some periods."""
    noted = np.unique(np.geomspace(1, s.periods, s.points).astype(int)) - 1
    runner.progress.begin("one number", 2 * s.periods * s.period)
    rows: Rows = []

    def rate(count: Any) -> jax.Array:
        t = jnp.asarray(count, jnp.float32) + jnp.float32(1 + s.offset)
        return jnp.float32(s.learning_rate) / jnp.sqrt(t)

    for name, make in (("Adam", adam), ("AMSGrad", amsgrad)):
        tx = make(rate, b1=s.b1, b2=s.b2)

        def period(carry: Any, _: Any, tx: optax.GradientTransformation = tx) -> Any:
            def step(carry: Any, j: jax.Array) -> Any:
                x, state = carry
                gradient = jnp.where(j == 0, jnp.float32(s.large), jnp.float32(-s.small))
                update, state = tx.update(gradient, state, x)
                moved: Any = optax.apply_updates(x, update)
                x = jnp.clip(moved, jnp.float32(-1), jnp.float32(1))
                return (x, state), None

            carry, _ = jax.lax.scan(step, carry, jnp.arange(s.period))
            return carry, carry[0]

        x = jnp.zeros([], jnp.float32)
        run = jax.jit(
            lambda carry, period=period: jax.lax.scan(period, carry, None, length=s.periods)
        )
        _, path = run((x, tx.init(x)))
        path = np.asarray(path)
        runner.progress.advance(s.periods * s.period, f"{name}: ends at {path[-1]:+.2f}")
        rows += [
            {"series": name, "step": int(i + 1) * s.period, "x": float(path[i])} for i in noted
        ]
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare ends and paths with theory."""
    lines, ends, off = [], {}, {}
    for name in ("Adam", "AMSGrad"):
        mine = where(rows, series=name)
        expected = _theory(s, name, np.array([row["step"] for row in mine]))
        off[name] = float(np.max(np.abs(np.array([row["x"] for row in mine]) - expected)))
        ends[name] = mine[-1]["x"]
        lines.append(
            {"optimizer": name, "end": ends[name], "theory": float(expected[-1]), "off": off[name]}
        )
    ok = ends["Adam"] > 0.9 and ends["AMSGrad"] < -0.9 and max(off.values()) <= TOLERANCE
    verdict = Verdict(
        claim="There is a problem on which Adam goes to the worst point and AMSGrad to the best",
        task="Reddi's counter-example",
        word="shown" if ok else "contradicted",
        evidence=f"Best is -1: Adam ends at {ends['Adam']:+.2f}, AMSGrad at "
        f"{ends['AMSGrad']:+.2f}; largest distance to the analytic paths {max(off.values()):.3f}.",
        rule=f"Adam ends above +0.9, AMSGrad below -0.9, both paths within {TOLERANCE:g} of "
        "theory: shown; else contradicted.",
        literature="Reddi, Kale & Kumar: proven.",
    )
    shown = columns(
        "optimizer | end: ends at {:+.3f} | theory {:+.3f} | off: largest distance to theory {:.3f}"
    )
    table = Table("ends", "Where x ends; the best point is -1", shown, lines)
    return Result([verdict], [table], [_figure(s, rows)])


def _theory(s: Settings, name: str, step: np.ndarray) -> np.ndarray:
    drift = reddi_drift(s.b1, s.b2, s.large, s.small, s.period, amsgrad=name == "AMSGrad")
    return reddi_path(step, s.learning_rate, drift, s.offset)


def _figure(s: Settings, rows: Sequence[Row]) -> Figure:
    out: list[Row] = []
    last = s.periods * s.period
    fine = np.geomspace(s.period, last, 150)
    for name in ("Adam", "AMSGrad"):
        out += [
            {"series": name, "kind": "measured", "x": row["step"], "y": row["x"]}
            for row in where(rows, series=name)
        ]
        out += [
            {"series": name, "kind": "theory", "x": float(t), "y": float(x)}
            for t, x in zip(fine, _theory(s, name, fine), strict=True)
        ]
    return Figure(
        name="path",
        title="Reddi's counter-example",
        alt="The iterate x against steps on a logarithmic axis: Adam ends at "
        f"{where(rows, series='Adam')[-1]['x']:+.2f} and AMSGrad at "
        f"{where(rows, series='AMSGrad')[-1]['x']:+.2f}, where -1 is the best point and +1 the "
        "worst. Pale broad lines are measured, thin ones analytic.",
        panels=[
            Panel(
                f"gradient +{s.large:g} once in {s.period} steps, else -{s.small:g}",
                theory(
                    "steps", "x (best: -1)", xscale="log", dense=True, ylim=(-1.1, 1.1),
                    legend="lower left",
                ),
                out,
            )
        ],
        columns=1,
        panel_size=(7.0, 3.9),
    )  # fmt: skip


EXPERIMENT = experiment(
    "reddi", Settings(), measure, analyse,
    tiny={"points": 40},
    title="Reddi's counter-example",
    question="Can Adam fail on a convex problem if the learning rate decays as theory demands?",
    setup="Minimise, on [-1, 1], a loss whose gradient is +1010 once in 101 steps and -10 in the "
    "others; the mean gradient is positive, so the best point is -1. The learning rate is "
    "1.5/sqrt(t + 10,000). The lines are the mean drift of the periodic moments, in closed form; "
    "nothing is fitted.",
    reference="Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, ICLR 2018",
)  # fmt: skip
