"""Share code of the training experiments: settings, best settings, comparisons.

Everything is chosen on the validation split and reported on the test split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adamw_jax.lab import study
from adamw_jax.lab.experiments.parts import column, columns, point, unique, where
from adamw_jax.lab.recipes import Arm
from adamw_jax.lab.results import Row, Table, Verdict
from adamw_jax.lab.stats import Interval, as_good, decide, paired, rule, rule_as_good, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import METRICS, Job, Plan, Runner

ACCURACY_MARGIN = 0.01
LOSS_MARGIN = 0.02
BATCH_SIZE = 100
SATURATED = 0.97
FRESH = "fresh"


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
    few = {"fresh": 4 if preset == "quick" else 2} if hasattr(settings, "fresh") else {}
    if preset == "quick":
        return dataclasses.replace(settings, epochs=(5, 10), points=5, **few)
    changes = {"tasks": ("digits",), "epochs": (2,), "seeds": (0, 1), "points": 4, **few}
    return dataclasses.replace(settings, **changes)


def train_all(
    settings: Training, runner: Runner, arms_of: Callable[[str], Sequence[Arm]]
) -> list[dict[str, Any]]:
    """Train ``arms_of(task)`` on every task; then the best of every group on fresh seeds.

    The number of fresh seeds is ``settings.fresh``; without it there are none.
    """
    arms = {task: tuple(arms_of(task)) for task in settings.tasks}
    plans = {task: settings.plan(task) for task in settings.tasks}
    rows = runner.train_all([Job(task, arms[task], plans[task]) for task in settings.tasks])
    fresh = tuple(range(study.FRESH, study.FRESH + getattr(settings, "fresh", 0)))
    if not fresh:
        return rows
    jobs = []
    for task in settings.tasks:
        mine = where(rows, task=task)
        best = {best_arm(where(mine, group=group)) for group in unique(mine, "group")}
        chosen = tuple(arm for arm in arms[task] if arm.name in best)
        jobs.append(Job(task, chosen, dataclasses.replace(plans[task], seeds=fresh)))
    return rows + [{**row, "stage": FRESH} for row in runner.train_all(jobs)]


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


def tuned(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the runs that choose settings, without those on fresh seeds."""
    return [row for row in rows if row.get("stage") != FRESH]


def best_rows(rows: Sequence[Row], group: str, by: str = "validation_accuracy") -> list[Row]:
    """Return the rows of a contender at its best setting: those on fresh seeds, if there are."""
    best = where(rows, arm=best_arm(where(tuned(rows), group=group), by))
    return [row for row in best if row.get("stage") == FRESH] or best


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
    best = {group: at_end(best_rows(mine, group, by)) for group in (a, b)}
    values = {group: column(ends, metric) for group, ends in best.items()}
    loss = metric.endswith("loss")
    sign = "reduction" if loss else "difference"
    difference = paired(values[b], values[a]) if loss else paired(values[a], values[b])
    margin = LOSS_MARGIN if loss else ACCURACY_MARGIN
    fresh = any(row.get("stage") == FRESH for row in best[a])
    lost, remarks = _reservations(best, values, metric)
    return Verdict(
        claim=claim,
        task=get_task(task).title,
        word="does not apply" if lost else decide(difference, margin),
        evidence=f"{a} {mean_sd(values[a], metric)}, {b} {mean_sd(values[b], metric)}; {sign} "
        f"{interval(difference, metric)}.{remarks}",
        rule=rule(
            f"the {sign} in {METRIC_NAMES[metric]}, each at its best {METRIC_NAMES[by]}"
            + (f", over {len(values[a])} fresh seeds" if fresh else ""),
            f"{LOSS_MARGIN:g}" if loss else f"{100 * ACCURACY_MARGIN:g} point",
        ),
        literature=literature,
    )


def _reservations(
    best: Mapping[str, Sequence[Row]], values: Mapping[str, Sequence[float]], metric: str
) -> tuple[bool, str]:
    """Return whether a contender always diverged, and what must be said about the numbers."""
    said, lost = "", False
    for group, ends in best.items():
        count = sum(None in (row["train_loss"], row["test_loss"]) for row in ends)
        lost |= count == len(ends)
        said += f" {count} of {len(ends)} runs of {group} diverged." if count else ""
    if metric.endswith("accuracy") and all(spread(v).mean >= SATURATED for v in values.values()):
        said += f" Saturated: both are above {100 * SATURATED:g} %."
    return lost, said


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


def as_accurate(
    claim: str,
    task: str,
    values: Mapping[str, Sequence[float]],
    what: str,
    *,
    note: str = "",
    more: str = "",
    literature: str = "",
) -> Verdict:
    """Return the verdict on "the first is as accurate as the second", within the margin.

    Args:
      claim: the claim in words.
      task: what it was tested on.
      values: test accuracies by seed, of the two by name.
      what: the difference in words.
      note: evidence on the second, after its accuracy.
      more: further evidence.
      literature: findings of others.
    """
    first, second = values.values()
    difference = paired(first, second)
    each = ", ".join(f"{name} {mean_sd(v, 'test_accuracy')}" for name, v in values.items())
    return Verdict(
        claim=claim,
        task=task,
        word=as_good(difference, ACCURACY_MARGIN),
        evidence=f"{each}{note}; difference {interval(difference, 'test_accuracy')}.{more}",
        rule=rule_as_good(what, ACCURACY_MARGIN),
        literature=literature,
    )


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
