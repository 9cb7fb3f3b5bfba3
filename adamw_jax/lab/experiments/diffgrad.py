"""Run diffGrad and Adam on functions of one number with two minima."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax import adam, diffgrad
from adamw_jax.lab.experiments.parts import begun, columns, experiment, steps, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.train import Runner

ADAM, DIFFGRAD, HALF = "Adam", "diffGrad", "Adam, half the lr"
NEAR = 0.1
FLOOR = 1e-6
MARGIN = 0.02


@dataclasses.dataclass(frozen=True)
class Settings:
    """The authors' start, learning rate, b1, b2 and steps; then other starts and rates.

    Attributes:
      start: start of the paths.
      learning_rate: learning rate of the paths and of the counted starts.
      factors: learning rates of the sweep divided by ``learning_rate``; diffGrad's friction
        multiplies it by 0.5 to 1.
      starts: number of starts, evenly from ``-reach`` to ``reach``.
    """

    start: float = -1.0
    learning_rate: float = 0.1
    b1: float = 0.95
    b2: float = 0.999
    steps: int = 300
    factors: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0, 3.0)
    starts: int = 301
    reach: float = 1.5


@dataclasses.dataclass(frozen=True)
class Valley:
    """A function (of numpy arrays) and its slope (of jax arrays), which may jump."""

    name: str
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]


def _pick(xp: Any, x: Any, *pieces: tuple[float, Any]) -> Any:
    """Return the first piece whose bound x does not exceed."""
    return xp.select([x <= bound for bound, _ in pieces], [piece for _, piece in pieces])


def _f1(x: Any) -> Any:
    return _pick(np, x, (0.0, (x + 0.3) ** 2), (np.inf, (x - 0.2) ** 2 + 0.05))


def _f1_slope(x: Any) -> Any:
    return _pick(jnp, x, (0.0, 2 * x + 0.6), (np.inf, 2 * x - 0.4))


def _f2(x: Any, waves: float) -> Any:
    """Return the integral of slope -40, then 3 x^2 + sin(8 x) + waves x cos(8 x)."""

    def right(x: Any) -> Any:
        part = waves / 8
        return x**3 + part * x * np.sin(8 * x) - (1 - part) / 8 * np.cos(8 * x)

    return _pick(np, x, (-0.9, right(-0.9) - 40 * (x + 0.9)), (np.inf, right(x)))


def _f2_slope(x: Any, waves: float) -> Any:
    right = 3 * x**2 + jnp.sin(8 * x) + waves * x * jnp.cos(8 * x)
    return _pick(jnp, x, (-0.9, jnp.full_like(x, -40.0)), (np.inf, right))


def _f3(x: Any) -> Any:
    size = np.abs(x)
    return _pick(np, size, (0.4, 0.875 * size), (0.5, 0.75 - size), (np.inf, x**2))


def _f3_slope(x: Any) -> Any:
    steps = ((-0.4, 1.0), (0.0, -0.875), (0.4, 0.875), (0.5, -1.0))
    flat = [(bound, jnp.full_like(x, slope)) for bound, slope in steps]
    return _pick(jnp, x, (-0.5, 2 * x), *flat, (np.inf, 2 * x))


VALLEYS = (
    Valley("F1", _f1, _f1_slope),
    Valley("F2", lambda x: _f2(x, 1.0), lambda x: _f2_slope(x, 1.0)),
    Valley("F2, x sin 8x", lambda x: _f2(x, 8.0), lambda x: _f2_slope(x, 8.0)),
    Valley("F3", _f3, _f3_slope),
)


def best_point(valley: Valley) -> tuple[float, float]:
    """Return the lowest point of the valley and its value, on a grid of 0.0005."""
    x = np.linspace(-1.5, 1.5, 6001)
    y = valley.value(x)
    return float(x[y.argmin()]), float(y.min())


def measure(s: Settings, runner: Runner) -> Rows:
    """Run from the authors' start and from every other, at every learning rate."""
    rows: Rows = []
    runner.progress.begin("one number", 2)
    starts = np.append(np.linspace(-s.reach, s.reach, s.starts), s.start)
    rates = s.learning_rate * np.asarray(s.factors)
    for name, make in ((ADAM, adam), (DIFFGRAD, diffgrad)):

        def walk(which: jax.Array, rate: jax.Array, x: jax.Array, make: Any = make) -> Any:
            tx = make(lambda count: rate, b1=s.b1, b2=s.b2, eps_hat=False)

            def slope(x: Any, _: Any) -> Any:
                return jnp.stack([valley.slope(x) for valley in VALLEYS])[which], x

            return steps(tx, begun(tx, x), slope, length=s.steps)[1]

        each_start = jax.vmap(walk, (None, None, 0))
        sweep = jax.jit(jax.vmap(jax.vmap(each_start, (None, 0, None)), (0, None, None)))
        which = jnp.arange(len(VALLEYS))
        every = sweep(which, jnp.asarray(rates, jnp.float32), jnp.asarray(starts, jnp.float32))
        for valley, paths in zip(VALLEYS, np.asarray(every), strict=True):
            x_best, y_best = best_point(valley)
            near = np.abs(paths[:, :-1, -1] - x_best) <= NEAR
            rows += [
                {"kind": "share", "function": valley.name, "series": name, "factor": factor,
                 "share": float(share)}
                for factor, share in zip(s.factors, near.mean(axis=1), strict=True)
            ]  # fmt: skip
            for series, factor in [(name, 1.0), *([(HALF, 0.5)] if name == ADAM else [])]:
                path = paths[s.factors.index(factor), -1]
                loss = valley.value(path.astype(np.float64)) - y_best
                rows += [
                    {"kind": "path", "function": valley.name, "series": series, "step": i,
                     "x": float(path[i]), "loss": float(loss[i]), "best": x_best}
                    for i in range(s.steps)
                ]  # fmt: skip
        runner.progress.advance(1, f"{name}: {every.size // s.steps} runs")
    runner.progress.end()
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge which arrive from the authors' start, and from how many starts."""
    verdicts, table = [], []
    for valley in VALLEYS:
        paths = where(rows, kind="path", function=valley.name)
        shares = where(rows, kind="share", function=valley.name)
        verdicts += [_arrives(s, valley.name, paths), _oftener(s, valley.name, shares)]
        for name in (ADAM, HALF, DIFFGRAD):
            end = where(paths, series=name)[-1]
            table.append({"function": valley.name, "optimizer": name, **end})
    shown = columns(
        "function | optimizer | best: global minimum {:+.3f} | x: ends at {:+.3f} | loss: loss "
        "above the minimum {:.4f}"
    )
    return Result(
        verdicts,
        [Table("ends", f"After {s.steps} points from {s.start:g}", shown, table)],
        [_paths(s, rows), _shares(s, rows)],
        ["Nothing here is random: each run is one path. The share over starts is what tells "
         "whether one start was luck."],
    )  # fmt: skip


