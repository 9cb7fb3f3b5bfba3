"""Measure Gadam: when averaging helps, how often to collect iterates, and when to stop."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax

from adamw_jax import average_iterates, compose, eval_params, gadam, gadamx, sgdw
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.common import best_arm
from adamw_jax.lab.experiments.parts import column, columns, experiment, unique, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.experiments.studies import by_seed
from adamw_jax.lab.plots.heat import heat
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import Arm, Carrier, Recipe, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import decide, paired, rule, spread
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner

MARGIN = common.ACCURACY_MARGIN
SPARSE = "Gadam, once an epoch"
ADAMW, GADAM, GADAMX, SGD = "AdamW", "Gadam", "GadamX", "averaged SGD"
LITERATURE = "Abstract of Granziol et al.: "


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """Constant learning rates; averages begin at half of the run.

    Attributes:
      rates: learning rates of Gadam; GadamX and SGD with momentum have them times ``wider``.
      decays: decoupled decay of Gadam per task; theirs is divided by ``wider``, so that each step
        removes the same share of the weights.
      contenders: which averages to compare; Gadam is always among them.
    """

    epochs: tuple[int, ...] = (20, 30)
    points: int = 10
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    decays: tuple[tuple[float, ...], ...] = ((0.0, 0.1, 0.3), (0.0, 1.0, 3.0))
    wider: float = 10.0
    contenders: tuple[str, ...] = (GADAM, GADAMX, SGD)


AVERAGED = {
    GADAM: (ADAMW, SPARSE, 1.0, gadam),
    GADAMX: ("Padam", "GadamX, once an epoch", None, gadamx),
    SGD: ("SGD", "averaged SGD, once an epoch", None, sgdw),
}
"""By average: its iterate, the average of one iterate per epoch, factor of the rates, optimizer."""


def recipe(name: str, start: int, epoch: int) -> Recipe:
    """Return an optimizer one run of which gives the iterate and both averages."""
    iterate, sparse, _, make = AVERAGED[name]

    def build(carrier: Carrier, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        if make is sgdw:
            dense = compose(sgdw(carrier.learning_rate, **numbers), average_iterates(start))
        else:
            dense = make(carrier.learning_rate, **numbers, start=start)
        return optax.chain(dense, average_iterates(start, epoch))

    def views(state: Any, params: Any) -> dict[str, Any]:
        averages = (eval_params(each, params) for each in state)
        return dict(zip((iterate, name, sparse), (params, *averages), strict=True))

    return Recipe(f"{name} from step {start}", build, views=views)


def measure(s: Settings, runner: Runner) -> Rows:
    """Train all; one run gives the iterate and its averages."""

    def arms(task: str) -> list[Arm]:
        plan = s.plan(task)
        epoch = len(get_task(task).train) // plan.batch_size
        made = {name: recipe(name, plan.steps // 2, epoch) for name in s.contenders}
        wider = {name: AVERAGED[name][2] or s.wider for name in made}
        return [
            Arm(name, made[name], "constant", rate * wider[name],
                settings(weight_decay=decay / wider[name]))
            for name in made for rate in s.rates for decay in s.decays[s.tasks.index(task)]
        ]  # fmt: skip

    last = {task: s.plan(task).steps for task in s.tasks}
    return [
        row | {"arm": f"{row['group']}, lr {row['learning_rate']:g}, decay "
               f"{row['weight_decay']:g}"}
        for row in common.train_all(s, runner, arms)
        if row["step"] == last[row["task"]] or "once" not in row["group"] or row["group"] == SPARSE
    ]  # fmt: skip


def analyse(s: Settings, rows: Rows) -> Result:
    """Judge gains, sparse averages, adaptivity and the end of the run."""
    verdicts: list[Verdict] = []
    for task in s.tasks:
        mine = where(rows, task=task)
        compared = functools.partial(common.compare_groups, mine, task)
        verdicts += [
            *_gains(s, task, mine),
            compared(GADAM, ADAMW, "The average beats the last iterate, each at its best setting",
                     literature=LITERATURE + "yes, at a high learning rate and proper decay."),
            _sparse(task, mine),
            *(compared(name, SGD, f"{name} reaches a higher accuracy than averaged SGD",
                       literature=LITERATURE + "adaptive methods with averaging and decoupled "
                       "decay reach or beat SGD.") for name in s.contenders if name != SGD),
            _stopping(task, mine),
        ]  # fmt: skip
    kept = [row for row in rows if "once" not in row["group"] or row["group"] == SPARSE]
    decay = "weight_decay: decay {:g}"
    table = common.arms_table("settings", "Every setting", common.at_end(kept), decay)
    return Result(verdicts, [table, _gain_table(s, rows)], _figures(s, rows))


def gain(rows: Sequence[Row], rate: float, decays: Sequence[float]) -> list[float]:
    """Return the gain in test accuracy by Gadam's average, mean over decays, by seed."""
    found = []
    for decay in decays:
        mine = where(common.at_end(rows), learning_rate=rate, weight_decay=decay)
        average, iterate = (
            column(where(mine, group=group), "test_accuracy") for group in (GADAM, ADAMW)
        )
        found.append(np.subtract(average, iterate))
    return [float(v) for v in np.mean(found, axis=0)]


