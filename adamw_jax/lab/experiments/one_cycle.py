"""Compare 1cycle with a constant learning rate, in the same number of steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.common import best_rows
from adamw_jax.lab.experiments.parts import where
from adamw_jax.lab.experiments.studies import (
    Beats,
    Contender,
    Grid,
    by_epoch,
    over_grid,
    study,
)
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import ADAM, tables
from adamw_jax.lab.results import Figure, Panel, Result, Row
from adamw_jax.lab.tasks import get_task

ONE_CYCLE, CONSTANT = "1cycle", "constant"
ARTICLE, PLATEAU = "the article's 1cycle", "the article's plateau"
FORMS = {ONE_CYCLE: "one_cycle", ARTICLE: "article", PLATEAU: "article_plateau",
         CONSTANT: "constant"}  # fmt: skip
NUMBERS = {"b2": 0.99, "l2": 0.0}


def _schedule(s: Grid, rows: Sequence[Row]) -> Figure:
    """Draw the two schedules on the first task."""
    task = s.tasks[0]
    steps = s.plan(task).steps
    curves: dict[str, list[dict[str, Any]]] = {"rate": [], "momentum": []}
    for group in FORMS:
        row = best_rows(where(rows, task=task), group)[0]
        rates, momenta = tables(row["schedule"], row["learning_rate"], steps)
        stride = max(1, steps // 120)
        for i in range(0, steps, stride):
            curves["rate"].append({"series": group, "x": i, "y": float(rates[i])})
            curves["momentum"].append({"series": group, "x": i, "y": float(momenta[i])})
    return Figure(
        name="schedule",
        title=f"The schedules behind it ({get_task(task).title})",
        alt="Two line plots against steps: under each 1cycle the learning rate rises to its "
        "maximum and falls to almost zero while momentum does the opposite; the constant "
        "schedule is flat.",
        panels=[
            Panel("Learning rate", lines("step", "learning rate", spread="none"), curves["rate"]),
            Panel("Momentum (b1)", lines("step", "b1", spread="none"), curves["momentum"]),
        ],
        panel_size=(4.6, 2.7),
    )


def _head_start(s: Grid, rows: Sequence[Row]) -> list[str]:
    """State when 1cycle passes the best result of the constant rate."""
    out = []
    for task in s.tasks:
        curve = {}
        for group in (ONE_CYCLE, CONSTANT):
            best = best_rows(where(rows, task=task), group)
            drawn = common.curve_rows(best, [best[0]["arm"]], "test_accuracy")
            curve[group] = [(r["x"], r["y"]) for r in drawn]
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


EXPERIMENT = study(
    "one_cycle",
    Grid(),
    over_grid({name: Contender(ADAM, schedule, NUMBERS) for name, schedule in FORMS.items()}),
    claims=[
        Beats(name, CONSTANT,
              f"{name[0].upper()}{name[1:]} reaches a higher accuracy than a constant learning "
              "rate in the same steps",
              literature="Smith & Topin 2017: yes (super-convergence).")
        for name in (ONE_CYCLE, ARTICLE, PLATEAU)
    ],
    figures=[functools.partial(
        by_epoch, groups=tuple(FORMS),
        name="accuracy",
        title="Test accuracy during training: 1cycle against a constant learning rate",
        alt="Line plots of test accuracy against epochs for AdamW with three forms of "
        "1cycle and with a constant learning rate, each at its best setting; lines are means and "
        "bands are standard deviations over seeds.",
    ), _schedule],
    more=lambda s, rows: Result(remarks=_head_start(s, rows)),
    tiny={"learning_rates": (0.01,)},
    title="1cycle against a constant learning rate",
    question="1cycle raises the learning rate to a maximum and lets it fall to zero, while "
    "momentum does the opposite. Does this train better in the same number of steps than a "
    "constant learning rate?",
    setup="AdamW (b2 0.99). 1cycle is fastai's, with cosines; the article's has three linear "
    "phases, and that for its language models four, with a plateau. All schedules get the same "
    "grid of learning rates and decays; each is judged at its best setting by validation "
    "accuracy, on fresh seeds.",
    reference="Smith & Topin, Super-Convergence, arXiv 1708.07120",
)  # fmt: skip
