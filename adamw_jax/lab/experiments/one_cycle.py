"""Compare 1cycle with a constant learning rate, in the same number of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import ADAM, Arm, settings, tables
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner

ONE_CYCLE, CONSTANT = "1cycle", "constant"


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Both contenders get every learning rate with every decay."""

    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    decays: tuple[tuple[float, ...], ...] = ((0.1, 0.3), (1.0, 3.0))


def measure(s: Settings, runner: Runner) -> Rows:
    """Train AdamW under both schedules."""

    def arms(task: str) -> list[Arm]:
        return [
            Arm(group, ADAM, schedule, rate, settings(b2=0.99, l2=0.0, weight_decay=decay))
            for group, schedule in ((ONE_CYCLE, "one_cycle"), (CONSTANT, "constant"))
            for rate in s.learning_rates
            for decay in s.decays[s.tasks.index(task)]
        ]

    return common.train_all(s, runner, arms)


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare the two at their best settings."""
    verdicts = [
        common.compare_groups(
            rows,
            task,
            ONE_CYCLE,
            CONSTANT,
            "1cycle reaches a higher accuracy than a constant learning rate in the same steps",
            literature="Smith & Topin 2017: yes (super-convergence).",
        )
        for task in s.tasks
    ]
    table = common.arms_table(
        "settings", "Every setting", rows, Column("weight_decay", "decay", "{:g}")
    )
    return Result(verdicts, [table], [_curves(s, rows), _schedule(s, rows)], _head_start(s, rows))


def _best(rows: Sequence[Row], task: str) -> dict[str, str]:
    mine = common.where(rows, task=task)
    return {g: common.best_arm(common.where(mine, group=g)) for g in (ONE_CYCLE, CONSTANT)}


def _curves(s: Settings, rows: Sequence[Row]) -> Figure:
    return Figure(
        name="accuracy",
        title="Test accuracy during training: 1cycle against a constant learning rate",
        alt="Line plots of test accuracy against epochs for AdamW with 1cycle and with a "
        "constant learning rate, each at its best setting; lines are means and bands are "
        "standard deviations over seeds.",
        panels=[
            Panel(
                get_task(task).title,
                lines("epochs", "test accuracy", percent=True, legend="lower right"),
                common.curve_rows(
                    common.where(rows, task=task), _best(rows, task).values(), "test_accuracy"
                ),
            )
            for task in s.tasks
        ],
    )


def _schedule(s: Settings, rows: Sequence[Row]) -> Figure:
    """Draw the two schedules on the first task."""
    task = s.tasks[0]
    steps = s.plan(task).steps
    curves: dict[str, list[dict[str, Any]]] = {"rate": [], "momentum": []}
    for group, arm in _best(rows, task).items():
        row = common.where(rows, arm=arm)[0]
        rates, momenta = tables(row["schedule"], row["learning_rate"], steps)
        stride = max(1, steps // 120)
        for i in range(0, steps, stride):
            curves["rate"].append({"series": group, "x": i, "y": float(rates[i])})
            curves["momentum"].append({"series": group, "x": i, "y": float(momenta[i])})
    return Figure(
        name="schedule",
        title=f"The schedules behind it ({get_task(task).title})",
        alt="Two line plots against steps: under 1cycle the learning rate rises to its maximum and "
        "falls to almost zero while momentum does the opposite; the constant schedule is flat.",
        panels=[
            Panel("Learning rate", lines("step", "learning rate", spread="none"), curves["rate"]),
            Panel("Momentum (b1)", lines("step", "b1", spread="none"), curves["momentum"]),
        ],
        panel_size=(4.6, 2.7),
    )


def _head_start(s: Settings, rows: Sequence[Row]) -> list[str]:
    """State when 1cycle passes the best result of the constant rate."""
    out = []
    for task in s.tasks:
        mine, best = common.where(rows, task=task), _best(rows, task)
        curve = {
            group: [(r["x"], r["y"]) for r in common.curve_rows(mine, [arm], "test_accuracy")]
            for group, arm in best.items()
        }
        top = max(y for _, y in curve[CONSTANT])
        ahead = [x for x, y in curve[ONE_CYCLE] if y > top]
        whole = curve[ONE_CYCLE][-1][0]
        when = (
            f"passes it after {ahead[0]:.0f} of {whole:.0f} epochs"
            if ahead
            else f"does not pass it in {whole:.0f} epochs"
        )
        out.append(
            f"{get_task(task).title}: the constant learning rate peaks at {100 * top:.1f} % mean "
            f"test accuracy; 1cycle {when}."
        )
    return out


EXPERIMENT = register(
    Experiment(
        name="one_cycle",
        title="1cycle against a constant learning rate",
        question="1cycle raises the learning rate to a maximum and lets it fall to zero, while "
        "momentum does the opposite. Does this train better in the same number of steps than a "
        "constant learning rate?",
        setup="AdamW (b2 0.99). Both schedules get the same grid of learning rates and decays; "
        "each is shown at its best setting by validation accuracy.",
        presets={
            "demo": Settings(),
            "quick": common.short(Settings(), "quick"),
            "tiny": common.short(Settings(learning_rates=(0.01,)), "tiny"),
        },
        measure=measure,
        analyse=analyse,
        reference="Smith & Topin, Super-Convergence, arXiv 1708.07120",
    )
)
