"""The experiment on the article's language models: what it trains, and its verdicts."""

import dataclasses

import numpy as np
import pytest

from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.experiments.article_wikitext import (
    AMSGRAD,
    CONSTANT,
    COSINE,
    DECOUPLED,
    PUBLISHED,
    arms,
)
from adamw_jax.lab.experiments.language_runs import FULL, L2, ends_of, measured
from adamw_jax.lab.experiments.parts import where
from adamw_jax.lab.networks.language_model import LSTM_CELLS, QRNN_CELLS
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.train import Runner

pytestmark = pytest.mark.quick

EXPERIMENT = get_experiment("article_wikitext")
NOISE = np.array([0.002, -0.001, 0.001, -0.002, 0.0])


@pytest.mark.slow
def test_the_smallest_form_chooses_and_trains():
    settings = EXPERIMENT.settings("tiny")
    adams = [arm for arm in arms(settings, LSTM_CELLS) if arm.group in (L2, DECOUPLED)]
    runner = Runner(Silent(), workers=1)
    rows = measured(settings, runner, (LSTM_CELLS,), lambda network: adams)
    tuned = where(rows, stage="tune")
    assert {row["weight_decay"] for row in tuned} == set(settings.decays)
    assert {row["group"] for row in tuned} == {DECOUPLED}  # the other has one setting
    ends = ends_of(rows)
    assert {group: len(own) for (_, group), own in ends.items()} == {L2: 2, DECOUPLED: 2}
    best = min(tuned, key=lambda row: row["validation_loss"])
    for row in ends[LSTM_CELLS, DECOUPLED]:
        assert row["weight_decay"] == best["weight_decay"]
        assert row["train_loss"] < np.log(settings.vocabulary)
        assert row["test_perplexity"] == pytest.approx(np.exp(row["test_loss"]), rel=1e-5)
        assert row["test_cache_loss"] != row["test_loss"]


def rows_of(losses):
    """Rows at the end of runs with these mean losses by network and group."""
    return [
        {"task": network, "network": network, "group": group, "arm": group, "stage": "fresh",
         "learning_rate": 0.01, "l2": 0.0, "weight_decay": 0.0, "seed": seed, "step": 9, "steps": 9,
         "test_loss": loss + e, "validation_loss": loss + e,
         "validation_perplexity": np.exp(loss + e),
         "test_cache_loss": loss - 0.1 + e / 2, "validation_cache_loss": loss - 0.1 + e / 2}
        for (network, group), loss in losses.items()
        for seed, e in enumerate(NOISE if group == L2 else NOISE[::-1])
    ]  # fmt: skip


def test_verdicts_follow_from_log_perplexities():
    losses = dict.fromkeys(((LSTM_CELLS, g) for g in (L2, DECOUPLED, AMSGRAD)), 4.0)
    losses |= dict.fromkeys(((QRNN_CELLS, g) for g in (L2, DECOUPLED, AMSGRAD)), 4.015)
    losses[LSTM_CELLS, DECOUPLED] = 3.95
    losses[QRNN_CELLS, AMSGRAD] = 4.05
    losses |= {(LSTM_CELLS, CONSTANT): 4.1, (LSTM_CELLS, COSINE): 4.001}
    settings = EXPERIMENT.settings("cpu")
    result = EXPERIMENT.analyse(settings, rows_of(losses))
    words = [verdict.word for verdict in result.verdicts]
    assert words == ["shown", "shown",  # the cache
                     "shown",  # a QRNN that is 0.015 worse
                     "shown", "equivalent",  # AdamW and AMSGrad with the LSTM
                     "equivalent", "contradicted",  # with the QRNN
                     "shown", "equivalent"]  # fmt: skip
    assert "54.60 ± 0.09" in result.verdicts[0].evidence
    worse = {**losses, (QRNN_CELLS, L2): 4.1}
    assert EXPERIMENT.analyse(settings, rows_of(worse)).verdicts[2].word == "contradicted"


def test_the_full_form_is_the_articles():
    groups = {}
    for network in PUBLISHED:
        for arm in arms(FULL, network):
            groups.setdefault(arm.group, []).append(arm)
    article = groups[L2][0]
    assert (article.learning_rate, article.schedule) == (0.005, "article_language")
    assert dict(article.settings) == {"b2": 0.99, "clip": 0.12, "l2": 1.2e-6, "weight_decay": 0}
    small = EXPERIMENT.settings("cpu")
    each = {group: len(own) for group, own in groups.items()}
    assert each == {L2: 2, DECOUPLED: 4, AMSGRAD: 2, CONSTANT: 1, COSINE: 1}
    assert len({sum(a.group == g for a in arms(small, LSTM_CELLS)) for g in groups}) == 1
    assert {f.name for f in dataclasses.fields(small)} == {f.name for f in dataclasses.fields(FULL)}
