"""Compare Lookahead around AdamW with AdamW alone, at a constant learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import ADAM, LOOKAHEAD_ADAM, Arm, settings
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner

INNER, OUTER = "AdamW", "Lookahead(AdamW)"
STEADIER_MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Both get every learning rate with every decay."""

    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03)
    decays: tuple[tuple[float, ...], ...] = ((0.1, 0.3), (1.0, 3.0))


def measure(s: Settings, runner: Runner) -> Rows:
    """Train both at a constant learning rate."""

    def arms(task: str) -> list[Arm]:
        out = []
        for rate in s.learning_rates:
            for decay in s.decays[s.tasks.index(task)]:
                numbers = settings(b2=0.99, l2=0.0, weight_decay=decay)
                out.append(Arm(INNER, ADAM, "constant", rate, numbers))
                out.append(Arm(OUTER, LOOKAHEAD_ADAM, "constant", rate, numbers))
        return out

    return common.train_all(s, runner, arms)


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge accuracy and how much the loss varies."""
    verdicts = []
    for task in s.tasks:
        verdicts += [
            common.compare_groups(
                rows, task, OUTER, INNER,
                "Lookahead reaches a higher accuracy than its inner optimizer",
                literature="Zhang et al.: yes, slightly.",
            ),
            _steadier(task, common.where(rows, task=task)),
        ]  # fmt: skip
    table = common.arms_table(
        "settings", "Every setting", rows, Column("weight_decay", "decay", "{:g}")
    )
    return Result(verdicts, [table], [_curves(s, rows)])


def _steadier(task: str, rows: Sequence[Row]) -> Verdict:
    """Judge the changes of the test loss between evaluations in the second half."""
    chosen = common.where(rows, arm=common.best_arm(common.where(rows, group=INNER)))[0]
    same = common.where(
        rows, learning_rate=chosen["learning_rate"], weight_decay=chosen["weight_decay"]
    )
    jumps = {}
    for group in (INNER, OUTER):
        mine = common.where(same, group=group)
        jumps[group] = []
        for seed in sorted(common.unique(mine, "seed")):
            losses = [row["test_loss"] for row in common.where(mine, seed=seed)]
            half = np.asarray(losses[len(losses) // 2 :], np.float64)
            jumps[group].append(float(np.sqrt(np.mean(np.diff(half) ** 2))) + 1e-12)
    logs = {group: list(np.log(values)) for group, values in jumps.items()}
    difference = paired(logs[INNER], logs[OUTER])
    ratio = [float(np.exp(-v)) for v in (difference.mean, difference.high, difference.low)]
    return Verdict(
        claim="Lookahead makes the loss steadier from one evaluation to the next",
        task=get_task(task).title,
        word=decide(difference, STEADIER_MARGIN),
        evidence=f"Jumps of {spread(jumps[OUTER]).mean:.3f} with and "
        f"{spread(jumps[INNER]).mean:.3f} without, at lr {chosen['learning_rate']:g}; ratio "
        f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}].",
        rule=rule(
            "log(jumps without / jumps with), jumps being the root mean square change of test loss "
            "between evaluations in the second half, both at AdamW's best setting",
            f"{STEADIER_MARGIN:g}",
        ),
        literature="Zhang et al.: yes (lower variance).",
    )


def _curves(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for task in s.tasks:
        mine = common.where(rows, task=task)
        best = [common.best_arm(common.where(mine, group=group)) for group in (INNER, OUTER)]
        panels.append(
            Panel(
                get_task(task).title,
                lines("epochs", "test accuracy", percent=True, legend="lower right"),
                common.curve_rows(mine, best, "test_accuracy"),
            )
        )
    return Figure(
        name="accuracy",
        title="Test accuracy during training, with and without Lookahead",
        alt="Line plots of test accuracy against epochs for AdamW and for Lookahead around AdamW "
        "at a constant learning rate, each at its best setting, mean and standard deviation over "
        "seeds.",
        panels=panels,
    )


EXPERIMENT = register(
    Experiment(
        name="lookahead",
        title="Lookahead around AdamW",
        question="Lookahead lets the inner optimizer make five steps and then goes half of the "
        "way. Is the result better, and does the loss vary less?",
        setup="Constant learning rate, b2 0.99, k = 5, alpha = 0.5, evaluated on the slow "
        "weights; the same grid of learning rates and decays for both.",
        presets={
            "demo": Settings(),
            "quick": common.short(Settings(), "quick"),
            "tiny": common.short(Settings(learning_rates=(0.01,), points=4), "tiny"),
        },
        measure=measure,
        analyse=analyse,
        reference="Zhang, Lucas, Hinton & Ba, Lookahead Optimizer, arXiv 1907.08610",
    )
)
