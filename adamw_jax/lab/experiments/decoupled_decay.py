"""Compare decoupled weight decay with L2 over learning rates and coefficients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.heat import heat
from adamw_jax.lab.recipes import ADAM, Arm, settings
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner

DECOUPLED, L2 = "AdamW (decoupled)", "Adam + L2"
KEY = {DECOUPLED: "weight_decay", L2: "l2"}
FAR = 0.08
MOVE_MARGIN = 0.25


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Both forms get every learning rate and equally many coefficients in factors of about 3."""

    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    decoupled: tuple[tuple[float, ...], ...] = ((0.03, 0.1, 0.3, 1.0), (0.3, 1.0, 3.0, 10.0))
    l2: tuple[tuple[float, ...], ...] = (
        (3e-4, 1e-3, 3e-3, 1e-2),
        (1e-3, 3e-3, 1e-2, 3e-2),
    )


def measure(s: Settings, runner: Runner) -> Rows:
    """Train Adam with either form of decay under 1cycle."""

    def arms(task: str) -> list[Arm]:
        i = s.tasks.index(task)
        numbers = [(DECOUPLED, settings(b2=0.99, l2=0.0, weight_decay=d)) for d in s.decoupled[i]]
        numbers += [(L2, settings(b2=0.99, l2=d, weight_decay=0.0)) for d in s.l2[i]]
        return [
            Arm(group, ADAM, "one_cycle", rate, chosen)
            for rate in s.learning_rates
            for group, chosen in numbers
        ]

    return common.train_all(s, runner, arms)


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge the best coefficient, how far it moves, and the tuned accuracies."""
    verdicts: list[Verdict] = []
    moves = []
    for task in s.tasks:
        mine = common.where(rows, task=task)
        verdicts += [
            _same_place(task, mine),
            _moves_less(s, task, mine),
            common.compare_groups(
                rows, task, DECOUPLED, L2,
                "Tuned AdamW reaches a higher accuracy than tuned Adam with L2",
                literature="2018 article: a tie in the mean (94.0-94.25 against 93.96 %).",
            ),
        ]  # fmt: skip
        for group in (DECOUPLED, L2):
            for rate in s.learning_rates:
                arm = best_at(mine, group, rate)
                moves.append(
                    {
                        "task": task,
                        "form": group,
                        "learning_rate": rate,
                        "best": common.where(mine, arm=arm)[0][KEY[group]],
                        "accuracy": spread(_test(mine, arm)).mean,
                    }
                )
    columns = [
        Column("task", "task"),
        Column("form", "form"),
        Column("learning_rate", "lr", "{:g}"),
        Column("best", "best coefficient", "{:g}"),
        Column("accuracy", "its test accuracy", "{:.1%}"),
    ]
    tables = [
        Table("best", "The best coefficient at every learning rate", columns, moves),
        common.arms_table(
            "settings", "Every setting", rows,
            Column("weight_decay", "decoupled", "{:g}"), Column("l2", "L2", "{:g}"),
        ),
    ]  # fmt: skip
    return Result(verdicts, tables, [_maps(s, rows, task) for task in s.tasks])


def best_at(rows: Sequence[Row], group: str, rate: float) -> str:
    """Return the best arm of a form at one learning rate, by validation accuracy."""
    return common.best_arm(common.where(rows, group=group, learning_rate=rate))


def _test(rows: Sequence[Row], arm: str) -> list[float]:
    return common.column(common.at_end(common.where(rows, arm=arm)), "test_accuracy")


def _same_place(task: str, rows: Sequence[Row]) -> Verdict:
    rates = common.unique(rows, "learning_rate")
    best = {
        group: [common.where(rows, arm=best_at(rows, group, r))[0][KEY[group]] for r in rates]
        for group in (DECOUPLED, L2)
    }
    same = {group: len(set(values)) == 1 for group, values in best.items()}
    word = "shown" if same[DECOUPLED] and not same[L2] else "contradicted"
    if same[DECOUPLED] and same[L2]:
        word = "equivalent"
    at = ", ".join(f"{r:g}" for r in rates)
    return Verdict(
        claim="The best decoupled decay is the same at every learning rate; the best L2 moves",
        task=get_task(task).title,
        word=word,
        evidence=f"Best at lr {at}: decoupled {_listed(best[DECOUPLED])}; L2 {_listed(best[L2])}.",
        rule="Coefficient of the best mean validation accuracy: the same at all rates for "
        "decoupled decay only, shown; for both, equivalent; else contradicted.",
        literature="Loshchilov & Hutter: yes, on a fine grid.",
    )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _moves_less(s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
    """Judge how far the best coefficient moves per decade of learning rate, for every seed."""
    ends = common.at_end(rows)
    speed = {
        group: [
            drift(common.where(ends, group=group, seed=seed), s.learning_rates, KEY[group])
            for seed in s.seeds
        ]
        for group in (DECOUPLED, L2)
    }
    size = {group: [abs(value) for value in values] for group, values in speed.items()}
    difference = paired(size[L2], size[DECOUPLED])
    return Verdict(
        claim="As the learning rate grows, the best decoupled decay moves less than the best L2",
        task=get_task(task).title,
        word=decide(difference, MOVE_MARGIN),
        evidence=f"Decades per decade of learning rate: decoupled "
        f"{spread(speed[DECOUPLED]).mean:+.2f}, L2 {spread(speed[L2]).mean:+.2f}; difference in "
        f"size {difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}].",
        rule=rule(
            "how much faster L2's best moves, seed by seed (tops of parabolas through validation "
            "accuracy over the logarithm of the coefficient)",
            f"{MOVE_MARGIN:g} decades",
        ),
        literature="Loshchilov & Hutter: yes (the two become separable).",
    )


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
    mine = common.where(rows, task=task)
    panels = []
    for group, label in ((DECOUPLED, "decay"), (L2, "L2")):
        cells = []
        for rate in s.learning_rates:
            line = common.at_end(common.where(mine, group=group, learning_rate=rate))
            best = best_at(mine, group, rate)
            means = {
                arm: spread(common.column(common.where(line, arm=arm), "validation_accuracy"))
                for arm in common.unique(line, "arm")
            }
            for arm, value in means.items():
                cells.append(
                    {
                        "x": common.where(line, arm=arm)[0][KEY[group]],
                        "y": rate,
                        "mean": value.mean,
                        "sd": value.sd,
                        "gap": means[best].mean - value.mean,
                        "best": arm == best,
                    }
                )
        panels.append(
            Panel(
                group,
                heat(f"{label} coefficient (ring: best of the row)", "learning rate", most=FAR),
                cells,
            )
        )
    return Figure(
        name=f"heat_{task}",
        title=f"Where the best decay lies ({get_task(task).title})",
        alt="Two heat maps of mean validation accuracy over learning rate and decay coefficient, "
        "one for decoupled decay and one for L2. Numbers are per cent with standard deviation "
        "over seeds; darkness is closeness to the best of the row, which is ringed.",
        panels=panels,
        panel_size=(4.7, 3.3),
    )


EXPERIMENT = register(
    Experiment(
        name="decoupled_decay",
        title="Decoupled weight decay against L2",
        question="With Adam, weight decay outside the moments (AdamW) differs from an L2 term in "
        "the gradient. Which is easier to tune, and which is better after tuning?",
        setup="Adam (b2 0.99) under 1cycle, the same number of coefficients for both forms at "
        "every learning rate, on grids of factors of about three. In the maps each number is the "
        "mean validation accuracy in per cent. Darker is closer to the best of its row, and the "
        "ring marks that best.",
        presets={
            "demo": Settings(),
            "quick": common.short(Settings(), "quick"),
            "tiny": common.short(
                Settings(
                    learning_rates=(0.003, 0.01),
                    decoupled=((0.03, 0.1, 1.0),),
                    l2=((3e-4, 1e-3, 1e-2),),
                ),
                "tiny",
            ),
        },
        measure=measure,
        analyse=analyse,
        reference="Loshchilov & Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101",
    )
)
