"""Test whether KOALA, a Kalman filter of the loss, needs no tuned learning rate."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.common import best_arm, column, unique, where
from adamw_jax.lab.experiments.koala_runs import (
    EACH,
    FILTERS,
    MARGIN,
    NOISES,
    RANGE_MARGIN,
    RIVALS,
    STEP_MARGIN,
    TOLERANCE,
    USUAL,
    WHOLE,
    WITHIN,
    M,
    Settings,
    V,
    measure,
    polyak_share,
)
from adamw_jax.lab.experiments.points import point
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import Interval, as_good, decide, paired, rule, rule_as_good, spread
from adamw_jax.lab.tasks import get_task


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge the range of learning rates, the untuned filter, and its steps."""
    training, verdicts = where(rows, kind="training"), []
    for task in s.tasks:
        mine = where(training, task=task)
        verdicts += [_range(s, task, mine, a, b) for a in FILTERS for b in RIVALS]
        verdicts += [_untuned(task, mine, a, b) for a in FILTERS for b in RIVALS]
    limits = [
        dict(row) | {"strength": row["q"] * row["norm"] ** 2 / row["noise"]}
        for row in where(rows, kind="limit")
    ]
    limits = [row | {"theory": float(polyak_share(row["strength"]))} for row in limits]
    steps = where(rows, kind="step")
    verdicts += [_settling(s, limits, steps)]
    verdicts += [_shrinking(s, task, where(steps, task=task)) for task in s.tasks]
    table = common.arms_table("settings", "Every learning rate", training)
    return Result(
        verdicts, [table, _range_table(s, training)], _figures(s, training, limits, steps)
    )


def usable(rows: Sequence[Row], decades: float) -> list[float]:
    """Return decades of learning rates within ``WITHIN`` of the seed's best validation accuracy."""
    out = []
    for seed in sorted(unique(rows, "seed")):
        found = [row["validation_accuracy"] for row in common.at_end(where(rows, seed=seed))]
        out.append(decades * sum(value >= max(found) - WITHIN for value in found))
    return out


def _range(s: Settings, task: str, rows: Sequence[Row], a: str, b: str) -> Verdict:
    mine, other = (usable(where(rows, group=group), s.decades) for group in (a, b))
    difference = paired(mine, other)
    d = difference
    return Verdict(
        claim=f"{a} works over a wider range of learning rates than {b}",
        task=get_task(task).title,
        word=decide(difference, RANGE_MARGIN),
        evidence=f"{a} {spread(mine).mean:.2f} decades, {b} {spread(other).mean:.2f}, of "
        f"{s.decades * len(s.factors):g} tried; difference {d.mean:+.2f} [{d.low:+.2f}, "
        f"{d.high:+.2f}].",
        rule=rule(
            f"the decades of learning rates within {100 * WITHIN:g} points of the seed's best "
            "validation accuracy",
            f"{RANGE_MARGIN:g}",
        ),
    )


def _untuned(task: str, rows: Sequence[Row], a: str, b: str) -> Verdict:
    ends = common.at_end(rows)
    mine = column(where(ends, group=a, learning_rate=USUAL[a]), "test_accuracy")
    best = best_arm(where(rows, group=b))
    other = column(where(ends, arm=best), "test_accuracy")
    difference = paired(mine, other)
    return Verdict(
        claim=f"{a} with the learning rate left at {USUAL[a]:g} is as good as tuned {b}",
        task=get_task(task).title,
        word=as_good(difference, MARGIN),
        evidence=f"{a} {common.mean_sd(mine, 'test_accuracy')}, {b} "
        f"{common.mean_sd(other, 'test_accuracy')} at its best lr "
        f"{where(rows, arm=best)[0]['learning_rate']:g}; difference "
        f"{common.interval(difference, 'test_accuracy')}.",
        rule=rule_as_good(
            f"the difference in test accuracy, {b} at its best validation accuracy", MARGIN
        ),
        literature="Davtyan et al., CIFAR-100, ResNet18, 200 epochs, top-1 error: KOALA-M 22.22 %, "
        "SGD 22.44 %, Adam 25.61 %." if a == M else "",
    )  # fmt: skip