def _arrives(s: Settings, function: str, rows: Sequence[Row]) -> Verdict:
    end = {name: where(rows, series=name)[-1] for name in (ADAM, HALF, DIFFGRAD)}
    there = {name: abs(row["x"] - row["best"]) <= NEAR for name, row in end.items()}
    word = "equivalent" if there[DIFFGRAD] and there[ADAM] else "contradicted"
    return Verdict(
        claim="diffGrad ends in the global minimum, where Adam overshoots",
        task=function,
        word="shown" if there[DIFFGRAD] and not there[ADAM] else word,
        evidence=f"Minimum at {end[ADAM]['best']:+.2f}; from {s.start:g} at lr "
        f"{s.learning_rate:g} diffGrad ends at {end[DIFFGRAD]['x']:+.2f}, Adam at "
        f"{end[ADAM]['x']:+.2f}, Adam at half that lr at {end[HALF]['x']:+.2f}.",
        rule=f"Within {NEAR:g} of it diffGrad and not Adam: shown; both: equivalent; else "
        "contradicted.",
        literature="Dubey et al. analyse three such functions, in diffGrad's favour.",
    )


def _oftener(s: Settings, function: str, rows: Sequence[Row]) -> Verdict:
    def share(name: str, factor: float) -> float:
        return where(rows, series=name, factor=factor)[0]["share"]

    mine, full = share(DIFFGRAD, 1.0), share(ADAM, 1.0)
    best = max((f for f in s.factors if 0.5 <= f <= 1), key=lambda f: share(ADAM, f))
    lead = mine - share(ADAM, best)
    word = "equivalent" if abs(lead) <= MARGIN else "contradicted"
    return Verdict(
        claim="diffGrad arrives from more starts than Adam does at any rate its friction allows",
        task=function,
        word="shown" if lead > MARGIN else word,
        evidence=f"From {s.starts} starts in [-{s.reach:g}, {s.reach:g}], diffGrad {mine:.0%}, "
        f"Adam {full:.0%}; Adam at {best:g} of the lr, its best of half to full, "
        f"{share(ADAM, best):.0%}.",
        rule=f"diffGrad's share less that of Adam at its best factor of the lr from 0.5 to 1: "
        f"above {100 * MARGIN:g} points, shown; within, equivalent; else contradicted.",
        literature="Dubey et al. show one start.",
    )


