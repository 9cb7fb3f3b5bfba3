"""Compare optimizers of the user's choice on one task, with equal budgets for tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adamw_jax import info, list_optimizers
from adamw_jax.lab.choices import unknown
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import (
    PREFIX,
    SCHEDULES,
    Arm,
    arguments,
    catalogue,
    own_momentum,
    settings,
)
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Table
from adamw_jax.lab.stats import paired, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Plan, Runner

ADAM_B2 = 0.999


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of ``adamw-jax compare``.

    Attributes:
      task: name of a task.
      optimizers: names for ``create``; the first is compared with each of the others.
      seeds: seeds of initial weights and of the order of examples.
      steps: steps of a run, a multiple of ``points``.
      points: evaluations in a run; ``evaluations(steps)`` returns a suitable number.
      learning_rates: every optimizer gets all of them.
      weight_decay: decoupled decay of the optimizers that decay by default, see ``decays``.
      b2: b2 of the optimizers whose default is Adam's 0.999; None for their default.
      schedule: schedule of every run.
    """

    task: str = "digits"
    optimizers: tuple[str, ...] = ("adamw", "radam")
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 400
    points: int = 10
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1)
    weight_decay: float = 0.1
    b2: float | None = 0.99
    schedule: str = "one_cycle"

    def __post_init__(self) -> None:
        """Check the settings before any work."""
        get_task(self.task)
        if len(set(self.optimizers)) < max(2, len(self.optimizers)):
            raise ValueError(
                "optimizers must be at least two different names, got "
                f"{', '.join(self.optimizers)!r}; choose from {', '.join(list_optimizers())}, "
                f"each perhaps with {PREFIX} before it."
            )
        for name in self.optimizers:
            check_optimizer(name)
        Plan(self.seeds, self.steps, self.points, common.BATCH_SIZE)
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be 2 or more, for an interval, got {len(self.seeds)}.")
        if self.schedule not in SCHEDULES:
            raise ValueError(unknown("schedule", self.schedule, SCHEDULES))
        if not self.learning_rates or not all(0 < rate < 100 for rate in self.learning_rates):
            raise ValueError(f"learning rates must be numbers > 0, got {self.learning_rates!r}.")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay must be a number >= 0, got {self.weight_decay!r}.")
        if self.b2 is not None and not 0 <= self.b2 < 1:
            raise ValueError(f"b2 must lie in [0, 1), got {self.b2!r}.")


def check_optimizer(name: str) -> None:
    """Raise ValueError with the choices if ``create`` does not know the name."""
    if name.removeprefix(PREFIX) not in list_optimizers():
        raise ValueError(unknown("optimizer", name, list_optimizers()))


def decays(name: str) -> bool:
    """Return whether the optimizer decays by default, like ``adamw`` and unlike ``adam``.

    The others get no decay in a comparison: with it ``adam`` would be ``adamw``.
    """
    parameter = arguments(name).get("weight_decay")
    return parameter is not None and parameter.default is not None


def numbers_for(name: str, weight_decay: float | None, b2: float | None) -> dict[str, float]:
    """Return keyword arguments of an optimizer; None for its own default.

    Arguments without default, such as the longest step of ``clipped_sgd``, come from the registry.
    """
    given = {"weight_decay": weight_decay, "b2": b2 if shortens(name) else None}
    taken = {k: v for k, v in given.items() if v is not None and k in arguments(name)}
    return {**info(name.removeprefix(PREFIX)).example, **taken}


def shortens(name: str) -> bool:
    """Return whether ``b2`` is the rate of Adam's second moment, which comparisons lower.

    Adan's is the rate of the differences; Adafactor's replaces its own rule.
    """
    b2 = arguments(name).get("b2")
    return b2 is not None and b2.default == ADAM_B2


def evaluations(steps: int) -> int:
    """Return the number of evaluations of a run: about ten, evenly spread.

    >>> evaluations(400), evaluations(405), evaluations(401)
    (10, 9, 1)
    """
    return min((n for n in range(1, 21) if steps % n == 0), key=lambda n: abs(n - 10))