def _settling(s: Settings, limits: Sequence[Row], steps: Sequence[Row]) -> Verdict:
    off = max(abs(row["share"] - row["theory"]) for row in limits)
    shares = [row["share"] for row in limits]
    most = max(row["share"] for row in steps)
    ok = off <= TOLERANCE and most <= 1 + TOLERANCE and max(shares) > 2 * min(shares)
    return Verdict(
        claim="The uncertainty settles where the equations say, and no step exceeds Polyak's",
        task="constant gradient; training",
        word="shown" if ok else "contradicted",
        evidence=f"After {s.settling} steps {min(shares):.3f} to {max(shares):.3f} of Polyak's "
        f"step, off the formula by at most {off:.1g}; in training at most {most:.3f} of it in any "
        "layer.",
        rule=f"Within {TOLERANCE:g} of the formula in every case, varying twofold, and in training "
        f"never above 1 by more than {TOLERANCE:g}: shown; else contradicted.",
        literature="Follows from the equations.",
    )


def shrinkage(s: Settings, steps: Sequence[Row]) -> Interval:
    """Return the fall of the mean log (step / gradient) from the first to the last fifth."""
    fifth, early, late = s.watched // 5, [], []
    for seed in sorted(unique(steps, "seed")):
        lengths = np.log([max(row["length"], 1e-12) for row in where(steps, seed=seed)])
        early.append(float(lengths[:fifth].mean()))
        late.append(float(lengths[-fifth:].mean()))
    return paired(early, late)


def _shrinking(s: Settings, task: str, steps: Sequence[Row]) -> Verdict:
    difference = shrinkage(s, where(steps, series=EACH))
    ratio = [float(np.exp(-v)) for v in (difference.mean, difference.high, difference.low)]
    whole = float(np.exp(-shrinkage(s, where(steps, series=WHOLE)).mean))
    return Verdict(
        claim="KOALA-V's adaptive step decreases by itself, at a constant learning rate",
        task=get_task(task).title,
        word=decide(difference, STEP_MARGIN),
        evidence=f"Step over gradient in the last fifth of {s.watched} steps is {ratio[0]:.2g} "
        f"[{ratio[1]:.2g}, {ratio[2]:.2g}] of that in the first; {whole:.2g} where R is learned "
        "from the loss of the batch.",
        rule=rule(
            "log(step length / gradient norm, first fifth / last fifth), geometric means, R "
            "learned from the losses of the examples",
            f"{STEP_MARGIN:g}",
        ),
    )


def _range_table(s: Settings, rows: Sequence[Row]) -> Table:
    out = []
    for task, group in itertools.product(s.tasks, USUAL):
        mine = where(rows, task=task, group=group)
        decades = spread(usable(mine, s.decades))
        ends = common.at_end(mine)
        every = spread([row["test_accuracy"] for row in ends])
        out.append({"task": task, "group": group, "decades": decades.mean, "sd": decades.sd,
                    "mean": every.mean})  # fmt: skip
    columns = [
        Column("task", "task"),
        Column("group", "contender"),
        Column("decades", "usable decades", "{:.2f}"),
        Column("sd", "± sd", "{:.2f}"),
        Column("mean", "test accuracy, mean of all rates", "{:.1%}"),
    ]
    return Table("ranges", "How wide a range of learning rates serves", columns, out)


