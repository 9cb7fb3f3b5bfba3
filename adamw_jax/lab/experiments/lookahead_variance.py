"""Measure variance and speed of Lookahead's slow weights on the noisy quadratic.

SGD on a/2 (theta - c)^2 with c ~ N(0, noise^2) is theta <- r theta + (1 - r) c, r = 1 - lr a, whose
stationary variance is V = (lr a noise)^2 / (1 - r^2). From slow weights phi, k steps lead to
q phi + n with q = r^k, where n has the variance (1 - q^2) V. A sync makes of that

    phi <- (1 - alpha (1 - q)) phi + alpha n

so that the variance W of phi obeys W <- (1 - alpha (1 - q))^2 W + alpha^2 (1 - q^2) V, whose fixed
point is W / V = alpha (1 + q) / (2 - alpha (1 - q)). This is the formula of the paper,

    alpha^2 (1 - q^2) / (alpha^2 (1 - q^2) + 2 alpha (1 - alpha) (1 - q)),

divided through by alpha (1 - q): the first term of its denominator leaves alpha (1 + q), the second
2 (1 - alpha), and their sum is 2 - alpha (1 - q).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from adamw_jax import compose, eval_params, lookahead, sgdw
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
from adamw_jax.lab.plots.style import series_style
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.train import Runner

LOOKAHEAD, SGD = "Lookahead", "SGD, smaller lr"
TOLERANCE = 0.05
MARGIN = 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """One curvature for the variance, many for the speed.

    Attributes:
      periods: values of k.
      step_sizes: values of alpha.
      pull: lr times the curvature, in the measurement of the variance.
      rates: lr of Lookahead's inner SGD times the largest curvature, in the comparison of speed.
      compared: alpha and k of this comparison.
      curvatures: number of curvatures 1, 1/2, 1/3, ...; in every coordinate c has deviation 1 and
        theta starts at ``distance``.
      copies: independent problems per seed.
    """

    periods: tuple[int, ...] = (1, 5, 10, 20)
    step_sizes: tuple[float, ...] = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
    pull: float = 0.1
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    copies: int = 64
    steps: int = 6000
    rates: tuple[float, ...] = (0.3, 1.0, 1.7)
    compared: tuple[float, int] = (0.5, 5)
    curvatures: int = 20
    distance: float = 10.0
    speed_steps: int = 1200


def sgd_variance(pull: Any) -> Any:
    """Return the stationary variance of SGD at lr times curvature ``pull``, noise variance 1."""
    return pull / (2 - pull)


def variance_ratio(alpha: Any, k: int, pull: Any) -> Any:
    """Return the stationary variance of the slow weights over that of their inner SGD."""
    q = (1 - pull) ** k
    return alpha * (1 + q) / (2 - alpha * (1 - q))


def steady_loss(rate: float, alpha: float, k: int, curvatures: np.ndarray) -> float:
    """Return the final expected loss above its minimum, right after a sync; alpha 1 is SGD."""
    pull = rate * curvatures
    return float(np.sum(curvatures * variance_ratio(alpha, k, pull) * sgd_variance(pull)) / 2)


def loss_path(
    rate: float, alpha: float, k: int, curvatures: np.ndarray, distance: float, steps: int
) -> np.ndarray:
    """Return the expected loss after k, 2k, ... steps."""
    pull, n = rate * curvatures, np.arange(1, steps // k + 1)[:, None]
    factor = 1 - alpha * (1 - (1 - pull) ** k)
    steady = variance_ratio(alpha, k, pull) * sgd_variance(pull)
    square = factor ** (2 * n) * (distance**2 - steady) + steady
    return np.sum(curvatures * square, axis=1) / 2


def equal_rate(s: Settings, rate: float) -> float:
    """Return the learning rate at which SGD ends at the same loss as Lookahead."""
    a, (alpha, k) = _curvatures(s), s.compared
    goal = steady_loss(rate, alpha, k, a)
    return float(brentq(lambda r: steady_loss(r, 1.0, 1, a) - goal, 1e-6, rate))  # pyright: ignore


def _curvatures(s: Settings) -> np.ndarray:
    return 1 / np.arange(1, s.curvatures + 1)


def _optimizer(rate: Any, alpha: Any, k: int) -> Any:
    inner = sgdw(lambda count: rate, momentum=None, weight_decay=None)
    return compose(inner, lookahead(sync_period=k, slow_step_size=lambda count: alpha))


@functools.partial(jax.jit, static_argnums=0)
def _slow(k: int, rate: Any, alpha: Any, curvature: Any, start: Any, places: Any) -> jax.Array:
    """Return the slow weights after every k steps."""
    tx = _optimizer(rate, alpha, k)

    def slope(theta: Any, place: jax.Array) -> Any:
        return curvature * (theta - place), None

    def period(carry: Any, places: jax.Array) -> Any:
        (theta, state), _ = steps(tx, carry, slope, places)
        return (theta, state), eval_params(state, theta)

    places = places[: len(places) // k * k]
    places = places.reshape(-1, k, *places.shape[1:])
    return jax.lax.scan(period, begun(tx, start), places)[1]


def measure(s: Settings, runner: Runner) -> Rows:
    """Run to the steady state, then from far away."""
    runner.progress.begin("noisy quadratic", s.steps * len(s.seeds) * len(s.periods))
    rows: Rows = []
    one = jnp.float32(1)

    @functools.partial(jax.jit, static_argnums=0)
    def scatter(k: int, alphas: jax.Array, places: jax.Array) -> jax.Array:
        def case(alpha: jax.Array) -> jax.Array:
            start = jnp.zeros(s.copies, jnp.float32)
            path = _slow(k, jnp.float32(s.pull), alpha, one, start, places)
            return jnp.mean(path[len(path) // 3 :] ** 2)

        return jax.vmap(case)(alphas)

    alphas = jnp.asarray(s.step_sizes, jnp.float32)
    for seed in s.seeds:
        draws = np.random.default_rng(seed).standard_normal((s.steps, s.copies))
        places = jnp.asarray(draws, jnp.float32)
        for k in s.periods:
            rows += [
                {"kind": "variance", "k": k, "alpha": alpha, "seed": seed, "variance": float(v)}
                for alpha, v in zip(s.step_sizes, scatter(k, alphas, places), strict=True)
            ]
            runner.progress.advance(s.steps, f"seed {seed}, k = {k}")
    runner.progress.end()
    return rows + _race(s)


def _race(s: Settings) -> Rows:
    """Run Lookahead, and SGD that ends at the same loss, from far away."""
    a = jnp.asarray(_curvatures(s), jnp.float32)
    start = jnp.full((s.copies, s.curvatures), s.distance, jnp.float32)
    wide = jnp.broadcast_to(a[None], start.shape)
    alpha, k = s.compared
    rows: Rows = []
    for seed in s.seeds:
        draws = np.random.default_rng([seed, 1]).standard_normal((s.speed_steps, *start.shape))
        places = jnp.asarray(draws, jnp.float32)
        for rate in s.rates:
            for name, r, size in ((LOOKAHEAD, rate, alpha), (SGD, equal_rate(s, rate), 1.0)):
                # alpha 1 is SGD, recorded after every k steps.
                path = _slow(k, jnp.float32(r), jnp.float32(size), wide, start, places)
                losses = np.asarray(path**2 @ a).mean(axis=1) / 2
                rows += [
                    {"kind": "speed", "series": name, "rate": rate, "seed": seed,
                     "step": (i + 1) * k, "loss": float(loss)}
                    for i, loss in enumerate(losses)
                ]  # fmt: skip
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare variances with the formula, and speeds with each other."""
    lines = []
    scattered = where(rows, kind="variance")
    for k in s.periods:
        for alpha in s.step_sizes:
            values = column(where(scattered, k=k, alpha=alpha), "variance")
            ratio = spread([v / sgd_variance(s.pull) for v in values])
            expected = variance_ratio(alpha, k, s.pull)
            lines.append(
                {"k": k, "alpha": alpha, "ratio": ratio.mean, "sd": ratio.sd,
                 "theory": expected, "off": abs(ratio.mean / expected - 1)}
            )  # fmt: skip
    verdicts = [_formula(s, lines), _smaller(s, scattered)]
    verdicts += [_speed(s, rows, rate) for rate in s.rates]
    shown = columns(
        "k {:d} | alpha {:g} | ratio: variance / SGD's {:.3f} | sd: ± sd {:.3f} | theory: "
        "formula {:.3f} | off: off by {:.1%}"
    )
    table = Table("variance", "Stationary variance of the slow weights", shown, lines)
    return Result(verdicts, [table], [_figure(s, lines), _speed_figure(s, rows)])


