"""Compare RAdam and AdamW without warm-up, over learning rates."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from adamw_jax.lab.experiments.common import ACCURACY_MARGIN, at_end, interval, tuned
from adamw_jax.lab.experiments.parts import column, curves, judged, where
from adamw_jax.lab.experiments.studies import Beats, Claim, Compared, study
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import ADAM, Arm, catalogue, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Verdict
from adamw_jax.lab.stats import paired, spread
from adamw_jax.lab.tasks import get_task


@dataclasses.dataclass(frozen=True)
class Settings(Compared):
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


def _arms(s: Settings, task: str) -> list[Arm]:
    """Train both under a cosine that starts at the full learning rate."""
    radam, decay, out = catalogue("radam"), s.decay[s.tasks.index(task)], []
    for b2, rate in itertools.product(s.b2, s.learning_rates):
        if b2 == s.b2[0]:
            adam = settings(b2=b2, l2=0.0, weight_decay=decay)
            out.append(Arm(_name("AdamW", b2), ADAM, "cosine", rate, adam))
        numbers = settings(b2=b2, weight_decay=decay)
        out.append(Arm(_name("RAdam", b2), radam, "cosine", rate, numbers))
    return out


def _claims(s: Settings) -> list[Claim]:
    return [_robust, Beats(
        _name("RAdam", s.b2[0]), _name("AdamW", s.b2[0]),
        "Tuned RAdam beats tuned AdamW when neither has a warm-up",
        literature="Liu et al.: yes; equal once AdamW has a warm-up.",
    )]  # fmt: skip


def _robust(s: Settings, task: str, rows: Sequence[Row]) -> Verdict:
    ends = at_end(tuned(rows))

    def over_rates(name: str) -> list[float]:
        """Return the test accuracy averaged over all learning rates, per seed."""
        mine = where(ends, group=_name(name, s.b2[0]))
        each = [column(where(mine, learning_rate=r), "test_accuracy") for r in s.learning_rates]
        return [float(v) for v in np.mean(each, axis=0)]

    radam, adamw = over_rates("RAdam"), over_rates("AdamW")
    difference = paired(radam, adamw)
    return judged(
        "Without warm-up, RAdam is less sensitive to the learning rate than AdamW",
        get_task(task).title, difference, ACCURACY_MARGIN,
        f"the difference in test accuracy averaged over the {len(s.learning_rates)} learning rates "
        f"(b2 {s.b2[0]:g})",
        f"Averaged over lr {min(s.learning_rates):g} to {max(s.learning_rates):g}: RAdam "
        f"{100 * spread(radam).mean:.1f} %, AdamW {100 * spread(adamw).mean:.1f} %; difference "
        f"{interval(difference, 'test_accuracy')}.",
        unit="1 point", literature="Liu et al.: yes.",
    )  # fmt: skip


def _fan(s: Settings, rows: Sequence[Row]) -> Figure:
    groups = [_name("AdamW", s.b2[0]), *(_name("RAdam", b2) for b2 in s.b2)]
    draw = lines(
        "learning rate", "test accuracy", xscale="log", percent=True, spread="bars", markers=True,
        ticks_at_data=True, ylim=(0, None), legend="lower left",
    )  # fmt: skip
    ends = {task: at_end(where(tuned(rows), task=task)) for task in s.tasks}
    return Figure(
        name="learning_rates",
        title="No warm-up: accuracy against the learning rate",
        alt="Line plots of final test accuracy against the learning rate, for AdamW, and for "
        "RAdam with several values of b2; bars are standard deviations over seeds. No run had a "
        "warm-up.",
        panels=[
            Panel(get_task(task).title, draw,
                  curves(mine, "learning_rate", "test_accuracy", groups, by="group"))
            for task, mine in ends.items()
        ],
        panel_size=(4.6, 3.9),
    )  # fmt: skip


def _patience(s: Settings, rows: Sequence[Row]) -> Result:
    longest, steps = max(s.b2), [str(s.plan(task).steps) for task in s.tasks]
    remark = (
        f"RAdam holds back for about 2/(1 - b2) steps: {2 / (1 - longest):.0f} with b2 "
        f"{longest:g}, and these runs have {' and '.join(steps)}. The b2 {longest:g} curve shows "
        "what that costs a short training."
    )
    return Result(remarks=[remark] if len(s.b2) > 1 else [])


EXPERIMENT = study(
    "radam", Settings(), _arms,
    claims=_claims, figures=[_fan], numbers="b2 {:g}", more=_patience,
    tiny={"learning_rates": (0.003, 0.1)},
    title="RAdam without warm-up",
    question="In Adam's first steps the second moment is an average of very few gradients, so "
    "Adam usually gets a warm-up. RAdam scales these steps by their variance instead. Does this "
    "make the learning rate less critical?",
    setup="Cosine decay from the full learning rate at the first step, no warm-up, the same grid "
    "for both, decoupled decay. RAdam skips steps until its average is long enough.",
    reference="Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, arXiv "
    "1908.03265",
)  # fmt: skip