def _figures(
    s: Settings, training: Sequence[Row], limits: Sequence[Row], steps: Sequence[Row]
) -> list[Figure]:
    panels = []
    for task in s.tasks:
        drawn: list[Row] = []
        for group, factor in itertools.product(USUAL, s.factors):
            mine = where(training, task=task, group=group,
                         learning_rate=round(USUAL[group] * factor, 8))  # fmt: skip
            drawn.append(point(group, factor, column(common.at_end(mine), "test_accuracy")))
        draw = lines("learning rate / usual one", "test accuracy", xscale="log", percent=True,
                     spread="bars", markers=True, ticks_at_data=True,
                     legend="lower center")  # fmt: skip
        panels.append(Panel(get_task(task).title, draw, drawn))
    settled: list[Row] = [
        {"series": V, "kind": "measured", "x": row["strength"], "y": row["share"]} for row in limits
    ]
    strengths = [row["strength"] for row in limits]
    fine = np.geomspace(min(strengths), max(strengths), 80)
    settled += [
        {"series": V, "kind": "theory", "x": float(x), "y": float(polyak_share(x))} for x in fine
    ]
    watched = []
    for task in s.tasks:
        lengths: list[Row] = []
        for noise, step in itertools.product(NOISES, range(1, s.watched + 1)):
            mine = where(steps, task=task, series=noise, step=step)
            v = spread(list(np.log(column(mine, "length"))))
            y, low, high = (float(np.exp(v.mean + i * v.sd)) for i in (0, -1, 1))
            lengths.append({"series": noise, "x": step, "y": y, "low": low, "high": high})
        draw = lines("steps", "step length / gradient norm", yscale="log", legend="upper left")
        watched.append(Panel(f"training on {get_task(task).title}", draw, lengths))
    usual = ", ".join(f"{group} {rate:g}" for group, rate in USUAL.items())
    return [
        Figure(
            name="rates",
            title="Accuracy against the learning rate",
            alt="Test accuracy against the learning rate over the usual one, for KOALA-V, KOALA-M, "
            "SGD with momentum and Adam, means and standard deviations over seeds. The usual "
            f"rates: {usual}.",
            panels=panels,
            panel_size=(5.6, 3.8),
        ),
        Figure(
            name="filter",
            title="KOALA-V's steps",
            alt="Left: the part of Polyak's step that is taken once the uncertainty has settled, "
            "against q |g|^2 / R on a logarithmic axis; markers are measured, the line is "
            "analytic. Then, for each task, step length over gradient norm against steps in "
            "training, geometric mean and standard deviation over seeds, with R learned from the "
            "losses of all examples and from that of the batch.",
            panels=[
                Panel(
                    "constant gradient and noise",
                    theory("q |g|² / R", "step / Polyak's", xscale="log", legend="upper left"),
                    settled,
                ),
                *watched,
            ],
            columns=3,
        ),
    ]


EXPERIMENT = register(
    Experiment(
        name="koala",
        title="KOALA and the learning rate",
        question="KOALA treats the loss as a measurement of the weights and lets a Kalman filter "
        "choose the step. Does this remove the tuning of the learning rate?",
        setup="The same half-decade grid around the usual learning rate of each optimizer (KOALA "
        "1, SGD 0.1 with momentum 0.9, Adam 0.001), cosine schedule, no decay. KOALA estimates its "
        "noise R from the squared losses of the examples, as the authors do. The range of good "
        "learning rates is measured from each optimizer's own best, so the middle of the grid does "
        "not matter. Steps are recorded at a constant learning rate of 1, also with R from the "
        "loss of the batch alone. Constant gradients are deterministic. A first trial used that R "
        "everywhere and recorded one task; no other setting was chosen after a look at results.",
        presets={
            "demo": Settings(),
            "quick": dataclasses.replace(Settings(), epochs=(10, 10), watched=100),
            "tiny": Settings(
                tasks=("digits",), epochs=(2,), seeds=(0, 1), factors=(0.1, 1.0),
                decades=1.0, watched=20,
            ),
        },
        measure=measure,
        analyse=analyse,
        reference="Davtyan et al., KOALA: A Kalman Optimization Algorithm with Loss Adaptivity, "
        "arXiv 2107.03331",
    )
)  # fmt: skip