def _paths(s: Settings, rows: Rows) -> Figure:
    panels = []
    for valley in VALLEYS:
        mine = where(rows, kind="path", function=valley.name)
        points: list[Row] = [
            {"series": name, "x": row["step"], "y": row["x"]}
            for name in (ADAM, DIFFGRAD, HALF)
            for row in where(mine, series=name)
        ]
        points += [
            {"series": "global minimum", "x": step, "y": mine[0]["best"]}
            for step in (0, s.steps - 1)
        ]
        legend = "lower right" if valley is VALLEYS[0] else None
        panels.append(Panel(valley.name, lines("step", "x", legend=legend), points))
        points = [
            {"series": name, "x": row["step"], "y": max(row["loss"], FLOOR)}
            for name in (ADAM, DIFFGRAD, HALF)
            for row in where(mine, series=name)
        ]
        draw = lines("step", "loss above the minimum", yscale="log", legend=None)
        panels.append(Panel(f"{valley.name}: loss", draw, points))
    return Figure(
        name="paths",
        title=f"Paths from {s.start:g} at learning rate {s.learning_rate:g}",
        alt="The iterate, with the global minimum, and the loss above it against steps for Adam, "
        "diffGrad and Adam at half the learning rate, on each function.",
        panels=panels,
        panel_size=(4.6, 2.9),
    )


def _shares(s: Settings, rows: Rows) -> Figure:
    panels = []
    for valley in VALLEYS:
        mine = where(rows, kind="share", function=valley.name)
        points: list[Row] = [
            {"series": row["series"], "x": row["factor"] * s.learning_rate, "y": row["share"]}
            for row in mine
        ]
        draw = lines("learning rate", "starts that arrive", xscale="log", percent=True,
                     markers=True, ylim=(0.0, 1.02))  # fmt: skip
        panels.append(Panel(valley.name, draw, points))
    return Figure(
        name="starts",
        title="Share of starts from which the global minimum is reached",
        alt=f"Share of {s.starts} starts that end within {NEAR:g} of the global minimum, against "
        "the learning rate, for Adam and diffGrad, on each function.",
        panels=panels,
    )


EXPERIMENT = experiment(
    "diffgrad", Settings(), measure, analyse,
    quick={"starts": 61},
    tiny={"starts": 31, "factors": (0.5, 1.0)},
    title="diffGrad's three functions",
    question="diffGrad slows down where the gradient hardly changes. Does this keep it in the "
    "lower of two minima, and does it do more than a smaller step?",
    setup="The slopes come from the authors' notebook (that of F2 from a public copy), with its "
    "start -1, lr 0.1, b1 0.95, b2 0.999 and 300 points, and eps outside the root. The slope of "
    "F2 has x cos(8x) where the derivative of x sin(8x) has 8 x cos(8x): both versions are run. "
    "Losses are the integrals of the slopes. Two parts are ours: the sweep over starts and rates, "
    "and Adam at half the rate, which equals friction at its strongest.",
    reference="Dubey et al., diffGrad, TNNLS 2020, arXiv 1909.11015",
)  # fmt: skip
