"""Train the article's language models: AWD-LSTM and QRNN, with and without a cache pointer."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from adamw_jax import adamw, compose
from adamw_jax.gradient import clip_gradient
from adamw_jax.lab import study
from adamw_jax.lab.data.text import Text
from adamw_jax.lab.data.wikipedia import wikipedia
from adamw_jax.lab.data.wikitext import twin, wikitext2
from adamw_jax.lab.experiments.common import FRESH, at_end, best_arm
from adamw_jax.lab.experiments.parts import (
    column,
    columns,
    curves,
    judged,
    network_experiment,
    unique,
    where,
)
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.network_runs import Run, train_runs, trial, trial_result
from adamw_jax.lab.networks.cache_pointer import Cache
from adamw_jax.lab.networks.language_model import LSTM_CELLS, QRNN_CELLS, Shape
from adamw_jax.lab.networks.reading import Reading, language_task
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import Arm, Carrier, Recipe, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table, Verdict
from adamw_jax.lab.stats import as_good, paired, spread
from adamw_jax.lab.task import Task

L2, DECOUPLED, AMSGRAD = "Adam + L2", "AdamW", "AMSGrad + L2"
CONSTANT, COSINE = "constant rate", "cosine"
WIKIPEDIA, WIKITEXT, MADE_UP = "Wikipedia", "WikiText-2", "made-up text"
MARGIN, AS_GOOD = 0.01, 0.02
PUBLISHED = {LSTM_CELLS: (68.7, 65.5, 52.9, 50.9), QRNN_CELLS: (69.6, 66.7, 53.6, 51.7)}
"""The article's perplexities on WikiText-2: validation and test, then both with the cache."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A text, two networks and their training.

    Attributes:
      data: ``WIKIPEDIA``, ``WIKITEXT``, or ``MADE_UP`` for a synthetic twin of the latter.
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

    data: str = WIKIPEDIA
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
    epochs: int = 5
    points: int = 5
    rates: tuple[float, ...] = (0.006, 0.02)
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


def _adam(carrier: Carrier, numbers: Mapping[str, Any], amsgrad: bool = False) -> Any:
    own = dict(numbers)
    return compose(clip_gradient(own.pop("clip")), adamw(carrier, amsgrad=amsgrad, **own))


ADAM = Recipe("clipped adam", _adam)
AMS = Recipe("clipped amsgrad", functools.partial(_adam, amsgrad=True))


def arms(s: Settings, network: str) -> Iterator[Arm]:
    """Yield every setting of every contender on a network."""
    l2 = [{"l2": value, "weight_decay": 0.0} for value in s.l2]
    decays = [{"l2": 0.0, "weight_decay": value} for value in s.decays]
    found = [(L2, ADAM, "article_language", l2), (DECOUPLED, ADAM, "article_language", decays),
             (AMSGRAD, AMS, "article_language", l2)]  # fmt: skip
    if network == LSTM_CELLS:
        found += [(CONSTANT, ADAM, "constant", l2), (COSINE, ADAM, "cosine", l2)]
    for group, recipe, schedule, all_numbers in found:
        for rate, numbers in itertools.product(s.rates, all_numbers):
            own = settings(clip=s.clip, b2=0.99, **numbers)
            yield Arm(group, recipe, schedule, rate, own)


def text_of(s: Settings) -> Text:
    """Return the text."""
    if s.data == WIKIPEDIA:
        return wikipedia(s.vocabulary, *s.words[:2])
    return wikitext2() if s.data == WIKITEXT else twin(s.words, s.vocabulary)