def measure(s: Settings, runner: Runner) -> Rows:
    """Train every optimizer at every learning rate."""
    arms = [
        Arm(name, catalogue(name), s.schedule, rate,
            settings(**numbers_for(name, s.weight_decay if decays(name) else None, s.b2)))
        for name in s.optimizers
        for rate in s.learning_rates
    ]  # fmt: skip
    return runner.train(s.task, arms, Plan(s.seeds, s.steps, s.points, common.BATCH_SIZE))


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare every optimizer with the first, each at its best learning rate."""
    first = s.optimizers[0]
    ends = common.at_end(rows)
    best = {name: common.best_arm(common.where(rows, group=name)) for name in s.optimizers}
    values = {n: common.column(common.where(ends, arm=best[n]), "test_accuracy") for n in best}
    lines_of: list[Row] = []
    for name in s.optimizers:
        same = common.where(ends, arm=best[name])
        line: dict[str, Any] = {
            "optimizer": name,
            "learning_rate": same[0]["learning_rate"],
            "mean": spread(values[name]).mean,
            "sd": spread(values[name]).sd,
            "weight_decay": same[0].get("weight_decay"),
            "loss": spread(common.column(same, "test_loss")).mean,
        }
        if name != first:
            difference = paired(values[name], values[first])
            line |= {f"difference_{k}": v for k, v in dataclasses.asdict(difference).items()}
            line["difference"] = common.interval(difference, "test_accuracy")
        lines_of.append(line)
    columns = [
        Column("optimizer", "optimizer"),
        Column("learning_rate", "best lr", "{:g}"),
        Column("weight_decay", "weight decay", "{:g}"),
        Column("mean", "test accuracy", "{:.1%}"),
        Column("sd", "± sd", "{:.1%}"),
        Column("loss", "test loss", "{:.3f}"),
        Column("difference", f"difference to {first}, 95 % interval"),
    ]
    verdicts = [
        common.compare_groups(
            rows, s.task, name, first, f"{name} reaches a higher accuracy than {first}"
        )
        for name in s.optimizers[1:]
    ]
    tables = [
        Table("summary", f"Each optimizer at its best learning rate, {len(s.seeds)} seeds", columns,
              lines_of),
        common.arms_table("settings", "Every setting", rows,
                          Column("weight_decay", "weight decay", "{:g}")),
    ]  # fmt: skip
    remarks = [_decay_remark(s), *_kept(s), *_edges(s, rows, best)]
    return Result(verdicts, tables, [_figure(s, rows, best)], remarks)


def _decay_remark(s: Settings) -> str:
    """State which of the optimizers decay."""
    with_decay = [name for name in s.optimizers if decays(name)]
    without = [name for name in s.optimizers if not decays(name)]
    parts = [f"Decoupled weight decay of {s.weight_decay:g}: {', '.join(with_decay) or 'none'}."]
    if without:
        parts.append(f"Without decay, as is their default: {', '.join(without)}.")
    return " ".join(parts)


def _kept(s: Settings) -> list[str]:
    """State which of the optimizers keep their own rates."""
    usual = [name for name in s.optimizers if shortens(name)]
    other = [name for name in s.optimizers if not shortens(name)]
    remarks = []
    if s.b2 is not None and usual and other:
        remarks.append(f"b2 is {s.b2:g} in {', '.join(usual)}; {', '.join(other)}: as by default.")
    own = {name: own_momentum(name) for name in s.optimizers}
    remarks += [
        f"{name} keeps its own momentum, {value:g}, whatever the schedule does."
        for name, value in own.items()
        if value is not None
    ]
    return remarks


def _edges(s: Settings, rows: Sequence[Row], best: dict[str, str]) -> list[str]:
    """Warn of each optimizer whose best learning rate is at an end of the grid."""
    ends = {min(s.learning_rates), max(s.learning_rates)}
    chosen = {n: common.where(rows, arm=arm)[0]["learning_rate"] for n, arm in best.items()}
    return [
        f"The best learning rate of {name}, {rate:g}, is at the edge of the grid; a wider "
        "--lr-grid may treat it better."
        for name, rate in chosen.items()
        if rate in ends
    ]


def _figure(s: Settings, rows: Sequence[Row], best: dict[str, str]) -> Figure:
    ends = common.at_end(rows)
    fan: list[Row] = []
    for name in s.optimizers:
        for rate in sorted(s.learning_rates):
            same = common.where(ends, group=name, learning_rate=rate)
            value = spread(common.column(same, "test_accuracy"))
            fan.append({"series": name, "x": rate, "y": value.mean,
                        "low": value.mean - value.sd, "high": value.mean + value.sd})  # fmt: skip
    dots = [
        {"series": name, "seed": row["seed"], "value": row["test_accuracy"]}
        for name in s.optimizers
        for row in common.where(ends, arm=best[name])
    ]
    return Figure(
        name="accuracy",
        title=f"{', '.join(s.optimizers)} on {get_task(s.task).title}",
        alt="Three panels: test accuracy against the learning rate for every optimizer; the "
        "accuracy during training at the best learning rate; and at its end, seed by seed.",
        panels=[
            Panel(
                "Against the learning rate",
                lines("learning rate", "test accuracy", xscale="log", percent=True, spread="bars",
                      markers=True, ticks_at_data=True, legend="lower center"),
                fan,
            ),
            Panel(
                "During training, at the best lr",
                lines("epochs", "test accuracy", percent=True, legend="lower right"),
                common.curve_rows(rows, best.values(), "test_accuracy"),
            ),
            Panel("Seed by seed, at the best lr", paired_dots("test accuracy", percent=True), dots),
        ],
        columns=3,
    )  # fmt: skip


EXPERIMENT = register(
    Experiment(
        name="compare",
        title="Comparison",
        question="Which of these optimizers is the best on this task, and by how much?",
        setup="Every optimizer is trained with the same learning rates, seeds and steps, and with "
        "weight decay if it decays by default. Each is shown at its best learning rate by "
        "validation accuracy; results are on test data.",
        presets={"demo": Settings(), "quick": Settings(seeds=(0, 1), steps=100),
                 "tiny": Settings(seeds=(0, 1), steps=20, points=2, learning_rates=(0.01,))},
        measure=measure,
        analyse=analyse,
    )
)  # fmt: skip