def _formula(s: Settings, lines: Sequence[Row]) -> Verdict:
    off = max(row["off"] for row in lines)
    ratios = [row["ratio"] for row in lines]
    ok = off <= TOLERANCE and max(ratios) > 2 * min(ratios)
    return Verdict(
        claim="The slow weights scatter as the paper's fixed point says",
        task="noisy quadratic",
        word="shown" if ok else "contradicted",
        evidence=f"Variance over that of SGD from {min(ratios):.3f} to {max(ratios):.3f} over "
        f"{len(lines)} pairs of alpha and k; off the formula by at most {off:.1%}.",
        rule=f"Mean over seeds within {TOLERANCE:.0%} of the formula at every alpha and k, and "
        "varying at least twofold: shown; else contradicted.",
        literature="Zhang et al.: proven.",
    )


def _smaller(s: Settings, rows: Sequence[Row]) -> Verdict:
    """Judge by the least helpful pair with alpha below 1."""
    gains = []
    for k in s.periods:
        plain = list(np.log(column(where(rows, k=k, alpha=max(s.step_sizes)), "variance")))
        for alpha in s.step_sizes:
            if alpha < 1:
                mine = list(np.log(column(where(rows, k=k, alpha=alpha), "variance")))
                gains.append((paired(plain, mine), alpha, k))
    worst, alpha, k = min(gains, key=lambda gain: gain[0].low)
    ratio = [float(np.exp(-v)) for v in (worst.mean, worst.high, worst.low)]
    return Verdict(
        claim="The slow weights scatter less than the inner SGD alone",
        task="noisy quadratic",
        word=decide(worst, MARGIN),
        evidence=f"Least of all at alpha {alpha:g}, k {k}: {ratio[0]:.2f} of the variance "
        f"[{ratio[1]:.2f}, {ratio[2]:.2f}].",
        rule=rule(
            "log(variance with alpha 1 / with alpha), at the alpha below 1 and k where its lower "
            "end is lowest",
            f"{MARGIN:g}",
        ),
        literature="Zhang et al.: proven.",
    )


