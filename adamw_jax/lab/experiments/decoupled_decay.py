"""Compare decoupled decay with L2 under Adam, over learning rates and coefficients."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments.common import Training, at_end, best_arm
from adamw_jax.lab.experiments.parts import column, columns, judged, unique, where
from adamw_jax.lab.experiments.studies import Beats, study
from adamw_jax.lab.plots.heat import heat
from adamw_jax.lab.recipes import ADAM, Arm, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import paired, spread
from adamw_jax.lab.tasks import get_task

DECOUPLED, L2 = "AdamW (decoupled)", "Adam + L2"
KEY = {DECOUPLED: "weight_decay", L2: "l2"}
FAR = 0.08
MOVE_MARGIN = 0.25


@dataclasses.dataclass(frozen=True)
class Settings(Training):
    """Both forms get every learning rate and equally many coefficients in factors of about 3."""

    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    decoupled: tuple[tuple[float, ...], ...] = ((0.03, 0.1, 0.3, 1.0), (0.3, 1.0, 3.0, 10.0))
    l2: tuple[tuple[float, ...], ...] = (
        (3e-4, 1e-3, 3e-3, 1e-2),
        (1e-3, 3e-3, 1e-2, 3e-2),
    )


def _arms(s: Settings, task: str) -> list[Arm]:
    i = s.tasks.index(task)
    numbers = [(DECOUPLED, settings(b2=0.99, l2=0.0, weight_decay=d)) for d in s.decoupled[i]]
    numbers += [(L2, settings(b2=0.99, l2=d, weight_decay=0.0)) for d in s.l2[i]]
    return [
        Arm(group, ADAM, "one_cycle", rate, chosen)
        for rate in s.learning_rates
        for group, chosen in numbers
    ]


def _bests(s: Settings, rows: Sequence[Row]) -> Result:
    """Return the best coefficient at every learning rate, with its accuracy, and the maps."""
    lines = []
    for task, group, rate in itertools.product(s.tasks, KEY, s.learning_rates):
        best = best_at(where(rows, task=task), group, rate)
        accuracy = spread(column(at_end(best), "test_accuracy")).mean
        lines.append({"task": task, "form": group, "learning_rate": rate,
                      "best": best[0][KEY[group]], "accuracy": accuracy})  # fmt: skip
    shown = columns(
        "task | form | learning_rate: lr {:g} | best: best coefficient {:g} | accuracy: its test "
        "accuracy {:.1%}"
    )
    table = Table("best", "The best coefficient at every learning rate", shown, lines)
    return Result(tables=[table], figures=[_maps(s, rows, task) for task in s.tasks])


def best_at(rows: Sequence[Row], group: str, rate: float) -> list[Row]:
    """Return the rows of the best arm of a form at one learning rate, by validation accuracy."""
    mine = where(rows, group=group, learning_rate=rate)
    return where(mine, arm=best_arm(mine))


def _same_place(s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
    rates = unique(rows, "learning_rate")
    best = {group: [best_at(rows, group, r)[0][key] for r in rates] for group, key in KEY.items()}
    same = {group: len(set(values)) == 1 for group, values in best.items()}
    word = "shown" if same[DECOUPLED] and not same[L2] else "contradicted"
    if same[DECOUPLED] and same[L2]:
        word = "equivalent"
    listed = {group: ", ".join(f"{value:g}" for value in values) for group, values in best.items()}
    return Verdict(
        claim="The best decoupled decay is the same at every learning rate; the best L2 moves",
        task=get_task(task).title,
        word=word,
        evidence=f"Best at lr {', '.join(f'{r:g}' for r in rates)}: decoupled {listed[DECOUPLED]}; "
        f"L2 {listed[L2]}.",
        rule="Coefficient of the best mean validation accuracy: the same at all rates for "
        "decoupled decay only, shown; for both, equivalent; else contradicted.",
        literature="Loshchilov & Hutter: yes, on a fine grid.",
    )


def _moves_less(s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
    """Judge how far the best coefficient moves per decade of learning rate, for every seed."""
    ends = at_end(rows)
    speed = {
        group: [drift(where(ends, group=group, seed=seed), s.learning_rates, key)
                for seed in s.seeds]
        for group, key in KEY.items()
    }  # fmt: skip
    size = {group: [abs(value) for value in values] for group, values in speed.items()}
    d = paired(size[L2], size[DECOUPLED])
    return judged(
        "As the learning rate grows, the best decoupled decay moves less than the best L2",
        get_task(task).title, d, MOVE_MARGIN,
        "how much faster L2's best moves, seed by seed (tops of parabolas through validation "
        "accuracy over the logarithm of the coefficient)",
        f"Decades per decade of learning rate: decoupled {spread(speed[DECOUPLED]).mean:+.2f}, L2 "
        f"{spread(speed[L2]).mean:+.2f}; difference in size {d.mean:+.2f} [{d.low:+.2f}, "
        f"{d.high:+.2f}].",
        unit=f"{MOVE_MARGIN:g} decades",
        literature="Loshchilov & Hutter: yes (the two become separable).",
    )  # fmt: skip


def drift(rows: Sequence[Row], rates: Sequence[float], key: str) -> float:
    """Return how many decades the best coefficient moves per decade of rate, for one seed."""
    tops = []
    for rate in rates:
        line = sorted((row[key], row["validation_accuracy"]) for row in rows
                      if row["learning_rate"] == rate)  # fmt: skip
        x, y = np.log10([c for c, _ in line]), np.array([a for _, a in line])
        a, b, _ = np.polyfit(x, y, 2)
        inside = np.clip(-b / (2 * a), x[0], x[-1]) if a < 0 else x[np.argmax(y)]
        tops.append(float(inside))
    return float(np.polyfit(np.log10(rates), tops, 1)[0])


def _maps(s: Settings, rows: Sequence[Row], task: str) -> Figure:
    mine, panels = where(rows, task=task), []
    for group, label in ((DECOUPLED, "decay"), (L2, "L2")):
        cells = []
        for rate in s.learning_rates:
            line = at_end(where(mine, group=group, learning_rate=rate))
            best = best_at(mine, group, rate)[0]["arm"]
            means = {arm: spread(column(where(line, arm=arm), "validation_accuracy"))
                     for arm in unique(line, "arm")}  # fmt: skip
            cells += [
                {"x": where(line, arm=arm)[0][KEY[group]], "y": rate, "mean": value.mean,
                 "sd": value.sd, "gap": means[best].mean - value.mean, "best": arm == best}
                for arm, value in means.items()
            ]  # fmt: skip
        title = f"{label} coefficient (ring: best of the row)"
        panels.append(Panel(group, heat(title, "learning rate", most=FAR), cells))
    return Figure(
        name=f"heat_{task}",
        title=f"Where the best decay lies ({get_task(task).title})",
        alt="Two heat maps of mean validation accuracy over learning rate and decay coefficient, "
        "one for decoupled decay and one for L2. Numbers are per cent with standard deviation "
        "over seeds; darkness is closeness to the best of the row, which is ringed.",
        panels=panels,
        panel_size=(4.7, 3.3),
    )


EXPERIMENT = study(
    "decoupled_decay", Settings(), _arms,
    claims=[_same_place, _moves_less, Beats(
        DECOUPLED, L2, "Tuned AdamW reaches a higher accuracy than tuned Adam with L2",
        literature="2018 article: a tie in the mean (94.0-94.25 against 93.96 %).",
    )],
    figures=[],
    numbers="weight_decay: decoupled {:g} | l2: L2 {:g}",
    more=_bests,
    tiny={"learning_rates": (0.003, 0.01), "decoupled": ((0.03, 0.1, 1.0),),
          "l2": ((3e-4, 1e-3, 1e-2),)},
    title="Decoupled weight decay against L2",
    question="With Adam, weight decay outside the moments (AdamW) differs from an L2 term in the "
    "gradient. Which is easier to tune, and which is better after tuning?",
    setup="Adam (b2 0.99) under 1cycle, the same number of coefficients for both forms at every "
    "learning rate, on grids of factors of about three. In the maps each number is the mean "
    "validation accuracy in per cent. Darker is closer to the best of its row, and the ring marks "
    "that best.",
    reference="Loshchilov & Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101",
)  # fmt: skip
