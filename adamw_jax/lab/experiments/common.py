"""Share code of the training experiments: settings, best settings, comparisons.

Everything is chosen on the validation split and reported on the test split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from adamw_jax.lab.experiments.parts import column, columns, point, unique, where
from adamw_jax.lab.recipes import Arm
from adamw_jax.lab.results import Row, Table, Verdict
from adamw_jax.lab.stats import Interval, decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import METRICS, Job, Plan, Runner

ACCURACY_MARGIN = 0.01
LOSS_MARGIN = 0.02
BATCH_SIZE = 100


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of the training experiments.

    Attributes:
      tasks: names of tasks.
      epochs: passes over the training examples, per task.
      seeds: seeds of initial weights and of the order of examples.
      points: evaluations in a run.
    """

    tasks: tuple[str, ...] = ("mnist1d", "digits_noisy")
    epochs: tuple[int, ...] = (30, 30)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    points: int = 15

    def plan(self, task: str) -> Plan:
        """Return the plan for a task: whole epochs, rounded down to a multiple of ``points``."""
        epochs = self.epochs[self.tasks.index(task)]
        steps = epochs * (len(get_task(task).train) // BATCH_SIZE)
        return Plan(self.seeds, steps // self.points * self.points, self.points, BATCH_SIZE)


def short(settings: Any, preset: str) -> Any:
    """Return settings with fewer epochs, for a quick look (``"quick"``) or a test (``"tiny"``)."""
    if preset == "quick":
        return dataclasses.replace(settings, epochs=(5, 10), points=5)
    return dataclasses.replace(settings, tasks=("digits",), epochs=(2,), seeds=(0, 1), points=4)


def train_all(
    settings: Training, runner: Runner, arms_of: Callable[[str], Sequence[Arm]]
) -> list[dict[str, Any]]:
    """Train ``arms_of(task)`` on every task."""
    return runner.train_all(
        [Job(task, tuple(arms_of(task)), settings.plan(task)) for task in settings.tasks]
    )


def at_end(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the last evaluation of each task."""
    rows = list(rows)
    last: dict[str, int] = {}
    for row in rows:
        last[row["task"]] = max(last.get(row["task"], 0), row["step"])
    return [row for row in rows if row["step"] == last[row["task"]]]


def best_arm(rows: Sequence[Row], by: str = "validation_accuracy") -> str:
    """Return the arm with the best mean at the end; the first of equals.

    Args:
      rows: rows of one task and one contender.
      by: a metric; the best is the highest ``..._accuracy`` or the lowest ``..._loss``.
    """
    sign = -1 if by.endswith("loss") else 1
    ends = at_end(rows)
    arms = unique(ends, "arm")
    return max(arms, key=lambda arm: sign * spread(column(where(ends, arm=arm), by)).mean)


def compare_groups(
    rows: Sequence[Row],
    task: str,
    a: str,
    b: str,
    claim: str,
    metric: str = "test_accuracy",
    by: str = "validation_accuracy",
    literature: str = "",
) -> Verdict:
    """Return the verdict on "a is better than b", each at its own best setting."""
    mine = where(rows, task=task)
    ends = at_end(mine)
    best = {group: best_arm(where(mine, group=group), by) for group in (a, b)}
    values = {group: column(where(ends, arm=best[group]), metric) for group in (a, b)}
    loss = metric.endswith("loss")
    difference = paired(values[b], values[a]) if loss else paired(values[a], values[b])
    margin = LOSS_MARGIN if loss else ACCURACY_MARGIN
    what = METRIC_NAMES[metric]
    return Verdict(
        claim=claim,
        task=get_task(task).title,
        word=decide(difference, margin),
        evidence=(
            f"{a} {mean_sd(values[a], metric)}, {b} {mean_sd(values[b], metric)}; "
            f"{'reduction' if loss else 'difference'} {interval(difference, metric)}."
        ),
        rule=rule(
            f"the {'reduction' if loss else 'difference'} in {what}, each at its best "
            f"{METRIC_NAMES[by]}",
            f"{LOSS_MARGIN:g}" if loss else f"{100 * ACCURACY_MARGIN:g} point",
        ),
        literature=literature,
    )


METRIC_NAMES = {name: name.replace("train_", "training_").replace("_", " ") for name in METRICS}


def mean_sd(values: Sequence[float], metric: str) -> str:
    """Format as ``72.0 ± 0.4 %``, or ``0.812 ± 0.020`` for a loss."""
    s = spread(values)
    if metric.endswith("accuracy"):
        return f"{100 * s.mean:.1f} ± {100 * s.sd:.1f} %"
    return f"{s.mean:.3f} ± {s.sd:.3f}"


def interval(difference: Interval, metric: str) -> str:
    """Format as ``+8.6 points [+6.2, +11.0]``."""
    if metric.endswith("accuracy"):
        d = difference.scaled(100)
        return f"{d.mean:+.1f} points [{d.low:+.1f}, {d.high:+.1f}]"
    d = difference
    return f"{d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"


def arms_table(name: str, title: str, rows: Sequence[Row], *numbers: str) -> Table:
    """Return a table of settings with mean and spread of final metrics; the best are marked."""
    out = []
    for task in unique(rows, "task"):
        mine = where(rows, task=task)
        ends = at_end(mine)
        best = {best_arm(where(mine, group=group)) for group in unique(mine, "group")}
        for arm in unique(ends, "arm"):
            same = where(ends, arm=arm)
            line: dict[str, Any] = {
                "task": task,
                "group": same[0]["group"],
                "learning_rate": same[0]["learning_rate"],
                **{key: same[0].get(key) for key in (c.key for n in numbers for c in columns(n))},
                "chosen": "best" if arm in best else "",
                "seeds": len(same),
            }
            for metric in METRIC_NAMES:
                s = spread(column(same, metric))
                line |= {f"{metric}_mean": s.mean, f"{metric}_sd": s.sd}
            out.append(line)
    shown = columns(
        "task | group: contender | learning_rate: lr {:g} | "
        + "".join(f"{text} | " for text in numbers)
        + "validation_accuracy_mean: validation accuracy {:.1%} | test_accuracy_mean: test "
        "accuracy {:.1%} | test_accuracy_sd: ± sd {:.1%} | train_loss_mean: training loss {:.3f} | "
        "test_loss_mean: test loss {:.3f} | chosen"
    )
    return Table(name, title, shown, out)


def curve_rows(rows: Sequence[Row], arms: Iterable[str], metric: str) -> list[Row]:
    """Return mean and band of a metric over epochs, per contender, for a line plot."""
    out = []
    for arm in arms:
        mine = where(rows, arm=arm)
        for step in unique(mine, "step"):
            now = where(mine, step=step)
            values = column(now, metric)
            if all(map(math.isfinite, values)):  # else a seed has diverged, so there is no mean
                out.append(point(now[0]["group"], now[0]["epoch"], values))
    return out