def _gains(s: Settings, task: str, rows: Sequence[Row]) -> list[Verdict]:
    decays = [d for d in s.decays[s.tasks.index(task)] if d > 0]
    low, high = min(s.rates), max(s.rates)
    large, small = gain(rows, high, decays), gain(rows, low, decays)
    without = gain(rows, high, [0.0])

    def verdict(claim: str, a: list[float], b: list[float], names: tuple[str, str]) -> Verdict:
        difference = paired(a, b)
        return Verdict(
            claim=claim,
            task=get_task(task).title,
            word=decide(difference, MARGIN),
            evidence=f"Averaging gains {100 * spread(a).mean:+.1f} points {names[0]}, "
            f"{100 * spread(b).mean:+.1f} {names[1]}; difference "
            f"{common.interval(difference, 'test_accuracy')}.",
            rule=rule(
                f"the gain in test accuracy {names[0]} minus that {names[1]}",
                f"{100 * MARGIN:g} point",
            ),
            literature=LITERATURE + "averaging needs a large final learning rate and proper "
            "regularisation.",
        )

    return [
        verdict("Averaging gains more at a large learning rate than at a small one", large, small,
                (f"at lr {high:g} with decay", f"at lr {low:g} with decay")),
        verdict("Averaging gains more with decoupled weight decay than without", large, without,
                (f"with decay at lr {high:g}", f"without decay at lr {high:g}")),
    ]  # fmt: skip


def _best(rows: Sequence[Row]) -> Row:
    """Return the learning rate and decay of Gadam's average that are best on validation data."""
    return where(rows, arm=best_arm(where(rows, group=GADAM)))[0]


def _same_run(rows: Sequence[Row], group: str) -> list[Row]:
    best = _best(rows)
    keys = ("learning_rate", "weight_decay")
    return where(rows, group=group, **{key: best[key] for key in keys})


def _sparse(task: str, rows: Sequence[Row]) -> Verdict:
    dense, sparse = (
        column(common.at_end(_same_run(rows, group)), "test_accuracy") for group in (GADAM, SPARSE)
    )
    return common.as_accurate(
        "An average of one iterate per epoch is as good as one of all",
        get_task(task).title, {"Once an epoch": sparse, "every step": dense},
        "the difference in test accuracy, at the setting with Gadam's best validation accuracy",
        literature=LITERATURE + "infrequent averaging is enough.",
    )  # fmt: skip


def stopped(rows: Sequence[Row]) -> list[float]:
    """Return the test accuracy at each seed's best validation accuracy, the first of equals."""
    return [
        max(where(rows, seed=seed), key=lambda row: row["validation_accuracy"])["test_accuracy"]
        for seed in sorted(unique(rows, "seed"))
    ]


def _stopping(task: str, rows: Sequence[Row]) -> Verdict:
    average = _same_run(rows, GADAM)
    last = column(common.at_end(average), "test_accuracy")
    early = stopped(_same_run(rows, ADAMW))
    own = common.interval(paired(last, stopped(average)), "test_accuracy")
    return common.as_accurate(
        "The last average needs no early stopping: it is as good as the run's iterate at the "
        "evaluation with its best validation accuracy",
        get_task(task).title, {"Last average": last, "stopped iterate": early},
        "the difference in test accuracy, at the same setting and seed",
        more=f" Against the average stopped in the same way {own}.",
    )  # fmt: skip


