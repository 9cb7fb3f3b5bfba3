"""Compare decoupled decay with L2, over learning rates and coefficients, under Adam and SGD.

The decay is the paper's, theta <- theta - (lr_t / lr_0) decay theta, so that its strength does not
follow the peak of the learning rate. Times lr_0 it is PyTorch's coefficient, decay / lr_0.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import adamw, sgdw
from adamw_jax.lab.experiments.common import at_end, best_arm, tuned
from adamw_jax.lab.experiments.parts import column, columns, judged, met, unique, where
from adamw_jax.lab.experiments.studies import Beats, Compared, study
from adamw_jax.lab.plots.heat import heat
from adamw_jax.lab.recipes import Arm, Carrier, Recipe, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import paired, spread
from adamw_jax.lab.tasks import get_task

DECOUPLED, L2 = "AdamW (decoupled)", "Adam + L2"
SGDW, SGD_L2 = "SGDW (decoupled)", "SGD + L2"
FAR = 0.08
MOVE_MARGIN = 0.25
APART = 30.0
PAPER = "Loshchilov & Hutter, arXiv 1711.05101"


@dataclasses.dataclass(frozen=True)
class Settings(Compared):
    """Both forms get every learning rate and equally many coefficients in factors of about 3.

    Attributes:
      learning_rates: peaks of the schedule, over two decades.
      decoupled: coefficients of the paper's decay, per task.
      l2: coefficients of L2, per task.
    """

    learning_rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    decoupled: tuple[tuple[float, ...], ...] = ((3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2))
    l2: tuple[tuple[float, ...], ...] = ((3e-4, 1e-3, 3e-3, 1e-2), (1e-3, 3e-3, 1e-2, 3e-2))


def _recipe(make: Any) -> Recipe:
    def build(carrier: Carrier, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        peak = jnp.max(carrier.learning_rates)
        return make(carrier, **numbers, decay="schedule", base_learning_rate=peak)

    return Recipe(f"{make.__name__}, the paper's decay or L2", build)


@dataclasses.dataclass(frozen=True)
class Forms:
    """The two forms of decay under one optimizer.

    Attributes:
      decoupled: name of the decoupled form.
      l2: name of the other.
      recipe: the optimizer, which takes both.
      numbers: its other hyperparameters.
    """

    decoupled: str
    l2: str
    recipe: Recipe
    numbers: Mapping[str, float]

    @property
    def keys(self) -> dict[str, str]:
        """Return the coefficient that each form varies."""
        return {self.decoupled: "weight_decay", self.l2: "l2"}

    def arms(self, s: Settings, task: str) -> list[Arm]:
        """Return both forms at every learning rate with every coefficient."""
        i = s.tasks.index(task)
        numbers = [(self.decoupled, {"l2": 0.0, "weight_decay": d}) for d in s.decoupled[i]]
        numbers += [(self.l2, {"l2": d, "weight_decay": 0.0}) for d in s.l2[i]]
        return [
            Arm(group, self.recipe, "article", rate, settings(**self.numbers, **chosen))
            for rate in s.learning_rates
            for group, chosen in numbers
        ]

    def bests(self, s: Settings, rows: Sequence[Row]) -> Result:
        """Return the best coefficient at every learning rate, with its accuracy, and the maps."""
        rows, lines, ends = tuned(rows), [], {}
        for task, group, rate in itertools.product(s.tasks, self.keys, s.learning_rates):
            mine, key = where(rows, task=task), self.keys[group]
            best = best_at(mine, group, rate)
            accuracy = spread(column(at_end(best), "test_accuracy")).mean
            lines.append({"task": task, "form": group, "learning_rate": rate,
                          "best": best[0][key], "accuracy": accuracy})  # fmt: skip
            tried = [row[key] for row in where(mine, group=group)]
            ends.setdefault((task, group), []).append(best[0][key] in (min(tried), max(tried)))
        shown = columns(
            "task | form | learning_rate: lr {:g} | best: best coefficient {:g} | accuracy: its "
            "test accuracy {:.1%}"
        )
        remarks = [
            f"{get_task(task).title}, {group}: at {sum(found)} of {len(found)} learning rates the "
            "best coefficient is an end of the grid, so it may lie beyond."
            for (task, group), found in ends.items() if any(found)
        ]  # fmt: skip
        table = Table("best", "The best coefficient at every learning rate", shown, lines)
        return Result((), [table], [self.maps(s, rows, task) for task in s.tasks], remarks)

    def same_place(self, s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
        """Judge whether the best coefficient is the same at all learning rates."""
        rows = tuned(rows)
        rates = unique(rows, "learning_rate")
        best = {group: [best_at(rows, group, rate)[0][key] for rate in rates]
                for group, key in self.keys.items()}  # fmt: skip
        decoupled, l2 = (len(set(best[group])) == 1 for group in self.keys)
        word = "shown" if decoupled and not l2 else "contradicted"
        listed = {group: ", ".join(f"{v:g}" for v in values) for group, values in best.items()}
        return Verdict(
            claim="The best decoupled decay is the same at every learning rate; the best L2 moves",
            task=get_task(task).title,
            word="equivalent" if decoupled and l2 else word,
            evidence=f"Best at lr {', '.join(f'{r:g}' for r in rates)}: decoupled "
            f"{listed[self.decoupled]}; L2 {listed[self.l2]}.",
            rule="Coefficient of the best mean validation accuracy: the same at all rates for "
            "decoupled decay only, shown; for both, equivalent; else contradicted.",
            literature="Loshchilov & Hutter: yes, on a fine grid.",
        )

    def moves_less(self, s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
        """Judge how far the best coefficient moves per decade of learning rate, for every seed."""
        ends = at_end(tuned(rows))
        speed = {
            group: [drift(where(ends, group=group, seed=seed), s.learning_rates, key)
                    for seed in s.seeds]
            for group, key in self.keys.items()
        }  # fmt: skip
        size = {group: [abs(value) for value in values] for group, values in speed.items()}
        d = paired(size[self.l2], size[self.decoupled])
        mean = {group: spread(values).mean for group, values in speed.items()}
        return judged(
            "As the learning rate grows, the best decoupled decay moves less than the best L2",
            get_task(task).title, d, MOVE_MARGIN,
            "how much faster L2's best moves, seed by seed (tops of parabolas through validation "
            "accuracy over the logarithm of the coefficient)",
            f"Decades per decade of learning rate: decoupled {mean[self.decoupled]:+.2f}, L2 "
            f"{mean[self.l2]:+.2f}; difference in size {d.mean:+.2f} [{d.low:+.2f}, "
            f"{d.high:+.2f}].",
            unit=f"{MOVE_MARGIN:g} decades",
            literature="Loshchilov & Hutter: yes (the two become separable).",
        )  # fmt: skip

    def apart(self, s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
        """Judge how far apart the best coefficients are that the learning rate multiplies."""
        best = {}
        for group in self.keys:
            mine = where(tuned(rows), group=group)
            best[group] = where(mine, arm=best_arm(mine))[0]
        decay, l2 = best[self.decoupled], best[self.l2]
        coefficient = decay["weight_decay"] / decay["learning_rate"]
        ratio = coefficient / l2["l2"]
        return met(
            "The best decay and the best L2 differ by orders of magnitude",
            get_task(task).title, max(ratio, 1 / ratio) >= APART,
            f"Best decay {decay['weight_decay']:g} at lr {decay['learning_rate']:g}, in PyTorch's "
            f"form {coefficient:.3g}; best L2 {l2['l2']:g} at lr {l2['learning_rate']:g}: "
            f"{ratio:.3g}-fold.",
            f"Ratio of the coefficients that the learning rate multiplies, each at the best mean "
            f"validation accuracy of the grid, {APART:g}-fold or more either way",
            "2018 article: yes, for instance a decay of 0.3 where L2 wants 1e-7.",
        )  # fmt: skip

    def maps(self, s: Settings, rows: Sequence[Row], task: str) -> Figure:
        """Return heat maps of the validation accuracy over learning rates and coefficients."""
        mine, panels = where(rows, task=task), []
        for (group, key), label in zip(self.keys.items(), ("decay", "L2"), strict=True):
            cells = []
            for rate in s.learning_rates:
                line = at_end(where(mine, group=group, learning_rate=rate))
                best = best_at(mine, group, rate)[0]["arm"]
                means = {arm: spread(column(where(line, arm=arm), "validation_accuracy"))
                         for arm in unique(line, "arm")}  # fmt: skip
                cells += [
                    {"x": where(line, arm=arm)[0][key], "y": rate, "mean": value.mean,
                     "sd": value.sd, "gap": means[best].mean - value.mean, "best": arm == best}
                    for arm, value in means.items()
                ]  # fmt: skip
            title = f"{label} coefficient (ring: best of the row)"
            panels.append(Panel(group, heat(title, "learning rate", most=FAR), cells))
        return Figure(
            name=f"heat_{task}",
            title=f"Where the best decay lies ({get_task(task).title})",
            alt="Two heat maps of mean validation accuracy over learning rate and decay "
            "coefficient, one for decoupled decay and one for L2. Numbers are per cent with "
            "standard deviation over seeds; darkness is closeness to the best of the row, which "
            "is ringed.",
            panels=panels,
            panel_size=(4.7, 3.3),
        )


def best_at(rows: Sequence[Row], group: str, rate: float) -> list[Row]:
    """Return the rows of the best arm of a form at one learning rate, by validation accuracy."""
    mine = where(rows, group=group, learning_rate=rate)
    return where(mine, arm=best_arm(mine))


def drift(rows: Sequence[Row], rates: Sequence[float], key: str) -> float:
    """Return how many decades the best coefficient moves per decade of rate, for one seed."""
    tops = []
    for rate in rates:
        line = sorted((row[key], row["validation_accuracy"]) for row in rows
                      if row["learning_rate"] == rate)  # fmt: skip
        x, y = np.log10([c for c, _ in line]), np.array([a for _, a in line])
        a, b, _ = np.polyfit(x, y, 2)
        inside = np.clip(-b / (2 * a), x[0], x[-1]) if a < 0 else x[np.argmax(y)]
        tops.append(float(inside))
    return float(np.polyfit(np.log10(rates), tops, 1)[0])


ADAM_FORMS = Forms(DECOUPLED, L2, _recipe(adamw), {"b2": 0.99})
SGD_FORMS = Forms(SGDW, SGD_L2, _recipe(sgdw), {})
SETUP = (
    "The article's 1cycle, the same number of coefficients for both forms at every learning rate, "
    "on grids of factors of about three; the decay is multiplied by the schedule and not by its "
    "peak, as in the paper. In the maps each number is the mean validation accuracy in per cent. "
    "Darker is closer to the best of its row, and the ring marks that best. Accuracies are "
    "compared on fresh seeds."
)
COLUMNS = "weight_decay: decoupled {:g} | l2: L2 {:g}"
TINY = {
    "learning_rates": (0.003, 0.01), "decoupled": ((3e-4, 1e-3, 1e-2),), "l2": ((3e-4, 1e-3, 1e-2),)
}  # fmt: skip

EXPERIMENT = study(
    "decoupled_decay", Settings(), ADAM_FORMS.arms,
    claims=[ADAM_FORMS.same_place, ADAM_FORMS.moves_less, Beats(
        DECOUPLED, L2, "Tuned AdamW reaches a higher accuracy than tuned Adam with L2",
        literature="2018 article: a tie in the mean (94.0-94.25 against 93.96 %).",
    ), ADAM_FORMS.apart],
    figures=[], numbers=COLUMNS, more=ADAM_FORMS.bests, tiny=TINY,
    title="Decoupled weight decay against L2",
    question="With Adam, weight decay outside the moments (AdamW) differs from an L2 term in the "
    "gradient. Which is easier to tune, and which is better after tuning?",
    setup=f"Adam with b2 0.99. {SETUP}",
    reference=PAPER,
)  # fmt: skip

SGD_EXPERIMENT = study(
    "decoupled_decay_sgd", Settings(
        learning_rates=(0.003, 0.01, 0.03, 0.1, 0.3),
        decoupled=((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
        l2=((1e-3, 3e-3, 1e-2, 3e-2, 1e-1),) * 2,
    ), SGD_FORMS.arms,
    claims=[SGD_FORMS.same_place, SGD_FORMS.moves_less, Beats(
        SGDW, SGD_L2, "Tuned SGDW reaches a higher accuracy than tuned SGD with L2",
    )],
    figures=[], numbers=COLUMNS, more=SGD_FORMS.bests, tiny={**TINY, "learning_rates": (0.03, 0.1)},
    title="Decoupled weight decay against L2 under SGD",
    question="With SGD, L2 is a decay times the learning rate. Does a decay of its own make the "
    "two separable, as the paper shows beside Adam?",
    setup=f"SGD with the momentum of the cycle. {SETUP}",
    reference=PAPER,
)  # fmt: skip