@functools.lru_cache(maxsize=8)
def task_of(s: Settings, network: str, cache: bool = False) -> Task:
    """Return the task of training a network, with or without the cache in its evaluation."""
    lstm, text = network == LSTM_CELLS, text_of(s)
    sizes, drops = (s.lstm, s.lstm_dropout) if lstm else (s.qrnn, s.qrnn_dropout)
    penalties = s.lstm_penalties if lstm else s.qrnn_penalties
    return language_task(
        text,
        Shape(network, len(text.words), *sizes, *drops),
        Reading(s.batch_size, s.length, s.scatter, *penalties),
        Cache(s.theta, s.share, s.window) if cache else None,
        name=_title(s, network),
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


def measure(s: Settings, runner: Any) -> Rows:
    """Choose the setting of every contender, and train it with fresh seeds."""
    words, tuning, every = len(text_of(s).train), [], {}
    steps = s.epochs * Reading(s.batch_size, s.length).steps(words)
    for network in PUBLISHED:
        task = task_of(s, network)
        for arm in arms(s, network):
            run = Run(task, arm, 0, steps, s.points, {"network": network, "stage": "tune"})
            every.setdefault((network, arm.group), []).append(run)
    for runs in every.values():
        if len(runs) > 1:
            tuning += [dataclasses.replace(run, seed=seed) for run in runs
                       for seed in range(s.tuning_seeds)]  # fmt: skip
    if s.trial:
        whole = steps * (len(tuning) + s.seeds * len(every))
        runs = (runs[0] for (_, group), runs in every.items() if group == L2)
        return [row for run in runs for row in trial(run, s.trial, whole)]
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


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare contenders, networks and evaluations, by log-perplexities seed by seed."""
    if s.trial:
        return trial_result(rows)
    ends = {
        (network, group): at_end(where(rows, network=network, group=group, stage=FRESH))
        for network in PUBLISHED
        for group in unique(where(rows, network=network), "group")
    }
    verdicts = [_cache_helps(s, network, ends[network, L2]) for network in PUBLISHED]
    verdicts.append(_qrnn_as_good(s, ends[QRNN_CELLS, L2], ends[LSTM_CELLS, L2]))
    for network in PUBLISHED:
        for better, claim, literature in CLAIMS:
            own = ends[network, better], ends[network, L2]
            verdicts.append(_beats(s, network, better, L2, *own, claim, literature))
    for other in (CONSTANT, COSINE):
        own = ends[LSTM_CELLS, L2], ends[LSTM_CELLS, other]
        claim = f"1cycle with a long plateau lowers the perplexity of training at a {other}"
        claim = claim.replace("at a cosine", "with cosine annealing")
        verdicts.append(_beats(s, LSTM_CELLS, "1cycle", other, *own, claim,
                               "The article: 90 epochs instead of 750."))  # fmt: skip
    return Result(verdicts, _tables(s, rows, ends), [_curves(s, rows), _dots(s, ends)])


CLAIMS = (
    (DECOUPLED, "AdamW lowers the perplexity of Adam with L2",
     "The article: no gain with recurrent networks, never clearly worse."),
    (AMSGRAD, "AMSGrad lowers the perplexity of Adam", "The article: no gain."),
)  # fmt: skip


def _perplexity(rows: Sequence[Row], key: str) -> str:
    found = spread([np.exp(loss) for loss in column(rows, key)])
    return f"{found.mean:.2f} ± {found.sd:.2f}"


def _lower(what: str, s: Settings) -> str:
    return f"the log-perplexity saved by {what} on test data, over {s.seeds} fresh seeds"


def _cache_helps(s: Settings, network: str, rows: Sequence[Row]) -> Verdict:
    plain, cached = column(rows, "test_loss"), column(rows, "test_cache_loss")
    _, test, _, published = PUBLISHED[network]
    return judged(
        "A neural cache lowers the perplexity", _title(s, network), paired(plain, cached),
        MARGIN, _lower("the cache", s),
        f"Perplexity {_perplexity(rows, 'test_loss')}, with the cache "
        f"{_perplexity(rows, 'test_cache_loss')}; log-perplexity saved {paired(plain, cached)}.",
        literature=f"The article on WikiText-2: {test} and {published}.",
    )  # fmt: skip


def _qrnn_as_good(s: Settings, qrnn: Sequence[Row], lstm: Sequence[Row]) -> Verdict:
    difference = paired(column(lstm, "test_loss"), column(qrnn, "test_loss"))
    return Verdict(
        "A QRNN reaches the perplexity of the LSTM",
        s.data,
        as_good(difference, AS_GOOD),
        f"QRNN {_perplexity(qrnn, 'test_loss')}, LSTM {_perplexity(lstm, 'test_loss')}; "
        f"log-perplexity saved by the QRNN {difference}.",
        f"95 % paired interval of {_lower('the QRNN', s)}: above -{AS_GOOD}, shown; below it, "
        "contradicted; else undecided.",
        "The article on WikiText-2: 66.7 and 65.5.",
    )


def _beats(
    s: Settings,
    network: str,
    a: str,
    b: str,
    first: Sequence[Row],
    second: Sequence[Row],
    claim: str,
    literature: str,
) -> Verdict:
    difference = paired(column(second, "test_loss"), column(first, "test_loss"))
    return judged(
        claim, _title(s, network), difference, MARGIN,
        _lower("it, each at its best setting on validation data,", s),
        f"{a} {_perplexity(first, 'test_loss')}, {b} {_perplexity(second, 'test_loss')}; "
        f"log-perplexity saved {difference}.",
        literature=literature,
    )  # fmt: skip


def _title(s: Settings, network: str) -> str:
    return f"{network}, {s.data}"


def _tables(s: Settings, rows: Rows, ends: Mapping[Any, Sequence[Row]]) -> list[Table]:
    found = []
    for (network, group), own in ends.items():
        means = {key: float(np.exp(np.mean(column(own, key))))
                 for key in ("validation_loss", "test_loss", "validation_cache_loss",
                             "test_cache_loss")}  # fmt: skip
        published = PUBLISHED[network] if group == L2 else ()
        found.append({**own[0], **means, "published": " / ".join(map(str, published))})
    shown = columns(
        "network | group: optimizer or schedule | learning_rate: lr {:g} | l2: L2 {:g} | "
        "weight_decay: decay {:g} | validation_loss: validation {:.1f} | test_loss: test {:.1f} | "
        "validation_cache_loss: with cache: validation {:.1f} | test_cache_loss: test {:.1f} | "
        "published: the article, WikiText-2"
    )
    tables = [Table("perplexities", f"Perplexities, {s.seeds} fresh seeds", shown, found)]
    tuned = at_end(where(rows, stage="tune"))
    if tuned:
        shown = columns(
            "network | group: optimizer or schedule | learning_rate: lr {:g} | l2: L2 {:g} | "
            "weight_decay: decay {:g} | seed {:d} | validation_perplexity: validation perplexity "
            "{:.1f}"
        )
        tables.append(Table("settings", "Every setting", shown, tuned))
    return tables


def _curves(s: Settings, rows: Rows) -> Figure:
    panels = []
    for network in PUBLISHED:
        mine = where(rows, network=network, stage=FRESH)
        own = [{**row, "epoch": s.epochs * row["step"] / row["steps"]} for row in mine]
        points = curves(own, "epoch", "validation_perplexity", by="group")
        draw = lines("epochs", "validation perplexity", yscale="log")
        panels.append(Panel(_title(s, network), draw, points))
    return Figure(
        "perplexity",
        "Validation perplexity during training",
        "Lines of validation perplexity against epochs for every optimizer and schedule, a panel "
        "for the LSTM and one for the QRNN: mean and standard deviation over seeds.",
        panels,
    )


def _dots(s: Settings, ends: Mapping[Any, Sequence[Row]]) -> Figure:
    panels = []
    for network in PUBLISHED:
        points = [
            {"series": name, "seed": row["seed"], "value": float(np.exp(row[key]))}
            for (own, group), rows in ends.items()
            for name, key in ((group, "test_loss"), (f"{group}, cache", "test_cache_loss"))
            if own == network and group in (L2, DECOUPLED, AMSGRAD)
            for row in rows
            if row[key] is not None
        ]
        panels.append(Panel(_title(s, network), paired_dots("test perplexity"), points))
    return Figure(
        "seeds",
        "Test perplexity of every seed, without and with the cache",
        "A dot of test perplexity for each seed: Adam with L2, AdamW and AMSGrad, each without and "
        "with the neural cache, a panel for the LSTM and one for the QRNN.",
        panels,
        columns=1,
        panel_size=(8.6, 3.4),
    )


EXPERIMENT = network_experiment(
    "article_wikitext", measure, analyse,
    cpu=Settings(),
    full=FULL,
    tiny={"data": MADE_UP, "vocabulary": 60, "words": (3000, 600, 600), "lstm": (8, 12, 2),
          "qrnn": (8, 12, 2), "batch_size": 4, "length": 10, "epochs": 1, "points": 2,
          "rates": (0.01,), "l2": (1e-5,), "decays": (0.01, 0.1), "window": 50, "seeds": 2},
    trial={"data": MADE_UP, "trial": 4},
    title="AWD-LSTM and QRNN with a cache pointer",
    question="The article trains the language models of Merity et al. in 90 epochs instead of 750, "
    "by 1cycle with a long plateau, and evaluates them with and without a neural cache. Does the "
    "cache help, is the QRNN as good, and does the form of decay or AMSGrad matter?",
    setup="The text is read in columns; the hidden state goes on from step to step, and the number "
    "of words in a step varies, as in AWD-LSTM. Weights of the embedding also give the logits. "
    "Adam (b2 0.99) with clipped gradients follows 1cycle with a plateau, b1 from 0.8 to 0.7 and "
    "back; with a constant rate or cosine, b1 is 0.9. Each contender gets as many settings as the "
    "others, and its best by validation loss is trained with fresh seeds. In the size for a CPU, "
    "the text is 100,000 words of Wikipedia with a vocabulary of 2,000, the LSTM has one layer of "
    "96, the QRNN two. In the full size, data and networks are those of the article.",
    expected="On WikiText-2, perplexity on validation / test data: AWD-LSTM 68.7 / 65.5, with the "
    "cache 52.9 / 50.9; QRNN 69.6 / 66.7, with the cache 53.6 / 51.7 (README of the article's "
    "scripts, sgugger/Adam-experiments). The article took 1.5 hours on one GPU for 90 epochs.",
    reference="Gugger & Howard, AdamW and Super-convergence, fast.ai, 2 July 2018; Merity, Keskar "
    "& Socher, arXiv 1708.02182; Grave, Joulin & Usunier, arXiv 1612.04426",
)  # fmt: skip
