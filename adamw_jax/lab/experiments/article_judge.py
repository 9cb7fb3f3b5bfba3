"""Judge the claims of the article on images, from the rows of trained networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from adamw_jax.lab.experiments.common import ACCURACY_MARGIN, LOSS_MARGIN, interval, mean_sd
from adamw_jax.lab.experiments.parts import column, judged, met, where
from adamw_jax.lab.results import Row, Verdict
from adamw_jax.lab.stats import as_good, paired, rule_as_good, spread

ADAMW, L2 = "AdamW", "Adam + L2"
FINAL = "final"
AUGMENTED = "test_accuracy_augmented"
APART = 30.0
"""Ratio of two coefficients that are orders of magnitude apart."""


def last_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the last row of every run."""
    return [row for row in rows if row["step"] == row["steps"]]


@dataclasses.dataclass(frozen=True)
class Judge:
    """The settings of an experiment and its rows, of which verdicts are made."""

    s: Any
    rows: Sequence[Row]

    def values(self, group: str, metric: str = "test_accuracy", stage: str = FINAL) -> list[float]:
        """Return a metric by seed."""
        return column(where(last_rows(self.rows), group=group, stage=stage), metric)

    def better(self, claim: str, a: Any, b: Any, literature: str = "") -> Verdict:
        """Return the verdict on "a is better than b"; each is (words, group, metric, stage)."""
        metric = a[2]
        loss = metric.endswith("loss")
        mine, other = self.values(*a[1:]), self.values(*b[1:])
        difference = paired(other, mine) if loss else paired(mine, other)
        kind = "loss" if loss else "accuracy"
        what = f"the {'reduction' if loss else 'difference'} in test {kind} over {len(mine)} seeds"
        return judged(
            claim, self.s.title, difference, LOSS_MARGIN if loss else ACCURACY_MARGIN, what,
            f"{a[0]} {mean_sd(mine, f'test_{kind}')}, {b[0]} {mean_sd(other, f'test_{kind}')}; "
            f"difference {interval(difference, f'test_{kind}')}.",
            unit="" if loss else "1 point", literature=literature,
        )  # fmt: skip

    def as_good(self, claim: str, a: Any, b: Any, literature: str = "") -> Verdict:
        """Return the verdict on "a is at most the margin worse than b"."""
        mine, other = self.values(*a[1:]), self.values(*b[1:])
        difference = paired(mine, other)
        return Verdict(
            claim, self.s.title, as_good(difference, ACCURACY_MARGIN),
            f"{a[0]} {mean_sd(mine, 'test_accuracy')}, {b[0]} {mean_sd(other, 'test_accuracy')}; "
            f"difference {interval(difference, 'test_accuracy')}.",
            rule_as_good(f"the difference in test accuracy over {len(mine)} seeds",
                         ACCURACY_MARGIN), literature,
        )  # fmt: skip

    def first_epochs(self, group: str) -> tuple[list[float], int]:
        """Return by seed the first epoch at the target; one more than all if it is missed."""
        found, missed = [], 0
        for seed in self.s.seeds:
            mine = where(self.rows, group=group, stage=FINAL, seed=seed)
            fine = [row["step"] for row in mine if row["test_accuracy"] >= self.s.target]
            each = mine[-1]["steps"] / self.s.epochs
            missed += not fine
            found.append(min(fine) / each if fine else self.s.epochs + 1.0)
        return found, missed

    def sooner(self, other: str, name: str) -> Verdict:
        """Return the verdict on super-convergence against an annealed baseline."""
        (mine, lost), (theirs, missed) = self.first_epochs(ADAMW), self.first_epochs(other)
        difference = paired(theirs, mine)
        return judged(
            f"1cycle reaches a fixed accuracy in fewer epochs than {name}",
            self.s.title, difference, 0.5,
            f"the epochs to {100 * self.s.target:g} % test accuracy that are saved, a miss "
            f"counting as {self.s.epochs + 1} epochs, each at its best setting",
            f"1cycle {spread(mine).mean:.1f} epochs ({lost} of {len(mine)} missed), {name} "
            f"{spread(theirs).mean:.1f} ({missed} missed); saved {difference.mean:+.1f} "
            f"[{difference.low:+.1f}, {difference.high:+.1f}].",
            unit="half an epoch", literature="Smith & Topin 2017: yes; 2018 article: 30 epochs "
            "where about 100 were usual.",
        )  # fmt: skip

    def apart(self, best: Mapping[str, tuple[float, float]]) -> Verdict:
        """Return the verdict on how far the best coefficients of the two forms lie apart."""
        ratio = best[ADAMW][1] / best[L2][1]
        return met(
            "The best decay and the best L2 differ by orders of magnitude",
            self.s.title, max(ratio, 1 / ratio) >= APART,
            f"Best decay {best[ADAMW][1]:g} at lr {best[ADAMW][0]:g}, best L2 {best[L2][1]:g} at "
            f"lr {best[L2][0]:g}, of grids with the same coefficients.",
            f"Ratio of the coefficients of the best validation accuracy, {APART:g}-fold or more "
            "either way",
            "2018 article: 0.3 at lr 3e-3 against 1e-6 at lr 1e-3.",
        )  # fmt: skip
