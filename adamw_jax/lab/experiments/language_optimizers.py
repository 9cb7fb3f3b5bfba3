"""Train a language model on real text by optimizers whose papers do so too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import adafactor, adamw, compose, generalized_signsgd, lookahead, sgdw
from adamw_jax.gradient import clip_gradient
from adamw_jax.lab.experiments import language_runs
from adamw_jax.lab.experiments.language_runs import (
    ADAM,
    B2,
    FULL,
    MARGIN,
    TINY,
    as_low,
    curves_of,
    ends_of,
    lower,
    measured,
    remarks_of,
    tables_of,
    task_of,
    title_of,
)
from adamw_jax.lab.experiments.parts import judged, network_experiment, unique, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.network_runs import trial_result
from adamw_jax.lab.networks import LSTM_CELLS
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import Arm, Carrier, Recipe, settings, tables
from adamw_jax.lab.results import Figure, Panel, Result, Verdict
from adamw_jax.lab.stats import paired
from adamw_jax.lab.task import Task
from adamw_jax.lab.train import finite
from adamw_jax.storage import eight_bit, quantize_state

DECOUPLED, EIGHT, AHEAD = "AdamW", "AdamW, 8 bit", "AdamW, Lookahead"
FACTORED, SIGN, SGD = "Adafactor", "generalized SignSGD", "clipped SGD"
Numbers = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings(language_runs.Settings):
    """The same text and LSTM as in the article's experiment.

    Attributes:
      sgd: learning rates of SGD over those of the others.
      smooth_seeds: runs along which smoothness is measured.
      smooth_steps: measurements in each.
    """

    sgd: float = 300.0
    smooth_seeds: int = 4
    smooth_steps: int = 60


def _clipped(numbers: Numbers) -> tuple[Any, dict[str, Any]]:
    """Return the clip of the gradient, and the other numbers."""
    own = dict(numbers)
    return clip_gradient(own.pop("clip")), own


def _eight(carrier: Carrier, numbers: Numbers) -> Any:
    clip, own = _clipped(numbers)
    return quantize_state(compose(clip, adamw(carrier, **own)), eight_bit())


def _ahead(carrier: Carrier, numbers: Numbers) -> Any:
    clip, own = _clipped(numbers)
    return compose(clip, adamw(carrier, **own), lookahead(sync_period=5, slow_step_size=0.5))


def _factored(carrier: Carrier, numbers: Numbers) -> Any:
    return adafactor(carrier, min_dim_size_to_factor=8, **numbers)


def _sign(carrier: Carrier, numbers: Numbers) -> Any:
    return generalized_signsgd(carrier, corrected=True, **numbers)


def _sgd(carrier: Carrier, numbers: Numbers) -> Any:
    clip, own = _clipped(numbers)
    return compose(clip, sgdw(carrier, **own))


def arms(s: Settings, network: str) -> Iterator[Arm]:
    """Yield every setting of every contender."""
    clipped = {"clip": s.clip, "weight_decay": s.decays[0]}
    for rate in s.rates:
        for group, recipe, factor, numbers in (
            (DECOUPLED, ADAM, 1.0, {"b2": B2, "l2": 0.0, **clipped}),
            (EIGHT, Recipe("8-bit adamw", _eight), 1.0, {"b2": B2, **clipped}),
            (AHEAD, Recipe("lookahead(adamw)", _ahead), 1.0, {"b2": B2, **clipped}),
            (FACTORED, Recipe("factored adafactor", _factored), 1.0, {}),
            (SIGN, Recipe("generalized signsgd", _sign), 1.0,
             {"b2": B2, "weight_decay": s.decays[0]}),
            (SGD, Recipe("clipped sgd", _sgd), s.sgd, {"clip": s.clip, "weight_decay": 0.0}),
        ):  # fmt: skip
            yield Arm(group, recipe, language_runs.SCHEDULE, factor * rate, settings(**numbers))


def measure(s: Settings, runner: Any) -> Rows:
    """Choose settings, train with fresh seeds, and measure the smoothness along a few runs."""
    rows = measured(s, runner, (LSTM_CELLS,), functools.partial(arms, s))
    if s.trial:
        return rows
    mine = where(rows, group=DECOUPLED, stage="fresh")
    arm = next(a for a in arms(s, LSTM_CELLS) if a.name == mine[0]["arm"])
    return rows + [
        {"stage": "smoothness", "network": LSTM_CELLS, **row}
        for seed in range(s.smooth_seeds)
        for row in smoothness(task_of(s, LSTM_CELLS), arm, seed, mine[0]["steps"], s.smooth_steps)
    ]


def smoothness(task: Task, arm: Arm, seed: int, steps: int, points: int) -> Rows:
    """Return gradient norm and smoothness at some steps of a run.

    Smoothness is |g(x') - g(x)| / |x' - x| for a step from x to x', with the gradients of the same
    batch under the same dropout.

    Args:
      task: what to train.
      arm: the optimizer and its schedule.
      seed: of the run.
      steps: steps of the run.
      points: number of measurements, evenly spread.
    """
    curves = map(jnp.asarray, tables(arm.schedule, arm.learning_rate, steps))
    tx = arm.recipe.build(Carrier(*curves), dict(arm.settings))
    params, state = task.start(jax.random.key(seed))

    @jax.jit
    def gradient(params: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        return jax.grad(lambda p: task.losses(p, state, batch, key), has_aux=True)(params)

    @jax.jit
    def move(slope: Any, inner: Any, params: Any) -> Any:
        updates, inner = tx.update(slope, inner, params)
        return optax.apply_updates(params, updates), inner, optax.tree.norm(updates)

    inner, batches, rows = tx.init(params), task.data.batches(seed), []
    marks = {round(steps * (i + 1) / points) for i in range(points)}
    for number in range(1, steps + 1):
        batch, key = next(batches), jax.random.fold_in(jax.random.key(seed), number)
        slope, after = gradient(params, state, batch, key)
        new, inner, length = move(slope, inner, params)
        if number in marks:
            other, _ = gradient(new, state, batch, key)
            change = optax.tree.norm(optax.tree.sub(other, slope))
            rows.append({"seed": seed, "step": number, "gradient": finite(optax.tree.norm(slope)),
                         "smoothness": finite(change / length)})  # fmt: skip
        params, state = new, after
    return rows


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare every optimizer with AdamW, and judge how smoothness goes with the gradient."""
    if s.trial:
        return trial_result(rows)
    ends = ends_of(rows)

    def against(group: str, claim: str, literature: str) -> Verdict:
        pair = ((name, ends[LSTM_CELLS, name]) for name in (group, DECOUPLED))
        return as_low(s, *pair, title_of(s, LSTM_CELLS), claim, literature)  # type: ignore[call-arg]

    verdicts = [
        against(EIGHT, "AdamW with 8-bit moments reaches the perplexity of AdamW",
                "Dettmers et al. 2022: yes, language models included."),
        against(FACTORED, "Adafactor with factored moments reaches the perplexity of AdamW",
                "Shazeer & Stern 2018: yes, in translation."),
        lower(s, ends, LSTM_CELLS, AHEAD, DECOUPLED, "Lookahead lowers the perplexity of AdamW",
              "Zhang et al. 2019: yes, for an LSTM on Penn Treebank."),
        against(SIGN, "Generalized SignSGD, without clipping, reaches the perplexity of AdamW",
                "Crawshaw et al. 2022: close to Adam, for an AWD-LSTM on Penn Treebank."),
        lower(s, ends, LSTM_CELLS, SIGN, SGD,
              "Generalized SignSGD has a lower perplexity than SGD with momentum and clipping",
              "Crawshaw et al. 2022: yes."),
        _grows(s, rows),
    ]  # fmt: skip
    pictures = [curves_of(s, rows), _cloud(s, rows)]
    return Result(verdicts, tables_of(s, rows, ends, {}), pictures, remarks_of(rows, ends))


def _grows(s: Settings, rows: Rows) -> Verdict:
    """Judge the power of the gradient's norm with which smoothness grows along a run."""
    own, powers = where(rows, stage="smoothness"), []
    for seed in unique(own, "seed"):
        points = [(row["gradient"], row["smoothness"]) for row in where(own, seed=seed)]
        x, y = np.log(np.asarray(points, np.float64)).T
        powers.append(float(np.polyfit(x, y, 1)[0]))
    power = paired(powers, [0.0] * len(powers))
    return judged(
        "Along a run, the loss is less smooth where the gradient is larger",
        title_of(s, LSTM_CELLS), power, MARGIN,
        "the power p in smoothness ~ |gradient|^p, fitted to each run of AdamW",
        f"p = {power}, over {len(powers)} runs of {s.smooth_steps} points.",
        literature="Zhang et al. 2020, Crawshaw et al. 2022: yes, for AWD-LSTM.",
    )  # fmt: skip


def _cloud(s: Settings, rows: Rows) -> Figure:
    points = [
        {"series": f"seed {row['seed']}", "x": row["gradient"], "y": row["smoothness"]}
        for row in where(rows, stage="smoothness")
    ]
    draw = lines("norm of the gradient", "smoothness", xscale="log", yscale="log", join=False,
                 markers=True)  # fmt: skip
    return Figure(
        "smoothness",
        "Smoothness along runs of AdamW",
        "Points of smoothness, the change of the gradient over the length of a step, against the "
        "norm of the gradient, both logarithmic, a mark for each run.",
        [Panel(title_of(s, LSTM_CELLS), draw, points)],
        columns=1,
        panel_size=(6.4, 4.0),
    )


EXPERIMENT = network_experiment(
    "language_optimizers", measure, analyse,
    cpu=Settings(seeds=4, decays=(0.1,)),
    full=Settings(**dataclasses.asdict(FULL) | {"rates": (0.002, 0.005), "decays": (0.01,)}),
    tiny={**TINY, "rates": (0.01, 0.02), "decays": (0.1,), "smooth_seeds": 2, "smooth_steps": 6},
    trial={"data": language_runs.MADE_UP, "trial": 3},
    title="Other optimizers and a language model",
    question="8-bit moments, Adafactor, Lookahead and generalized SignSGD were proposed with "
    "experiments on language models. Do their claims hold for an LSTM on real text?",
    setup="Text, LSTM and schedule are those of the experiment on the article's language models. "
    "Every contender gets as many learning rates; those of SGD are larger by a fixed factor. "
    "AdamW, its variants and SGD clip the gradient, generalized SignSGD and Adafactor do not. "
    "Arrays of 4096 elements and more have 8-bit moments. Adafactor factors every matrix and "
    "scales by the parameters' RMS, as in its paper.",
    expected="The papers had other data, so there are no numbers to expect but the verdicts.",
    reference="Dettmers et al., arXiv 2110.02861; Shazeer & Stern, arXiv 1804.04235; Zhang et al., "
    "arXiv 1907.08610; Crawshaw et al., arXiv 2208.11195; Zhang et al., arXiv 1905.11881",
)  # fmt: skip
