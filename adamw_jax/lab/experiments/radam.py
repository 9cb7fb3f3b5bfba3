"""Compare RAdam and AdamW without warm-up, over learning rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.points import point
from adamw_jax.lab.experiments.registry import Experiment, Rows, register
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import ADAM, Arm, catalogue, settings
from adamw_jax.lab.results import Column, Figure, Panel, Result, Row, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Both get every learning rate with the first b2, and are judged there.

    RAdam also gets the other values of b2, to show what they cost in a short training.
    """

    epochs: tuple[int, ...] = (20, 30)
    points: int = 10
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    b2: tuple[float, ...] = (0.99, 0.999)
    decay: tuple[float, ...] = (0.1, 1.0)


def _name(optimizer: str, b2: float) -> str:
    return f"{optimizer}, b2 {b2:g}"


def measure(s: Settings, runner: Runner) -> Rows:
    """Train both under a cosine that starts at the full learning rate."""
    radam = catalogue("radam")

    def arms(task: str) -> list[Arm]:
        decay = s.decay[s.tasks.index(task)]
        out = []
        for b2 in s.b2:
            for rate in s.learning_rates:
                if b2 == s.b2[0]:
                    adam = settings(b2=b2, l2=0.0, weight_decay=decay)
                    out.append(Arm(_name("AdamW", b2), ADAM, "cosine", rate, adam))
                numbers = settings(b2=b2, weight_decay=decay)
                out.append(Arm(_name("RAdam", b2), radam, "cosine", rate, numbers))
        return out

    return common.train_all(s, runner, arms)


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge robustness to the learning rate, and the tuned accuracies."""
    radam, adamw = (_name(optimizer, s.b2[0]) for optimizer in ("RAdam", "AdamW"))
    verdicts = []
    for task in s.tasks:
        mine = common.where(rows, task=task)
        verdicts += [
            _robust(s, task, mine, radam, adamw),
            common.compare_groups(
                rows, task, radam, adamw,
                "Tuned RAdam beats tuned AdamW when neither has a warm-up",
                literature="Liu et al.: yes; equal once AdamW has a warm-up.",
            ),
        ]  # fmt: skip
    table = common.arms_table("settings", "Every setting", rows, Column("b2", "b2", "{:g}"))
    steps = {task: s.plan(task).steps for task in s.tasks}
    longest = max(s.b2)
    remark = (
        f"RAdam holds back for about 2/(1 - b2) steps: {2 / (1 - longest):.0f} with b2 "
        f"{longest:g}, and these runs have {' and '.join(str(n) for n in steps.values())}. The "
        f"b2 {longest:g} curve shows what that costs a short training."
    )
    return Result(verdicts, [table], [_fan(s, rows)], [remark] if len(s.b2) > 1 else [])


def _robust(s: Settings, task: str, rows: Sequence[Row], radam: str, adamw: str) -> Verdict:
    ends = common.at_end(rows)

    def over_rates(group: str) -> list[float]:
        """Return the test accuracy averaged over all learning rates, per seed."""
        table = [
            common.column(common.where(ends, group=group, learning_rate=rate), "test_accuracy")
            for rate in s.learning_rates
        ]
        return [float(v) for v in np.mean(table, axis=0)]

    difference = paired(over_rates(radam), over_rates(adamw))
    at = f"lr {min(s.learning_rates):g} to {max(s.learning_rates):g}"
    return Verdict(
        claim="Without warm-up, RAdam is less sensitive to the learning rate than AdamW",
        task=get_task(task).title,
        word=decide(difference, common.ACCURACY_MARGIN),
        evidence=f"Averaged over {at}: RAdam {100 * spread(over_rates(radam)).mean:.1f} %, AdamW "
        f"{100 * spread(over_rates(adamw)).mean:.1f} %; difference "
        f"{common.interval(difference, 'test_accuracy')}.",
        rule=rule(
            f"the difference in test accuracy averaged over the {len(s.learning_rates)} learning "
            f"rates (b2 {s.b2[0]:g})",
            "1 point",
        ),
        literature="Liu et al.: yes.",
    )


def _fan(s: Settings, rows: Sequence[Row]) -> Figure:
    panels = []
    for task in s.tasks:
        points = []
        ends = common.at_end(common.where(rows, task=task))
        for group in [_name("AdamW", s.b2[0]), *(_name("RAdam", b2) for b2 in s.b2)]:
            for rate in s.learning_rates:
                same = common.where(ends, group=group, learning_rate=rate)
                points.append(point(group, rate, common.column(same, "test_accuracy")))
        draw = lines(
            "learning rate", "test accuracy", xscale="log", percent=True, spread="bars",
            markers=True, ticks_at_data=True, ylim=(0, None), legend="lower left",
        )  # fmt: skip
        panels.append(Panel(get_task(task).title, draw, points))
    return Figure(
        name="learning_rates",
        title="No warm-up: accuracy against the learning rate",
        alt="Line plots of final test accuracy against the learning rate, for AdamW, and for "
        "RAdam with several values of b2; bars are standard deviations over seeds. No run had a "
        "warm-up.",
        panels=panels,
        panel_size=(4.6, 3.9),
    )


EXPERIMENT = register(
    Experiment(
        name="radam",
        title="RAdam without warm-up",
        question="In Adam's first steps the second moment is an average of very few gradients, so "
        "Adam usually gets a warm-up. RAdam scales these steps by their variance instead. Does "
        "this make the learning rate less critical?",
        setup="Cosine decay from the full learning rate at the first step, no warm-up, the same "
        "grid for both, decoupled decay. RAdam skips steps until its average is long enough.",
        presets={
            "demo": Settings(),
            "quick": common.short(Settings(), "quick"),
            "tiny": common.short(Settings(learning_rates=(0.003, 0.1)), "tiny"),
        },
        measure=measure,
        analyse=analyse,
        reference="Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, arXiv "
        "1908.03265",
    )
)
