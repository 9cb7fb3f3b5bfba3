"""Measure too large updates under a slow second moment, and Adafactor's two remedies."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments.adafactor_runs import (
    ACCURACY_MARGIN,
    LOG_MARGIN,
    SCHEDULE,
    TOLERANCE,
    Settings,
    _sizes,
    expected_rms,
    label,
    measure,
    newest_weight,
)
from adamw_jax.lab.experiments.common import as_accurate
from adamw_jax.lab.experiments.parts import (
    against,
    column,
    columns,
    curves,
    experiment,
    unique,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.plots.theory import theory
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare the jump with theory, then judge the two remedies in training."""
    jump, every = where(rows, part="jump"), where(rows, part="training")
    training = where(every, factored=True)
    slow = label(s.b2[-1])
    verdicts = [
        _too_large(s, jump),
        _slower_is_larger(s, training, slow),
        *_clipping(s, training, slow),
        _factored(s, where(every, decay=SCHEDULE, clipping=True)),
    ]
    out = []
    keys = ("decay", "clipping", "factored", "learning_rate")
    for form in dict.fromkeys(tuple(row[key] for key in keys) for row in every):
        mine = where(every, **dict(zip(keys, form, strict=True)))
        accuracy = spread(column(mine, "test_accuracy"))
        means = {key: spread(column(mine, key)).mean
                 for key in ("peak", "train_loss", "validation_loss")}  # fmt: skip
        out.append({
            "decay": form[0], "clipping": "d = 1" if form[1] else "none",
            "factored": "factored" if form[2] else "full", "rate": form[3], **means,
            "test_accuracy": accuracy.mean, "sd": accuracy.sd,
        })  # fmt: skip
    shown = columns(
        "decay: second moment | factored: squares | clipping | rate: lr {:g} | peak: largest RMS "
        "before clipping {:.2f} | train_loss: training loss {:.3f} | validation_loss: validation "
        "loss {:.3f} | test_accuracy: test accuracy {:.1%} | sd: ± sd {:.1%}"
    )
    table = Table("settings", "Every setting", shown, out)
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
    """Return the theory at this number of steps after the jump."""
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
        word="shown" if ok else "contradicted",
        evidence="Largest RMS, usually 1: "
        + ", ".join(f"{peak:.1f} with {decay}" for decay, peak in peaks.items())
        + f"; clipped {clipped:.2f}; largest distance to theory {100 * off:.1f} %.",
        rule=f"All within {100 * TOLERANCE:g} % of theory, the peak rising with b2 and above 2 for "
        f"{s.b2[-1]:g}, and at most 1.001 when clipped at 1: shown; else contradicted.",
        literature="Shazeer & Stern: yes (larger than desired if the decay is too slow).",
    )


def _slower_is_larger(s: Settings, rows: Sequence[Row], slow: str) -> Verdict:
    def peaks(decay: str) -> list[float]:
        """Return the log of the peak, averaged over learning rates, per seed."""
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
    """Judge clipping over all learning rates, and at the best one."""
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


def _factored(s: Settings, rows: Sequence[Row]) -> Verdict:
    """Judge factored against full squares, each at its best learning rate."""
    best = {}
    for factored in (True, False):
        mine = where(rows, factored=factored)
        each = [where(mine, learning_rate=rate) for rate in s.learning_rates]
        best[factored] = min(each, key=lambda x: spread(column(x, "validation_loss")).mean)
    full, few = (column(best[factored], "test_accuracy") for factored in (False, True))
    return as_accurate(
        "Factored squares are as accurate as full ones",
        get_task(s.task).title, {"Factored": few, "full": full},
        "the difference in test accuracy, each at its lowest validation loss",
        literature="Shazeer & Stern: comparable results to Adam with much less memory.",
    )  # fmt: skip


def _jump_figure(s: Settings, rows: Sequence[Row]) -> Figure:
    out: list[Row] = []
    decays = unique(rows, "decay")
    for decay in decays:
        steps, means = _means(rows, decay, "rms")
        out += against(decay, steps, means, steps, functools.partial(_expected, s, decay))
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
    named = [
        {**row, "series": f"{row['decay']}, {'clipped' if row['clipping'] else 'unclipped'}"}
        for row in rows
    ]
    accuracy = curves(named, "learning_rate", "test_accuracy")
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


EXPERIMENT = experiment(
    "adafactor", Settings(), measure, analyse,
    quick={"steps": 200, "learning_rates": (0.003, 0.03)},
    tiny={"b2": (0.9, 0.99), "before": 300, "after": 100, "task": "digits", "learning_rates": (0.01,
        0.1), "steps": 20, "points": 4, "seeds": (0, 1)},
    title="Adafactor: updates that are too large",
    question="A second moment that averages over many steps is out of date when gradients grow. "
    "How large do updates become, and does it help to clip them or to let the decay rate rise?",
    setup="First, gradients of pure noise that grow suddenly: the lines are exact means for "
    "normal noise under the published weights; nothing is fitted. Then training from the first "
    "step at a constant learning rate, without momentum or parameter scale, with the squares "
    "factored, which one arm is not. So only the decay rate (with bias correction as in Adam if it "
    "is constant), the clipping and the factoring differ. RMS is the largest of a leaf, before "
    "clipping. Changed after a first look, but not in the rules: more noise weights, and the exact "
    "mean instead of the ratio of means as theory.",
    reference="Shazeer & Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, "
    "ICML 2018, arXiv 1804.04235",
)  # fmt: skip