def steps_to(path: Sequence[float], goal: float, every: int) -> float:
    """Return the steps until a path, recorded at equal intervals, first reaches ``goal``."""
    below = np.nonzero(np.asarray(path) <= goal)[0]
    return float("inf") if below.size == 0 else float((below[0] + 1) * every)


def _speed(s: Settings, rows: Sequence[Row], rate: float) -> Verdict:
    (alpha, k), a = s.compared, _curvatures(s)
    goal = 2 * steady_loss(rate, alpha, k, a)
    needed: dict[str, list[float]] = {}
    expected = {}
    for name, r, size in ((LOOKAHEAD, rate, alpha), (SGD, equal_rate(s, rate), 1.0)):
        mine = where(rows, kind="speed", series=name, rate=rate)
        needed[name] = [
            steps_to([row["loss"] for row in where(mine, seed=seed)], goal, k) for seed in s.seeds
        ]
        # SGD is k steps of its own between two looks.
        path = loss_path(r, size, k, a, s.distance, s.speed_steps)
        expected[name] = steps_to(list(path), goal, k)
    logs = {name: list(np.log(values)) for name, values in needed.items()}
    gain = paired(logs[SGD], logs[LOOKAHEAD])
    means = {name: spread(values).mean for name, values in needed.items()}
    return Verdict(
        claim="Lookahead settles in fewer steps than SGD that ends at the same loss",
        task=f"noisy quadratic, {s.curvatures} curvatures, lr {rate:g} / largest",
        word=decide(gain, MARGIN),
        evidence=f"{means[LOOKAHEAD]:.0f} steps, SGD {means[SGD]:.0f} at lr "
        f"{equal_rate(s, rate):.2f} / largest; in theory {expected[LOOKAHEAD]:.0f} and "
        f"{expected[SGD]:.0f}. log ratio {gain}.",
        rule=rule(
            "log(steps of SGD / of Lookahead) to twice the loss at which both end; SGD's lr is "
            "the one with that end",
            f"{MARGIN:g}",
        ),
    )


