"""The claim about small state: its language, its verdicts on made-up numbers, and a tiny run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from adamw_jax.lab import language
from adamw_jax.lab.experiments import small_state
from adamw_jax.lab.experiments.small_state import EIGHT, FULL, UNFLOORED
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.train import Runner
from adamw_jax.storage import eight_bit

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

TINY = small_state.EXPERIMENT.settings("tiny")


def test_the_language_has_rare_words_and_repeats() -> None:
    words = language.sentences(2000, 30, seed=1)
    assert words.dtype == np.int32
    assert (words >= 0).all()
    assert (words < language.WORDS).all()
    np.testing.assert_array_equal(words, language.sentences(2000, 30, seed=1))
    assert (words != language.sentences(2000, 30, seed=2)).mean() > 0.5
    repeated = (words[:, language.BACK :] == words[:, : -language.BACK]).mean()
    other = (words[:, language.BACK + 1 :] == words[:, : -language.BACK - 1]).mean()
    assert repeated - other > 0.8 * language.REPEATED
    counts = np.sort(np.bincount(words.ravel(), minlength=language.WORDS))[::-1]
    assert counts[:32].sum() > 0.5 * words.size  # a sixteenth of the words is half of the text
    assert 0 < counts[language.WORDS // 2] < 2e-3 * words.size


def test_grammar_is_the_table() -> None:
    """The share of a class after another is what the table says, where nothing is repeated."""
    words = language.sentences(40_000, 3, seed=3) // language.PER_CLASS
    table = np.random.default_rng(language.GRAMMAR_SEED).dirichlet(
        np.full(language.CLASSES, 0.2), language.CLASSES
    )
    joint = np.zeros((language.CLASSES, language.CLASSES))
    np.add.at(joint, (words[:, 1], words[:, 2]), 1)
    seen = joint.sum(1) > 3000
    assert seen.sum() >= 3
    np.testing.assert_allclose((joint / joint.sum(1, keepdims=True))[seen], table[seen], atol=0.03)


def rows_of(s, changes, longest):
    """Runs whose loss is float32's plus so much, and whose longest steps are given."""
    rows = []
    for name in s.formats:
        for seed in s.seeds:
            mine = {"series": name, "seed": seed}
            e = 0.001 * (-1) ** seed if name != FULL else 0.0
            loss = 4.0 + 0.1 * seed + changes.get(name, 0.0) + e
            rows.append({"kind": "end", **mine, "loss": loss, "bytes": 2.0,
                         "longest": longest.get(name, 2.0) * (1 + 0.01 * seed)})  # fmt: skip
            rows.append({"kind": "curve", **mine, "step": 1, "train_loss": 5.0, "longest": 2.0})
    return rows


@pytest.mark.parametrize(
    ("changes", "longest", "words"),
    [
        # the deviation between the seeds 0..3 is 0.129, half of it 0.065
        ({}, {UNFLOORED: 300.0}, ["shown"] * 6),
        ({EIGHT: 0.06}, {UNFLOORED: 300.0}, ["shown"] * 6),
        ({EIGHT: 0.07}, {UNFLOORED: 300.0}, ["shown", "shown", "contradicted"] + ["shown"] * 3),
        ({EIGHT: 0.064}, {UNFLOORED: 300.0}, ["shown", "shown", "undecided"] + ["shown"] * 3),
        (
            {"4bit": 0.5},
            {UNFLOORED: 3.0},
            ["shown"] * 4 + ["contradicted"] * 2,
        ),
        ({}, {UNFLOORED: 300.0, EIGHT: 5.0}, ["shown"] * 5 + ["contradicted"]),
    ],
)
def test_verdicts(changes, longest, words) -> None:
    s = dataclasses.replace(TINY, seeds=(0, 1, 2, 3))
    result = small_state.EXPERIMENT.analyse(s, rows_of(s, changes, longest))
    assert [verdict.word for verdict in result.verdicts] == words


def test_a_diverged_run_is_not_as_good() -> None:
    s = dataclasses.replace(TINY, seeds=(0, 1, 2, 3))
    rows = rows_of(s, {}, {UNFLOORED: 300.0})
    next(r for r in rows if r["kind"] == "end" and r["series"] == "4bit")["loss"] = None
    result = small_state.EXPERIMENT.analyse(s, rows)
    assert result.verdicts[4].word == "does not apply"


def test_tiny_preset_runs_and_encodes() -> None:
    s = dataclasses.replace(TINY, formats=(FULL, EIGHT))
    rows = small_state.EXPERIMENT.measure(s, Runner(Silent()))
    result = small_state.EXPERIMENT.analyse(s, rows)
    assert all(panel.rows for figure in result.figures for panel in figure.panels)
    full, eight = result.tables[0].rows
    assert full["bytes"] == pytest.approx(8, rel=0.02)
    assert eight["bytes"] == pytest.approx(2, rel=0.15)  # small arrays stay in float32
    ends = {(r["series"], r["seed"]): r["loss"] for r in rows if r["kind"] == "end"}
    assert ends[FULL, 0] != ends[FULL, 1]
    assert 0 < abs(ends[EIGHT, 0] - ends[FULL, 0]) < 0.05  # it bites, and it does not hurt
    first = [r for r in rows if r["kind"] == "curve" and r["step"] == s.steps // s.points]
    assert first[0]["train_loss"] > ends[FULL, 0]  # it has learned


def test_the_formats_differ_in_the_floor_alone() -> None:
    floored, bare = (small_state.FORMATS[name].unsigned for name in (EIGHT, UNFLOORED))
    assert dataclasses.replace(bare, floor=True) == floored == eight_bit(order="flat").unsigned
