"""Compare AMSGrad, in PyTorch's form, with Adam in loss and in accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.recipes import ADAM, Arm, catalogue, settings
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner

ADAM_NAME, AMSGRAD = "Adam", "AMSGrad"


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Both get every learning rate with every decoupled decay."""

    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    decays: tuple[tuple[float, ...], ...] = ((0.1, 0.3), (1.0, 3.0))


def measure(s: Settings, runner: Runner) -> Rows:
    """Train both under 1cycle."""
    amsgrad = catalogue("amsgrad", maximum="raw")

    def arms(task: str) -> list[Arm]:
        out = []
        for rate in s.learning_rates:
            for decay in s.decays[s.tasks.index(task)]:
                adam = settings(b2=0.99, l2=0.0, weight_decay=decay)
                out.append(Arm(ADAM_NAME, ADAM, "one_cycle", rate, adam))
                numbers = settings(b2=0.99, weight_decay=decay)
                out.append(Arm(AMSGRAD, amsgrad, "one_cycle", rate, numbers))
        return out

    return common.train_all(s, runner, arms)


def analyse(s: Settings, rows: Rows) -> Result:
    """Return two verdicts per task."""
    verdicts = []
    for task in s.tasks:
        verdicts += [
            common.compare_groups(
                rows, task, AMSGRAD, ADAM_NAME, "AMSGrad reaches a higher accuracy than Adam",
                literature="2018 article: no, never.",
            ),
            common.compare_groups(
                rows, task, AMSGRAD, ADAM_NAME, "AMSGrad reaches a lower test loss than Adam",
                metric="test_loss", by="validation_loss",
                literature="2018 article: slightly, in some runs.",
            ),
        ]  # fmt: skip
    table = common.arms_table(
        "settings", "Every setting", rows, Column("weight_decay", "decay", "{:g}")
    )
    return Result(verdicts, [table], [_dots(s, rows)])


def _dots(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for task in s.tasks:
        mine = common.where(rows, task=task)
        for metric, by, name in (
            ("test_accuracy", "validation_accuracy", "test accuracy"),
            ("test_loss", "validation_loss", "test loss"),
        ):
            points = [
                {"series": group, "seed": row["seed"], "value": row[metric]}
                for group in (ADAM_NAME, AMSGRAD)
                for row in common.at_end(
                    common.where(mine, arm=common.best_arm(common.where(mine, group=group), by))
                )
            ]
            draw = paired_dots(name, percent=metric == "test_accuracy")
            panels.append(Panel(f"{get_task(task).title}: {name}", draw, points))
    return Figure(
        name="seeds",
        title="Adam and AMSGrad, seed by seed",
        alt="Dots for every seed under Adam and under AMSGrad, joined by lines, with the means: "
        "test accuracy and test loss on each task, each optimizer at its best setting.",
        panels=panels,
        panel_size=(4.6, 3.0),
    )


EXPERIMENT = register(
    Experiment(
        name="amsgrad",
        title="AMSGrad against Adam",
        question="AMSGrad keeps the largest second moment so far, which repairs Adam's proof of "
        "convergence. Does it help in problems on which Adam works?",
        setup="PyTorch's form (maximum of the raw second moment, corrected afterwards), which is "
        "also the form of the 2018 article; decoupled decay, 1cycle, b2 0.99, the same grid for "
        "both. For accuracy each is shown at its best setting by validation accuracy, for loss by "
        "validation loss.",
        presets={
            "demo": Settings(),
            "quick": common.short(Settings(), "quick"),
            "tiny": common.short(Settings(learning_rates=(0.01,)), "tiny"),
        },
        measure=measure,
        analyse=analyse,
        reference="Reddi, Kale & Kumar, On the Convergence of Adam and Beyond, ICLR 2018",
    )
)
