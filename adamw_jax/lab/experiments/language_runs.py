"""Share code of the experiments on language models: text, networks, runs and verdicts.

Settings are chosen by the validation loss, with one or few seeds, and judged on the test text with
fresh seeds. A loss is the mean log-perplexity of a word, so differences are relative: 0.01 is 1 %
of the perplexity.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamw_jax import adamw, compose
from adamw_jax.gradient import clip_gradient
from adamw_jax.lab import study
from adamw_jax.lab.data.plays import plays
from adamw_jax.lab.data.text import Text
from adamw_jax.lab.data.wikipedia import wikipedia
from adamw_jax.lab.data.wikitext import twin, wikitext2
from adamw_jax.lab.experiments.common import FRESH, at_end, best_arm
from adamw_jax.lab.experiments.parts import column, columns, curves, judged, unique, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.network_runs import Run, train_runs, trial
from adamw_jax.lab.networks import LSTM_CELLS, Cache, LanguageShape, Reading, language_task
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import Arm, Carrier, Recipe
from adamw_jax.lab.results import Figure, Panel, Row, Table, Verdict
from adamw_jax.lab.stats import as_good, paired, spread
from adamw_jax.lab.task import Task

L2 = "Adam + L2"
WIKIPEDIA, PLAYS, WIKITEXT, MADE_UP = "Wikipedia", "Shakespeare", "WikiText-2", "made-up text"
MARGIN, AS_GOOD = 0.01, 0.02
B2 = 0.99
SCHEDULE = "article_language"

Ends = Mapping[tuple[str, str], Sequence[Row]]
"""The last rows of the runs with fresh seeds, by network and group."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A text, two networks and their training.

    Attributes:
      data: ``WIKIPEDIA``, or ``PLAYS`` where gensim is not installed; ``WIKITEXT``, or ``MADE_UP``
        for a synthetic twin of it.
      vocabulary: number of different words.
      words: words of the training, validation and test text.
      lstm: embedding, hidden size and layers of the LSTM.
      qrnn: the same of the QRNN.
      lstm_dropout: of input, hidden layers, output, weights and words.
      qrnn_dropout: the same of the QRNN.
      lstm_penalties: on the activation (AR) and its change (TAR).
      qrnn_penalties: the same of the QRNN.
      batch_size: columns of the text.
      length: words of a column in a step.
      scatter: standard deviation of this number.
      clip: largest norm of the gradient.
      epochs: passes over the training text.
      points: evaluations in a run.
      rates: learning rates to choose from.
      l2: coefficients of L2 to choose from.
      decays: decoupled decays to choose from.
      theta: sharpness of the cache.
      share: weight of the cache.
      window: positions in the cache.
      tuning_seeds: runs of each setting.
      seeds: fresh seeds of the chosen settings.
      trial: steps of a trial; 0 to train.
    """

    data: str = WIKIPEDIA if importlib.util.find_spec("gensim") else PLAYS
    vocabulary: int = 2000
    words: tuple[int, int, int] = (100_000, 20_000, 20_000)
    lstm: tuple[int, int, int] = (96, 96, 1)
    qrnn: tuple[int, int, int] = (96, 96, 2)
    lstm_dropout: tuple[float, ...] = (0.2, 0.1, 0.2, 0.1, 0.0)
    qrnn_dropout: tuple[float, ...] = (0.2, 0.1, 0.2, 0.0, 0.0)
    lstm_penalties: tuple[float, float] = (0.0, 0.0)
    qrnn_penalties: tuple[float, float] = (0.0, 0.0)
    batch_size: int = 20
    length: int = 35
    scatter: int = 2
    clip: float = 0.25
    epochs: int = 3
    points: int = 3
    rates: tuple[float, ...] = (0.01, 0.03, 0.08)
    l2: tuple[float, ...] = (1.2e-6, 1e-4)
    decays: tuple[float, ...] = (0.1, 0.3)
    theta: float = 0.662
    share: float = 0.1279
    window: int = 2000
    tuning_seeds: int = 1
    seeds: int = 5
    trial: int = 0


FULL = Settings(
    data=WIKITEXT,
    vocabulary=33_278,
    words=(2_088_628, 217_646, 245_569),
    lstm=(400, 1150, 3),
    qrnn=(400, 1550, 4),
    lstm_dropout=(0.6, 0.2, 0.4, 0.5, 0.1),
    qrnn_dropout=(0.4, 0.2, 0.4, 0.1, 0.1),
    lstm_penalties=(3.0, 1.5),
    qrnn_penalties=(2.0, 1.0),
    batch_size=100,
    length=70,
    scatter=5,
    clip=0.12,
    epochs=90,
    points=18,
    rates=(0.005,),
    l2=(1.2e-6,),
    decays=(0.001, 0.01),
    window=3785,
)


TINY = {"data": MADE_UP, "vocabulary": 60, "words": (3000, 600, 600), "lstm": (8, 12, 1),
        "qrnn": (8, 12, 1), "batch_size": 4, "length": 10, "epochs": 1, "points": 1,
        "rates": (0.01,), "l2": (1e-5,), "decays": (0.01, 0.1), "window": 50,
        "seeds": 2}  # fmt: skip
"""Changes for tests."""


def adam(carrier: Carrier, numbers: Mapping[str, Any], amsgrad: bool = False) -> Any:
    """Return Adam with both forms of decay, behind a clip of the gradient."""
    own = dict(numbers)
    return compose(clip_gradient(own.pop("clip")), adamw(carrier, amsgrad=amsgrad, **own))


ADAM = Recipe("clipped adam", adam)


def text_of(s: Settings) -> Text:
    """Return the text."""
    if s.data == WIKIPEDIA:
        return wikipedia(s.vocabulary, *s.words[:2])
    if s.data == PLAYS:
        return plays(s.vocabulary, *s.words[:2])
    return wikitext2() if s.data == WIKITEXT else twin(s.words, s.vocabulary)


@functools.lru_cache(maxsize=8)
def task_of(s: Settings, network: str, cache: bool = False) -> Task:
    """Return the task of training a network, with or without the cache in its evaluation."""
    lstm, text = network == LSTM_CELLS, text_of(s)
    sizes, drops = (s.lstm, s.lstm_dropout) if lstm else (s.qrnn, s.qrnn_dropout)
    penalties = s.lstm_penalties if lstm else s.qrnn_penalties
    return language_task(
        text,
        LanguageShape(network, len(text.words), *sizes, *drops),
        Reading(s.batch_size, s.length, s.scatter, *penalties),
        Cache(s.theta, s.share, s.window) if cache else None,
        name=title_of(s, network),
        about=text.about,
        lanes=1,
    )


@functools.lru_cache(maxsize=2)
def _with_cache(s: Settings, network: str) -> Callable[[Any, Any], dict[str, Any]]:
    """Return the function that evaluates final weights with the cache."""
    task = task_of(s, network, cache=True)
    measured = jax.jit(task.metrics)

    def evaluated(params: Any, state: Any) -> dict[str, Any]:
        return {
            f"{split}_{name}": value
            for split, examples in task.data.held_out.items()
            for name, value in measured(params, state, examples).items()
            if name.startswith("cache")
        }

    return evaluated


def measured(
    s: Settings, runner: Any, networks: Sequence[str], arms: Callable[[str], Iterable[Arm]]
) -> Rows:
    """Choose the setting of every contender, and train it with fresh seeds.

    Args:
      s: the settings; for a trial, each network makes a few steps with its first contender.
      runner: the runner.
      networks: names of networks.
      arms: network -> every setting of every contender.
    """
    steps = s.epochs * Reading(s.batch_size, s.length).steps(len(text_of(s).train))
    every: dict[tuple[str, str], list[Run]] = {}
    for network in networks:
        labels = {"network": network, "stage": "tune"}
        for arm in arms(network):
            run = Run(task_of(s, network), arm, 0, steps, s.points, labels)
            every.setdefault((network, arm.group), []).append(run)
    tuning = [
        dataclasses.replace(run, seed=seed)
        for runs in every.values() if len(runs) > 1
        for run in runs
        for seed in range(s.tuning_seeds)
    ]  # fmt: skip
    if s.trial:
        whole = steps * (len(tuning) + s.seeds * len(every))
        firsts = {network: runs[0] for (network, _), runs in reversed(every.items())}
        return [row for name in networks for row in trial(firsts[name], s.trial, whole)]
    rows, chosen = train_runs(runner, tuning), []
    for (network, group), runs in every.items():
        mine = where(rows, network=network, group=group)
        best = best_arm(mine, "validation_loss") if mine else runs[0].arm.name
        run = next(run for run in runs if run.arm.name == best)
        labels, evaluated = {"network": network, "stage": FRESH}, _with_cache(s, network)
        chosen += [
            dataclasses.replace(run, seed=study.FRESH + i, labels=labels, at_end=evaluated)
            for i in range(s.seeds)
        ]
    return rows + train_runs(runner, chosen)


def ends_of(rows: Rows) -> Ends:
    """Return the last rows of the runs with fresh seeds."""
    fresh = where(rows, stage=FRESH)
    return {
        (network, group): at_end(where(fresh, network=network, group=group))
        for network in unique(fresh, "network")
        for group in unique(where(fresh, network=network), "group")
    }


def title_of(s: Settings, network: str) -> str:
    """Return the title of a task."""
    return f"{network}, {s.data}"


def perplexity(rows: Sequence[Row], key: str = "test_loss") -> str:
    """Return mean and deviation of the perplexity in words."""
    found = spread([float(np.exp(loss)) for loss in column(rows, key)])
    return f"{found.mean:.2f} ± {found.sd:.2f}"


def saved(s: Settings, by: str) -> str:
    """Return what is judged, in words."""
    return f"the log-perplexity saved by {by} on test data, over {s.seeds} fresh seeds"


def lower(
    s: Settings, ends: Ends, network: str, a: str, b: str, claim: str, literature: str = ""
) -> Verdict:
    """Return the verdict on "a has a lower perplexity than b", each at its best setting."""
    first, second = ends[network, a], ends[network, b]
    difference = paired(column(second, "test_loss"), column(first, "test_loss"))
    return judged(
        claim, title_of(s, network), difference, MARGIN, saved(s, "the first"),
        f"{a} {perplexity(first)}, {b} {perplexity(second)}; log-perplexity saved {difference}.",
        literature=literature,
    )  # fmt: skip


def as_low(
    s: Settings,
    a: tuple[str, Sequence[Row]],
    b: tuple[str, Sequence[Row]],
    task: str,
    claim: str,
    literature: str = "",
) -> Verdict:
    """Return the verdict on "a has at most ``AS_GOOD`` more log-perplexity than b".

    Args:
      s: the settings.
      a: name and last rows.
      b: the same of another.
      task: what it was tested on.
      claim: the claim in words.
      literature: findings of others.
    """
    difference = paired(column(b[1], "test_loss"), column(a[1], "test_loss"))
    return Verdict(
        claim,
        task,
        as_good(difference, AS_GOOD),
        f"{a[0]} {perplexity(a[1])}, {b[0]} {perplexity(b[1])}; log-perplexity saved {difference}.",
        f"95 % paired interval of {saved(s, 'the first')}: above -{AS_GOOD}, shown; below it, "
        "contradicted; else undecided.",
        literature,
    )


LOSSES = ("validation_loss", "test_loss", "validation_cache_loss", "test_cache_loss")
NUMBERS = (
    "network | group: contender | learning_rate: lr {:g} | l2: L2 {:g} | weight_decay: decay {:g} |"
)


def tables_of(s: Settings, rows: Rows, ends: Ends, notes: Mapping[Any, str]) -> list[Table]:
    """Return tables of the perplexities and of all settings.

    Args:
      s: the settings.
      rows: all rows.
      ends: from ``ends_of``.
      notes: what others found, by network and group.
    """
    found = [
        {**own[0], **{key: float(np.exp(np.mean(column(own, key)))) for key in LOSSES},
         "note": notes.get(group, "")}
        for group, own in ends.items()
    ]  # fmt: skip
    shown = columns(
        f"{NUMBERS} validation_loss: validation {{:.1f}} | test_loss: test {{:.1f}} | "
        "validation_cache_loss: with cache: validation {:.1f} | test_cache_loss: test {:.1f}"
        + (" | note: published, in this order" if notes else "")
    )
    title = f"Perplexities: means over {s.seeds} fresh seeds"
    every = columns(f"{NUMBERS} seed {{:d}} | validation_perplexity: validation {{:.1f}}")
    tuned = at_end(where(rows, stage="tune"))
    return [
        Table("perplexities", title, shown, found),
        *([Table("settings", "Perplexities of every setting", every, tuned)] if tuned else []),
    ]


def remarks_of(rows: Rows, ends: Ends) -> list[str]:
    """Return a sentence on each contender whose best learning rate is the lowest or highest."""
    found = []
    for (network, group), own in ends.items():
        tuned = where(rows, stage="tune", network=network, group=group)
        tried, best = unique(tuned, "learning_rate"), own[0]["learning_rate"]
        if len(tried) > 1 and best in (min(tried), max(tried)):
            found.append(
                f"{network}, {group}: the best learning rate, {best:g}, is at the edge of those "
                "tried."
            )
    return found


def curves_of(s: Settings, rows: Rows) -> Figure:
    """Return a figure of validation perplexity over epochs."""
    fresh, panels = where(rows, stage=FRESH), []
    for network in unique(fresh, "network"):
        mine = [
            {**row, "epoch": s.epochs * row["step"] / row["steps"]}
            for row in where(fresh, network=network)
        ]
        points = curves(mine, "epoch", "validation_perplexity", by="group")
        draw = lines("epochs", "validation perplexity", yscale="log")
        panels.append(Panel(title_of(s, network), draw, points))
    return Figure(
        "perplexity",
        "Validation perplexity during training",
        "Lines of validation perplexity against epochs, one for every contender, and a panel for "
        "every network: mean and standard deviation over seeds.",
        panels,
    )
