"""Train the article's language models: AWD-LSTM and QRNN, with and without a cache pointer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adamw_jax.lab.experiments.language_runs import (
    ADAM,
    B2,
    FULL,
    L2,
    MADE_UP,
    MARGIN,
    SCHEDULE,
    TINY,
    Ends,
    Settings,
    adam,
    as_low,
    curves_of,
    ends_of,
    lower,
    measured,
    perplexity,
    remarks_of,
    saved,
    tables_of,
    title_of,
)
from adamw_jax.lab.experiments.parts import column, judged, network_experiment
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.network_runs import trial_result
from adamw_jax.lab.networks import LSTM_CELLS, QRNN_CELLS
from adamw_jax.lab.plots.dots import paired_dots
from adamw_jax.lab.recipes import Arm, Recipe, settings
from adamw_jax.lab.results import Figure, Panel, Result, Row, Verdict
from adamw_jax.lab.stats import paired

DECOUPLED, AMSGRAD = "AdamW", "AMSGrad + L2"
CONSTANT, COSINE = "constant rate", "cosine"
PUBLISHED = {LSTM_CELLS: (68.7, 65.5, 52.9, 50.9), QRNN_CELLS: (69.6, 66.7, 53.6, 51.7)}
"""The article's perplexities on WikiText-2: validation and test, then both with the cache."""

AMS = Recipe("clipped amsgrad", functools.partial(adam, amsgrad=True))


def arms(s: Settings, network: str) -> Iterator[Arm]:
    """Yield every setting of every contender on a network."""
    l2 = [{"l2": value, "weight_decay": 0.0} for value in s.l2]
    decays = [{"l2": 0.0, "weight_decay": value} for value in s.decays]
    found = [(L2, ADAM, SCHEDULE, l2), (DECOUPLED, ADAM, SCHEDULE, decays),
             (AMSGRAD, AMS, SCHEDULE, l2)]  # fmt: skip
    if network == LSTM_CELLS:
        found += [(CONSTANT, ADAM, "constant", l2), (COSINE, ADAM, "cosine", l2)]
    for group, recipe, schedule, all_numbers in found:
        for rate, numbers in itertools.product(s.rates, all_numbers):
            own = settings(clip=s.clip, b2=B2, **numbers)
            yield Arm(group, recipe, schedule, rate, own)


def measure(s: Settings, runner: Any) -> Rows:
    """Choose the setting of every contender, and train it with fresh seeds."""
    return measured(s, runner, tuple(PUBLISHED), functools.partial(arms, s))


def analyse(s: Settings, rows: Rows) -> Result:
    """Compare contenders, networks and evaluations, by log-perplexities seed by seed."""
    if s.trial:
        return trial_result(rows)
    ends = ends_of(rows)
    qrnn, lstm = ((name, ends[name, L2]) for name in (QRNN_CELLS, LSTM_CELLS))
    verdicts = [_cache_helps(s, network, ends[network, L2]) for network in PUBLISHED]
    verdicts.append(
        as_low(s, qrnn, lstm, s.data, "A QRNN reaches the perplexity of the LSTM",
               "The article on WikiText-2: 66.7 and 65.5.")
    )  # fmt: skip
    verdicts += [
        lower(s, ends, network, group, L2, claim, literature)
        for network in PUBLISHED
        for group, claim, literature in CLAIMS
    ]
    verdicts += [
        lower(s, ends, LSTM_CELLS, L2, group, f"1cycle with a long plateau beats {words}",
              "The article: 90 epochs instead of 750.")
        for group, words in ((CONSTANT, "a constant rate"), (COSINE, "cosine annealing"))
    ]  # fmt: skip
    notes = {(network, L2): " / ".join(map(str, own)) for network, own in PUBLISHED.items()}
    pictures = [curves_of(s, rows), _dots(s, ends)]
    return Result(verdicts, tables_of(s, rows, ends, notes), pictures, remarks_of(rows, ends))


CLAIMS = (
    (DECOUPLED, "AdamW lowers the perplexity of Adam with L2",
     "The article: no gain with recurrent networks, never clearly worse."),
    (AMSGRAD, "AMSGrad lowers the perplexity of Adam", "The article: no gain."),
)  # fmt: skip


def _cache_helps(s: Settings, network: str, rows: Sequence[Row]) -> Verdict:
    difference = paired(column(rows, "test_loss"), column(rows, "test_cache_loss"))
    _, test, _, published = PUBLISHED[network]
    return judged(
        "A neural cache lowers the perplexity", title_of(s, network), difference, MARGIN,
        saved(s, "the cache"),
        f"Perplexity {perplexity(rows)}, with the cache {perplexity(rows, 'test_cache_loss')}; "
        f"log-perplexity saved {difference}.",
        literature=f"The article on WikiText-2: {test} and {published}.",
    )  # fmt: skip


def _dots(s: Settings, ends: Ends) -> Figure:
    panels = []
    for network in PUBLISHED:
        points = [
            {"series": name, "seed": row["seed"], "value": float(np.exp(row[key]))}
            for group in (L2, DECOUPLED, AMSGRAD)
            for name, key in ((group, "test_loss"), (f"{group}, cache", "test_cache_loss"))
            for row in ends[network, group]
            if row[key] is not None
        ]
        panels.append(Panel(title_of(s, network), paired_dots("test perplexity"), points))
    return Figure(
        "seeds",
        "Test perplexity of every seed, without and with the cache",
        "A dot of test perplexity for each seed: Adam with L2, AdamW and AMSGrad, each without and "
        "with the neural cache, a panel for the LSTM and one for the QRNN.",
        panels,
        columns=1,
        panel_size=(9.6, 3.6),
    )


EXPERIMENT = network_experiment(
    "article_wikitext", measure, analyse,
    cpu=Settings(),
    full=FULL,
    tiny=TINY,
    trial={"data": MADE_UP, "trial": 3},
    title="AWD-LSTM and QRNN with a cache pointer",
    question="The article trains the language models of Merity et al. in 90 epochs instead of 750, "
    "by 1cycle with a long plateau, and evaluates them with and without a neural cache. Does the "
    "cache help, is the QRNN as good, and does the form of decay or AMSGrad matter?",
    setup="The text is read in columns; the hidden state goes on from step to step, and the number "
    "of words in a step varies, as in AWD-LSTM. Weights of the embedding also give the logits. "
    "Adam (b2 0.99) with clipped gradients follows 1cycle with a plateau, b1 from 0.8 to 0.7 and "
    "back; with a constant rate or cosine, b1 is 0.9. Each contender gets as many settings as the "
    "others, and its best by validation loss is trained with fresh seeds. In the size for a CPU, "
    "the text is 100,000 words of Wikipedia, or without gensim of Shakespeare, with a vocabulary "
    "of 2,000; the LSTM has one layer of 96, the QRNN two. In the full size, data and networks are "
    "those of the article.",
    expected="On WikiText-2, perplexity on validation / test data: AWD-LSTM 68.7 / 65.5, with the "
    "cache 52.9 / 50.9; QRNN 69.6 / 66.7, with the cache 53.6 / 51.7 (README of the article's "
    "scripts, sgugger/Adam-experiments). The article took 1.5 hours on one GPU for 90 epochs.",
    reference="Gugger & Howard, AdamW and Super-convergence, fast.ai, 2 July 2018; Merity, Keskar "
    "& Socher, arXiv 1708.02182; Grave, Joulin & Usunier, arXiv 1612.04426",
)  # fmt: skip
