"""Declare comparisons of training runs: arms, claims and figures. The rest is shared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.common import METRIC_NAMES, at_end, best_rows, tuned
from adamw_jax.lab.experiments.parts import experiment, where
from adamw_jax.lab.experiments.registry import Experiment, Rows
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import Arm, Recipe, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Verdict
from adamw_jax.lab.tasks import get_task

Claim = Callable[[Any, str, Sequence[Row]], Verdict]
Picture = Callable[[Any, Sequence[Row]], Figure]


@dataclasses.dataclass(frozen=True)
class Compared(common.Training):
    """Settings of a comparison in two stages.

    Attributes:
      fresh: seeds on which only the best setting of every contender is trained, and judged.
    """

    fresh: int = 16


@dataclasses.dataclass(frozen=True)
class Grid(Compared):
    """Every contender gets every learning rate with every decay.

    Attributes:
      learning_rates: peaks of the schedule.
      decays: decoupled decays, per task.
    """

    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    decays: tuple[tuple[float, ...], ...] = ((0.1, 0.3), (1.0, 3.0))


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer with a schedule and fixed numbers."""

    recipe: Recipe
    schedule: str
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict)


def over_grid(contenders: Mapping[str, Contender]) -> Callable[[Grid, str], list[Arm]]:
    """Return a function that makes the arms of all contenders on a task, over the grid."""

    def arms(s: Grid, task: str) -> list[Arm]:
        return [
            Arm(name, one.recipe, one.schedule, rate, settings(**one.numbers, weight_decay=decay))
            for rate in s.learning_rates
            for decay in s.decays[s.tasks.index(task)]
            for name, one in contenders.items()
        ]

    return arms


@dataclasses.dataclass(frozen=True)
class Beats:
    """The claim that ``a`` is better than ``b``, each at its best setting on validation data.

    Attributes:
      a: name of a contender.
      b: name of another.
      claim: the claim in words.
      metric: what is compared.
      by: the validation metric that chooses the settings; by default the accuracy.
      literature: findings of others.
    """

    a: str
    b: str
    claim: str
    metric: str = "test_accuracy"
    by: str = "validation_accuracy"
    literature: str = ""

    def __call__(self, s: Any, task: str, rows: Sequence[Row]) -> Verdict:
        """Return the verdict."""
        return common.compare_groups(rows, task, **dataclasses.asdict(self))


def by_epoch(s: Any, rows: Sequence[Row], groups: Iterable[str], **texts: str) -> Figure:
    """Return a figure of test accuracy over epochs, each contender at its best setting."""
    panels = []
    for task in s.tasks:
        mine = where(rows, task=task)
        best = {group: best_rows(mine, group) for group in groups}
        draw = lines("epochs", "test accuracy", percent=True, legend="lower right")
        points = [
            each for rows in best.values()
            for each in common.curve_rows(rows, [rows[0]["arm"]], "test_accuracy")
        ]  # fmt: skip
        panels.append(Panel(get_task(task).title, draw, points))
    return Figure(**texts, panels=panels)  # type: ignore[arg-type]


def by_seed(
    s: Any,
    rows: Sequence[Row],
    groups: Sequence[str],
    metrics: Mapping[str, str],
    panel_size: tuple[float, float] = (4.6, 3.0),
    **texts: Any,
) -> Figure:
    """Return a figure with a dot for every seed, each contender at its best setting.

    Args:
      s: the settings.
      rows: rows of training.
      groups: names of contenders.
      metrics: what is shown, and the validation metric that chooses the settings.
      panel_size: size of a panel.
      **texts: name, title, alt and others of ``Figure``.
    """
    panels = []
    for task in s.tasks:
        mine = where(rows, task=task)
        for metric, by in metrics.items():
            points = [
                {"series": group, "seed": row["seed"], "value": row[metric]}
                for group in groups
                for row in at_end(best_rows(mine, group, by))
            ]
            what = f": {METRIC_NAMES[metric]}" if len(metrics) > 1 else ""
            draw = paired_dots(METRIC_NAMES[metric], percent=metric.endswith("accuracy"))
            panels.append(Panel(get_task(task).title + what, draw, points))
    return Figure(**texts, panels=panels, panel_size=panel_size)


def study(
    name: str,
    full: Any,
    arms: Callable[[Any, str], Sequence[Arm]],
    *,
    claims: Sequence[Claim] | Callable[[Any], Sequence[Claim]],
    figures: Sequence[Picture],
    numbers: str = "weight_decay: decay {:g}",
    more: Callable[[Any, Rows], Result] = lambda s, rows: Result(),
    tiny: Mapping[str, Any],
    **texts: str,
) -> Experiment:
    """Register a comparison of training runs.

    Args:
      name: name on the command line.
      full: settings of the preset ``"demo"``, a ``common.Training``.
      arms: (settings, task) -> what is trained.
      claims: each is judged on every task; a function of the settings may return them. Like the
        figures they are given the runs that chose settings and those on fresh seeds; ``tuned`` and
        ``best_rows`` tell them apart.
      figures: the pictures.
      numbers: columns of the table of settings, besides learning rate and metrics.
      more: (settings, rows) -> more tables, figures and remarks.
      tiny: settings that are changed for tests, besides those of ``common.short``.
      **texts: title, question, setup and reference.
    """

    def measure(s: Any, runner: Any) -> Rows:
        return common.train_all(s, runner, lambda task: arms(s, task))

    def analyse(s: Any, rows: Rows) -> Result:
        judged = claims(s) if callable(claims) else claims
        verdicts = [claim(s, task, where(rows, task=task)) for task in s.tasks for claim in judged]
        table = common.arms_table("settings", "Every setting", tuned(rows), numbers)
        own = more(s, rows)
        pictures = [picture(s, rows) for picture in figures] + list(own.figures)
        return Result(verdicts, [*own.tables, table], pictures, own.remarks)

    quick = common.short(full, "quick")
    small = common.short(dataclasses.replace(full, **tiny), "tiny")
    return experiment(name, full, measure, analyse, quick=quick, tiny=small, **texts)