def _figure(s: Settings, lines: Sequence[Row]) -> Figure:
    fine = np.linspace(min(s.step_sizes), 1, 60)
    rows: list[Row] = []
    for k in s.periods:
        name = f"k = {k}"
        mine = where(lines, k=k)
        ratios = [row["ratio"] for row in mine]
        drawn = against(
            name, s.step_sizes, ratios, fine, lambda x, k=k: variance_ratio(x, k, s.pull)
        )
        bars = [{"low": r["ratio"] - r["sd"], "high": r["ratio"] + r["sd"]} for r in mine]
        rows += [{**row, **bar} for row, bar in zip(drawn, bars, strict=False)] + drawn[len(bars) :]
    return Figure(
        name="variance",
        title="How far Lookahead's slow weights scatter",
        alt="Stationary variance of the slow weights over that of SGD against alpha, one curve "
        f"for each k: from {min(r['ratio'] for r in lines):.2f} up to 1 at alpha 1, smaller for "
        "larger k. Markers with standard deviations over seeds are measured, lines are the "
        "formula.",
        panels=[Panel(f"noisy quadratic, lr curvature = {s.pull:g}", _with_bars, rows)],
        columns=1,
        panel_size=(7.0, 4.2),
    )


def _with_bars(ax: Any, rows: Sequence[Row]) -> None:
    for i, name in enumerate(dict.fromkeys(row["series"] for row in rows)):
        mine = [row for row in rows if row["series"] == name and row["kind"] == "measured"]
        x, low, high = ([row[key] for row in mine] for key in ("x", "low", "high"))
        ax.vlines(x, low, high, color=series_style(i)["color"], linewidth=1.6)
    theory("alpha", "variance / SGD's", legend="upper left", ylim=(0, 1.08))(ax, rows)


def _speed_figure(s: Settings, rows: Sequence[Row]) -> Figure:
    (alpha, k), a = s.compared, _curvatures(s)
    panels = []
    for rate in s.rates:
        drawn: list[Row] = []
        for name, r, size in ((LOOKAHEAD, rate, alpha), (SGD, equal_rate(s, rate), 1.0)):
            mine = where(rows, kind="speed", series=name, rate=rate)
            path = loss_path(r, size, k, a, s.distance, s.speed_steps)
            for i, expected in enumerate(path):
                step = (i + 1) * k
                mean = spread(column(where(mine, step=step), "loss")).mean
                drawn.append({"series": name, "kind": "measured", "x": step, "y": mean})
                drawn.append({"series": name, "kind": "theory", "x": step, "y": float(expected)})
        draw = theory("steps", "loss above its minimum", xscale="log", dense=True)
        panels.append(Panel(f"lr = {rate:g} / largest curvature", _logarithmic(draw), drawn))
    return Figure(
        name="speed",
        title="Lookahead and the SGD that ends at the same loss",
        alt="Expected loss against steps, both logarithmic, for Lookahead and for SGD with a "
        "learning rate that leads to the same loss in the end, for several learning rates of "
        "Lookahead. Pale broad lines are measured, thin ones analytic.",
        panels=panels,
        columns=3,
    )


def _logarithmic(draw: Any) -> Any:
    def both(ax: Any, rows: Sequence[Row]) -> None:
        draw(ax, rows)
        ax.set_yscale("log")

    return both


EXPERIMENT = experiment(
    "lookahead_variance", Settings(), measure, analyse,
    quick={"steps": 3000},
    tiny={"periods": (1, 5), "step_sizes": (0.2, 0.5, 1.0), "seeds": (0, 1, 2, 3), "copies": 128,
        "steps": 2000, "rates": (1.0,), "curvatures": 4, "speed_steps": 100},
    title="Lookahead on the noisy quadratic",
    question="Lookahead goes only a part alpha of the way of k steps of SGD. How much does this "
    "reduce the variance of its weights, and is it more than a smaller learning rate?",
    setup="Gradients are a (theta - c), with a new random c at every step. The variance of the "
    "slow weights is taken over copies and over the last two thirds of the steps, at one "
    "curvature, starting from the minimum. Then both run from far away over curvatures 1, 1/2, "
    "1/3, ...; SGD has a smaller learning rate, with which both end at the same expected loss. "
    "The lines are exact; nothing is fitted. A first trial of this comparison was too short for "
    "its slowest runs and was lengthened; no other setting was chosen after a look at results.",
    reference="Zhang, Lucas, Hinton & Ba, Lookahead Optimizer, arXiv 1907.08610",
)  # fmt: skip
