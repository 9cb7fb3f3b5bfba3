"""The claim about GradInit: its network, its verdicts on made-up numbers, and a tiny run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from adamw_jax.lab.experiments import gradinit
from adamw_jax.lab.progress import Silent
from adamw_jax.lab.train import Runner

pytestmark = [pytest.mark.slow, pytest.mark.optimized]

TINY = gradinit.EXPERIMENT.settings("tiny")


def test_weights_have_the_scale_of_their_gain() -> None:
    s = dataclasses.replace(TINY, width=200)
    one, other = (gradinit.network(s, 0, gain, 64, 10) for gain in (1.0, 0.5))
    assert len(one) == s.depth
    assert [layer["kernel"].shape for layer in one][-2:] == [(200, 200), (200, 10)]
    np.testing.assert_allclose(one[1]["kernel"].std(), 0.1, rtol=0.02)  # sqrt(2 / 200)
    np.testing.assert_allclose(other[1]["kernel"], 0.5 * one[1]["kernel"], rtol=1e-6)


def rows_of(s, gained, lowered):
    """Rows where GradInit gains so much accuracy, and so large a share of the losses."""
    rows = []
    for gain in s.gains:
        for seed in s.seeds:
            e = 0.001 * seed
            rows.append({"kind": "norm", "gain": gain, "seed": seed, "before": 9.0, "after": 0.9})
            rows.append({"kind": "scale", "gain": gain, "seed": seed, "layer": 1, "scale": 2.0})
            for name, better in ((gradinit.PLAIN, 0), (gradinit.GRADINIT, 1)):
                mine = {"gain": gain, "seed": seed, "series": name}
                share = 1 - better * (lowered + e)
                rows += [
                    {"kind": "loss", **mine, "step": step, "loss": loss * share}
                    for step, loss in ((1, 2.0), (2, 0.1))
                ]
                rows.append({"kind": "end", **mine, "test_accuracy": 0.5 + better * (gained + e),
                             "train_loss": 0.1})  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("gained", "lowered", "words"),
    [
        (0.3, 0.2, ["shown", "shown"]),
        (-0.001, -0.001, ["equivalent", "equivalent"]),
        (-0.3, -0.2, ["contradicted", "contradicted"]),
    ],
)
def test_verdicts(gained, lowered, words) -> None:
    """Speed is judged by the whole curve: the loss at the end is one and the same."""
    result = gradinit.EXPERIMENT.analyse(TINY, rows_of(TINY, gained, lowered))
    assert [verdict.word for verdict in result.verdicts] == words
    assert ("is slower" in result.verdicts[1].evidence) == (lowered < -0.1)


def test_a_diverged_run_loses() -> None:
    rows = rows_of(TINY, 0.3, 0.2)
    for row in rows:
        if row["kind"] in ("loss", "end") and row["series"] == gradinit.GRADINIT:
            row |= {"train_loss": None} if row["kind"] == "end" else {"loss": None}
    result = gradinit.EXPERIMENT.analyse(TINY, rows)
    assert [verdict.word for verdict in result.verdicts] == ["shown", "does not apply"]
    drawn = {row["series"] for panel in result.figures[0].panels for row in panel.rows}
    assert drawn == {gradinit.PLAIN}


def test_tiny_preset_repairs_a_large_scale() -> None:
    rows = gradinit.EXPERIMENT.measure(TINY, Runner(Silent()))
    result = gradinit.EXPERIMENT.analyse(TINY, rows)
    assert all(panel.rows for figure in result.figures for panel in figure.panels)
    assert len(result.tables[0].rows) == 2 * len(TINY.gains)
    scales = [row["scale"] for row in rows if row["kind"] == "scale" and row["gain"] == 3.0]
    assert np.mean(scales) < 0.7  # they undo the gain
