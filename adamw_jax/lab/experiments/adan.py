"""Compare Adan with AdamW over batch sizes, at the same number of epochs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from adamw_jax import adamw, adan
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.parts import columns, curves, experiment
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import Arm, Recipe, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Job, Plan, Runner

# Each keeps its own decay rates, so the carrier's momentum is not used.
ADAMW = Recipe("adamw, own rates", lambda carrier, n: adamw(carrier.learning_rate, **n))
ADAN = Recipe("adan, own rates", lambda carrier, n: adan(carrier.learning_rate, **n))
RECIPES = {"AdamW": ADAMW, "Adan": ADAN}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Both get every learning rate at every batch size.

    Attributes:
      tasks: names of tasks.
      batches: batch sizes, rising.
      epochs: passes over the training examples, the same for all batch sizes.
      learning_rates: the grid of a task, for both contenders and all batch sizes.
      decays: decoupled weight decay of a task.
      seeds: seeds of initial weights and of the order of examples.
    """

    tasks: tuple[str, ...] = ("mnist1d", "digits_noisy")
    batches: tuple[tuple[int, ...], ...] = ((100, 400, 2000), (25, 100, 500))
    epochs: tuple[int, ...] = (20, 20)
    learning_rates: tuple[tuple[float, ...], ...] = (
        (0.01, 0.03, 0.1, 0.3),
        (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    )
    decays: tuple[float, ...] = (0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3)


def measure(s: Settings, runner: Runner) -> Rows:
    """Train both under the learning rates of 1cycle."""
    arms = {
        task: tuple(
            Arm(name, recipe, "one_cycle", rate, settings(weight_decay=decay))
            for name, recipe in RECIPES.items()
            for rate in rates
        )
        for task, rates, decay in zip(s.tasks, s.learning_rates, s.decays, strict=True)
    }
    jobs = []
    for task, batches, epochs in zip(s.tasks, s.batches, s.epochs, strict=True):
        for batch in batches:
            steps = epochs * (len(get_task(task).train) // batch)
            jobs.append(Job(task, arms[task], Plan(s.seeds, steps, 1, batch)))
    rows = iter(runner.train_all(jobs))
    return [
        {**next(rows), "batch": job.plan.batch_size}
        for job in jobs
        for _ in range(len(job.arms) * len(s.seeds))
    ]


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge the loss by large batches, and which is better at the smallest and largest batch."""
    verdicts, table, panels = [], [], []
    for task, batches in zip(s.tasks, s.batches, strict=True):
        mine = common.where(rows, task=task)
        verdicts.append(_tolerance(task, mine, batches))
        for batch, size in ((batches[0], "smallest"), (batches[-1], "largest")):
            now = common.where(mine, batch=batch)
            verdict = common.compare_groups(
                now, task, "Adan", "AdamW",
                f"At the {size} batch, Adan reaches a higher accuracy than AdamW",
                literature="Xie et al.: higher or comparable accuracy with half of the epochs."
            )  # fmt: skip
            named = f"{verdict.task}, batch {batch:,}"
            verdicts.append(dataclasses.replace(verdict, task=named))
        for batch in batches:
            each = common.arms_table("", "", common.where(mine, batch=batch)).rows
            table += [{**line, "batch": batch} for line in each]
        panels.append(_panel(task, mine, batches))
    shown = columns(
        "task | batch {:,} | group: contender | learning_rate: lr {:g} | "
        "validation_accuracy_mean: validation accuracy {:.1%} | test_accuracy_mean: test "
        "accuracy {:.1%} | test_accuracy_sd: ± sd {:.1%} | train_loss_mean: training loss "
        "{:.3f} | chosen"
    )
    figure = Figure(
        name="batches",
        title="Test accuracy against batch size at equal epochs",
        alt="Lines of test accuracy against batch size for AdamW and Adan, each at its best "
        "learning rate, mean and standard deviation over seeds: "
        + "; ".join(f"{p.title}: {_ends(p.rows)}" for p in panels)
        + ".",
        panels=panels,
    )
    return Result(
        verdicts, [Table("settings", "Every setting", shown, table)], [figure], _edges(s, table)
    )


def at_best(rows: Sequence[Row], group: str, batch: int) -> list[Row]:
    """Return the rows of a contender at its best learning rate by validation accuracy."""
    mine = common.where(rows, group=group, batch=batch)
    return common.where(mine, arm=common.best_arm(mine))


def _tolerance(task: str, rows: Sequence[Row], batches: Sequence[int]) -> Verdict:
    """Judge the accuracy lost from the smallest to the largest batch."""
    small, large = batches[0], batches[-1]
    lost = {}
    for group in RECIPES:
        before, after = (
            common.column(at_best(rows, group, batch), "test_accuracy") for batch in (small, large)
        )
        lost[group] = [a - b for a, b in zip(before, after, strict=True)]
    difference = paired(lost["AdamW"], lost["Adan"])
    mean = {group: 100 * spread(values).mean for group, values in lost.items()}
    return Verdict(
        claim="Adan loses less accuracy than AdamW when the batch grows and the epochs stay",
        task=f"{get_task(task).title}, batch {small:,} to {large:,}",
        word=decide(difference, common.ACCURACY_MARGIN),
        evidence=f"Points lost: Adan {mean['Adan']:.1f}, AdamW {mean['AdamW']:.1f}; difference "
        f"{common.interval(difference, 'test_accuracy')}.",
        rule=rule(
            "AdamW's loss of test accuracy less Adan's, each at its best validation accuracy at "
            "both batch sizes",
            f"{100 * common.ACCURACY_MARGIN:g} point",
        ),
        literature="Xie et al.: great tolerance of batch sizes from 1k to 32k.",
    )


def _panel(task: str, rows: Sequence[Row], batches: Sequence[int]) -> Panel:
    best = [row for group in RECIPES for batch in batches for row in at_best(rows, group, batch)]
    draw = lines(
        "batch size", "test accuracy", xscale="log", percent=True, spread="bars", markers=True,
        ticks_at_data=True, legend="upper right",
    )  # fmt: skip
    return Panel(get_task(task).title, draw, curves(best, "batch", "test_accuracy", by="group"))


def _ends(rows: Sequence[Row]) -> str:
    said = []
    for group in RECIPES:
        values = [row["y"] for row in rows if row["series"] == group]
        said.append(f"{group} {100 * values[0]:.1f} to {100 * values[-1]:.1f} %")
    return ", ".join(said)


def _edges(s: Settings, table: Sequence[Row]) -> list[str]:
    """Name the contenders whose best learning rate is at an end of the grid."""
    grids = dict(zip(s.tasks, s.learning_rates, strict=True))
    found = [
        f"{row['group']} on {row['task']} at batch {row['batch']:,} (lr {row['learning_rate']:g})"
        for row in table
        if row["chosen"] and row["learning_rate"] in (grids[row["task"]][0], grids[row["task"]][-1])
    ]
    return [f"Best at an end of the grid of learning rates: {', '.join(found)}."] if found else []


EXPERIMENT = experiment(
    "adan", Settings(), measure, analyse,
    quick={"epochs": (5, 5), "batches": ((200, 2000), (100, 500))},
    tiny={"tasks": ("digits",), "batches": ((100, 500),), "epochs": (2,), "decays": (0.1,),
        "learning_rates": ((0.01, 0.03),), "seeds": (0, 1)},
    title="Adan against AdamW over batch sizes",
    question="With a fixed number of epochs, a larger batch means fewer steps. Adan's momentum "
    "looks ahead along the change of the gradient. Does Adan lose less than AdamW?",
    setup="Both use the learning rate of 1cycle, their own default decay rates of the averages, "
    "the same decoupled decay and the same grid of learning rates. Every batch size trains for "
    "the same number of epochs. Each is shown at its best learning rate of that batch size by "
    "validation accuracy. Changed after a first look: the grids of learning rates were widened "
    "for both, because the best was at an end, and one batch size of four was left out to save "
    "time.",
    reference="Xie, Zhou, Li, Lin & Yan, Adan: Adaptive Nesterov Momentum Algorithm for Faster "
    "Optimizing Deep Models, TPAMI 2024, arXiv 2208.06677",
)  # fmt: skip