def _gain_table(s: Settings, rows: Sequence[Row]) -> Table:
    out = []
    for task in s.tasks:
        mine = where(rows, task=task)
        for rate, decay in itertools.product(s.rates, s.decays[s.tasks.index(task)]):
            g = spread(gain(mine, rate, [decay]))
            out.append({"task": task, "learning_rate": rate, "weight_decay": decay,
                        "gain": 100 * g.mean, "sd": 100 * g.sd})  # fmt: skip
    shown = columns(
        "task | learning_rate: lr {:g} | weight_decay: decay {:g} | gain: gain of averaging, "
        "points {:+.1f} | sd: ± sd {:.1f}"
    )
    return Table("gains", "Average less iterate in test accuracy", shown, out)


def _figures(s: Settings, rows: Sequence[Row]) -> list[Figure]:
    maps, curves = [], []
    for task in s.tasks:
        mine, title = where(rows, task=task), get_task(task).title
        cells = []
        for rate, decay in itertools.product(s.rates, s.decays[s.tasks.index(task)]):
            g = spread(gain(mine, rate, [decay]))
            cells.append({"x": decay, "y": rate, "mean": g.mean, "sd": g.sd})
        top = max(cell["mean"] for cell in cells)
        cells = [c | {"gap": top - c["mean"], "best": c["mean"] == top} for c in cells]
        most = top - min(cell["mean"] for cell in cells)
        maps.append(Panel(title, heat("decoupled decay", "learning rate", most=most or 1.0), cells))
        arms = [_same_run(mine, group)[0]["arm"] for group in (ADAMW, GADAM, SPARSE)]
        best = _best(mine)
        curves.append(
            Panel(
                f"{title}, lr {best['learning_rate']:g}",
                lines("epochs", "test accuracy", percent=True, legend="lower right"),
                common.curve_rows(mine, arms, "test_accuracy"),
            )
        )
    return [
        Figure(
            name="gain",
            title="What averaging gains, in points of test accuracy",
            alt="Heat maps over learning rate and decoupled weight decay: test accuracy of Gadam's "
            "average less that of the last iterate of the same run, mean and standard deviation "
            "over seeds.",
            panels=maps,
        ),
        Figure(
            name="curves",
            title="The iterate and its averages",
            alt="Line plots of test accuracy against epochs for AdamW's iterate, its average of "
            "every step from half of the run on, and its average of one iterate per epoch; mean "
            "and standard deviation over seeds, at the setting best for the average.",
            panels=curves,
        ),
        by_seed(
            s,
            rows,
            (ADAMW, *s.contenders),
            {"test_accuracy": "validation_accuracy"},
            (7.5, 3.4),
            name="seeds",
            title="Each at its best setting, seed by seed",
            alt="Dots for every seed under AdamW, Gadam, GadamX and averaged SGD, joined by lines, "
            "with the means: test accuracy, each at its best setting.",
            columns=1,
        ),
    ]


EXPERIMENT = experiment(
    "gadam", Settings(), measure, analyse,
    quick=common.short(Settings(), "quick"),
    tiny=common.short(Settings(rates=(0.003, 0.03), decays=((0.0, 1.0),), contenders=(GADAM, SGD)),
        "tiny"),
    title="Gadam and the average of iterates",
    question="The mean of the iterates costs almost nothing. When is it better than the last "
    "iterate? How often must iterates be collected, does Adam profit as much as SGD, and when "
    "should training stop?",
    setup="Constant learning rates; averages begin at half of the run. One run gives the iterate, "
    "the average of every step and that of one iterate per epoch, at ten evaluations. Grids are "
    "equal: learning rates, and the shares of the weights that decay removes per step. GadamX has "
    "p = 1/4, SGD momentum 0.9. No setting was chosen after a look at results.",
    reference="Granziol, Baskerville, Wan, Albanie & Roberts, Iterate Averaging in the Quest for "
    "Best Test Error, arXiv 2003.01247",
)  # fmt: skip
