"""Compare Lookahead around AdamW with AdamW alone, at a constant learning rate."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments.common import best_rows, tuned
from adamw_jax.lab.experiments.parts import exponentials, judged, unique, where
from adamw_jax.lab.experiments.studies import (
    Beats,
    Contender,
    Grid,
    by_epoch,
    over_grid,
    study,
)
from adamw_jax.lab.recipes import ADAM, LOOKAHEAD_ADAM
from adamw_jax.lab.results import Row, Verdict
from adamw_jax.lab.stats import paired, spread
from adamw_jax.lab.tasks import get_task

INNER, OUTER = "AdamW", "Lookahead(AdamW)"
NUMBERS = {"b2": 0.99, "l2": 0.0}
STEADIER_MARGIN = 0.1


def _steadier(s: Grid, task: str, rows: Sequence[Row]) -> Verdict:
    """Judge the changes of the test loss between evaluations in the second half."""
    rows = tuned(rows)
    chosen = best_rows(rows, INNER)[0]
    same = where(rows, learning_rate=chosen["learning_rate"], weight_decay=chosen["weight_decay"])
    jumps = {}
    for group in (INNER, OUTER):
        mine = where(same, group=group)
        jumps[group] = []
        for seed in sorted(unique(mine, "seed")):
            losses = [row["test_loss"] for row in where(mine, seed=seed)]
            half = np.asarray(losses[len(losses) // 2 :], np.float64)
            jumps[group].append(float(np.sqrt(np.mean(np.diff(half) ** 2))) + 1e-12)
    logs = {group: list(np.log(values)) for group, values in jumps.items()}
    difference = paired(logs[INNER], logs[OUTER])
    return judged(
        "Lookahead makes the loss steadier from one evaluation to the next",
        get_task(task).title, difference, STEADIER_MARGIN,
        "log(jumps without / jumps with), jumps being the root mean square change of test loss "
        "between evaluations in the second half, both at AdamW's best setting",
        f"Jumps of {spread(jumps[OUTER]).mean:.3f} with and {spread(jumps[INNER]).mean:.3f} "
        f"without, at lr {chosen['learning_rate']:g}; ratio {exponentials(difference, -1)}.",
        literature="Zhang et al.: yes (lower variance).",
    )  # fmt: skip


EXPERIMENT = study(
    "lookahead",
    Grid(),
    over_grid({
        INNER: Contender(ADAM, "constant", NUMBERS),
        OUTER: Contender(LOOKAHEAD_ADAM, "constant", NUMBERS),
    }),
    claims=[
        Beats(OUTER, INNER, "Lookahead reaches a higher accuracy than its inner optimizer",
              literature="Zhang et al.: yes, slightly."),
        _steadier,
    ],
    figures=[functools.partial(
        by_epoch, groups=(INNER, OUTER),
        name="accuracy",
        title="Test accuracy during training, with and without Lookahead",
        alt="Line plots of test accuracy against epochs for AdamW and for Lookahead around AdamW "
        "at a constant learning rate, each at its best setting, mean and standard deviation over "
        "seeds.",
    )],
    tiny={"learning_rates": (0.01,)},
    title="Lookahead around AdamW",
    question="Lookahead lets the inner optimizer make five steps and then goes half of the way. "
    "Is the result better, and does the loss vary less?",
    setup="Constant learning rate, b2 0.99, k = 5, alpha = 0.5, evaluated on the slow weights; "
    "the same grid of learning rates and decays for both.",
    reference="Zhang, Lucas, Hinton & Ba, Lookahead Optimizer, arXiv 1907.08610",
)  # fmt: skip
