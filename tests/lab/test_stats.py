"""Intervals, and the rule that turns them into verdicts."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from adamw_jax.lab.results import Verdict
from adamw_jax.lab.stats import Interval, decide, paired, spread

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("count", [2, 4, 9])
def test_interval_is_that_of_the_paired_t_test(count):
    rng = np.random.default_rng(count)
    a, b = rng.normal(size=count), rng.normal(size=count)
    ours = paired(a.tolist(), b.tolist())
    theirs = scipy_stats.ttest_rel(a, b).confidence_interval(0.95)
    assert ours.low == pytest.approx(theirs.low)
    assert ours.high == pytest.approx(theirs.high)
    assert ours.mean == pytest.approx(np.mean(a - b))
    assert ours.count == count


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(0.3, 1.0, size=(2000, 4))
    inside = [i.low < 0.3 < i.high for i in (paired(s.tolist(), [0.0] * 4) for s in samples)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_pairing_removes_what_the_seeds_share():
    shared = np.random.default_rng(1).normal(0, 10, 5)
    difference = paired((shared + 1).tolist(), shared.tolist())
    assert difference.low == pytest.approx(1)
    assert difference.high == pytest.approx(1)


def test_spread():
    value = spread([1.0, 2.0, 3.0])
    assert (value.mean, value.sd, value.count) == (2.0, 1.0, 3)
    assert np.isnan(spread([1.0]).sd)


@pytest.mark.parametrize(
    ("mean", "low", "high", "word"),
    [
        (2.0, 0.5, 3.5, "shown"),
        (0.1, 0.05, 0.15, "shown"),
        (0.4, -0.6, 1.4, "tie"),
        (-0.4, -0.6, -0.2, "tie"),
        (0.0, 0.0, 0.0, "tie"),
        (3.0, -1.0, 7.0, "not shown"),
        (-3.0, -4.0, -2.0, "not shown"),
        (1.0, 0.0, 2.0, "tie"),
        (float("nan"), float("nan"), float("nan"), "not shown"),
        (float("inf"), float("nan"), float("nan"), "not shown"),
    ],
)
def test_rule(mean, low, high, word):
    assert decide(Interval(mean, low, high, 4), margin=1.0) == word


def test_scaling_an_interval_turns_its_ends_with_the_sign():
    assert Interval(1.0, 0.5, 1.5, 4).scaled(-2) == Interval(-2.0, -3.0, -1.0, 4)


def test_diverged_runs_are_not_shown_and_do_not_warn():
    assert decide(paired([float("inf"), 1.0], [1.0, 1.0]), margin=1.0) == "not shown"
    assert spread([float("inf"), 1.0]).mean == float("inf")


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        paired([1.0], [2.0])
    with pytest.raises(ValueError, match="in pairs, got 2 and 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="values must not be empty"):
        spread([])
    with pytest.raises(ValueError, match="must be one of"):
        Verdict("claim", "task", "maybe", "evidence", "rule")
