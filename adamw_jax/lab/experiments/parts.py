"""Build experiments from shared parts: presets, runs of an optimizer, columns, curves, verdicts."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.results import Column, Result, Row, Verdict
from adamw_jax.lab.stats import Interval, decide, rule, spread

# Settings and registration


def experiment(
    name: str,
    full: Any,
    measure: Callable[..., Rows],
    analyse: Callable[..., Result],
    *,
    quick: Any = None,
    tiny: Any = None,
    **texts: Any,
) -> Experiment:
    """Register an experiment.

    Args:
      name: name on the command line.
      full: settings of the preset ``"demo"``.
      measure: see ``Experiment``.
      analyse: see ``Experiment``.
      quick: settings that are changed for the preset ``"quick"``, or all of them.
      tiny: the same for ``"tiny"``.
      **texts: title, question, setup and reference.
    """
    changed = {"quick": quick or {}, "tiny": tiny or {}}
    presets = {"demo": full} | {
        key: dataclasses.replace(full, **own) if isinstance(own, dict) else own
        for key, own in changed.items()
    }
    return register(
        Experiment(name=name, presets=presets, measure=measure, analyse=analyse, **texts)
    )


def network_experiment(
    name: str,
    measure: Callable[..., Rows],
    analyse: Callable[..., Result],
    *,
    cpu: Any,
    full: Any,
    tiny: Mapping[str, Any],
    trial: Mapping[str, Any],
    **texts: Any,
) -> Experiment:
    """Register an experiment on a real network, one configuration in four sizes.

    Args:
      name: name on the command line.
      measure: see ``Experiment``; it trains with ``network_runs.train_runs``, or for a trial with
        ``network_runs.trial``.
      analyse: see ``Experiment``.
      cpu: settings that end in minutes on two cores.
      full: settings of the paper or article, for a GPU and data that the user has.
      tiny: settings of ``cpu`` that are changed for tests.
      trial: settings of ``full`` that are changed for a few steps on made-up data.
      **texts: title, question, setup, reference and expected.
    """
    presets = {"cpu": cpu, "full": full, "trial": dataclasses.replace(full, **trial),
               "tiny": dataclasses.replace(cpu, **tiny)}  # fmt: skip
    return register(
        Experiment(name=name, presets=presets, measure=measure, analyse=analyse, **texts)
    )


# Rows


def where(rows: Iterable[Row], **conditions: Any) -> list[Row]:
    """Return the rows in which these keys have these values."""
    return [row for row in rows if all(row[key] == value for key, value in conditions.items())]


def column(rows: Iterable[Row], key: str) -> list[float]:
    """Return one value per seed, in order; a diverged loss is infinite."""
    ordered = sorted(rows, key=lambda row: row["seed"])
    return [float("inf") if row[key] is None else row[key] for row in ordered]


def unique(rows: Iterable[Row], key: str) -> list[Any]:
    """Return the distinct values of a key, in order."""
    return list(dict.fromkeys(row[key] for row in rows))


def columns(text: str) -> list[Column]:
    """Parse columns: key, heading (by default the key) and format, separated by bars.

    >>> columns("series: optimizer | rate: lr {:g}")[1]
    Column(key='rate', title='lr', form='{:g}')
    """
    found = []
    for part in text.split(" | "):
        words, form = re.fullmatch(r"(.*?)\s*(\{:[^{}]*\})?\s*", part, re.DOTALL).groups()  # type: ignore[union-attr]
        key, _, title = words.partition(": ")
        found.append(Column(key.strip(), title.strip() or key.strip(), form or "{}"))
    return found


# Curves


def point(series: str, x: float, values: Sequence[float]) -> dict[str, Any]:
    """Return a row for ``lines``: the mean over seeds, and one deviation to either side."""
    s = spread(values)
    return {"series": series, "x": x, "y": s.mean, "low": s.mean - s.sd, "high": s.mean + s.sd}


def curves(
    rows: Sequence[Row], x: str, y: str, names: Iterable[Any] | None = None, by: str = "series"
) -> list[Row]:
    """Return rows for ``lines``: mean and deviation of ``y`` over seeds for every ``x``.

    Args:
      rows: one for each line, ``x`` and seed.
      x: key of the horizontal axis.
      y: key of the values; where a seed has diverged there is no point.
      names: lines to draw, in this order; None for all.
      by: key of the name of the line.
    """
    out: list[Row] = []
    for name in unique(rows, by) if names is None else names:
        mine = where(rows, **{by: name})
        for place in unique(mine, x):
            values = column(where(mine, **{x: place}), y)
            if all(map(math.isfinite, values)):
                out.append(point(name, place, values))
    return out


def level(series: str, xs: Iterable[float], y: float) -> list[Row]:
    """Return rows for a horizontal line."""
    return [{"series": series, "x": x, "y": y} for x in xs]


def against(
    series: str, x: Sequence[Any], measured: Sequence[Any], fine: Iterable[Any], law: Any
) -> list[Row]:
    """Return rows for ``theory``: measured points, and the law at the places ``fine``."""
    points: list[Row] = [
        {"series": series, "kind": "measured", "x": a, "y": b}
        for a, b in zip(x, measured, strict=True)
    ]
    return points + [
        {"series": series, "kind": "theory", "x": a, "y": float(law(a))}
        for a in map(np.ndarray.item, map(np.asarray, fine))
    ]


# Verdicts


def judged(
    claim: str,
    task: str,
    difference: Interval,
    margin: float,
    what: str,
    evidence: str,
    *,
    unit: str = "",
    literature: str = "",
) -> Verdict:
    """Return the verdict on a paired difference, by ``decide`` and in its words.

    Args:
      claim: the claim, which a positive difference supports.
      task: what it was tested on.
      difference: the paired interval.
      margin: largest difference that does not matter.
      what: the difference in words.
      evidence: the numbers.
      unit: the margin in words, if it has a unit.
      literature: findings of others.
    """
    word, said = decide(difference, margin), rule(what, unit or f"{margin:g}")
    return Verdict(claim, task, word, evidence, said, literature)


def met(claim: str, task: str, ok: Any, evidence: str, rule: str, literature: str = "") -> Verdict:
    """Return the verdict on a condition that is met or not; the rule is completed."""
    word = "shown" if ok else "contradicted"
    return Verdict(claim, task, word, evidence, f"{rule}: shown; else contradicted.", literature)


def exponentials(logs: Interval, sign: int = 1) -> str:
    """Format a difference of logarithms as a ratio, ``0.52 [0.48, 0.57]``."""
    low, high = sorted((sign * logs.low, sign * logs.high))
    return f"{np.exp(sign * logs.mean):.2f} [{np.exp(low):.2f}, {np.exp(high):.2f}]"


# Runs


def stacked(trees: Iterable[Any]) -> Any:
    """Return trees of arrays as one, with an axis of trees in front."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def begun(tx: Any, params: Any) -> tuple[Any, Any]:
    """Return the carry of a run: parameters and state."""
    return params, tx.init(params)


def steps(
    tx: Any,
    carry: Any,
    gradient: Callable[[Any, Any], tuple[Any, Any]],
    inputs: Any = None,
    length: int | None = None,
) -> tuple[Any, Any]:
    """Make steps of an optimizer in one scan.

    Args:
      tx: the optimizer.
      carry: parameters and state.
      gradient: (parameters, input) -> (gradient, what to record).
      inputs: one for each step.
      length: number of steps, without inputs.

    Returns:
      The carry, and what was recorded, stacked.
    """

    def step(carry: Any, now: Any) -> Any:
        params, state = carry
        slope, seen = gradient(params, now)
        updates, state = tx.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), seen

    return jax.lax.scan(step, carry, inputs, length=length)


def losses(loss: Callable[..., Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Return the gradient of a loss (parameters, input), recorded with the loss, for ``steps``."""

    def both(params: Any, now: Any) -> tuple[Any, Any]:
        value, slope = jax.value_and_grad(loss)(params, now)
        return slope, value

    return both
