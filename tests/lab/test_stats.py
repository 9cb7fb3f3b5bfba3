"""Intervals, and the rule that turns them into verdicts."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from adamw_jax.lab.results import Verdict
from adamw_jax.lab.stats import Interval, decide, holm, judge, paired, spread

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
        (0.1, 0.05, 0.15, "shown"),  # inside the margin, but above 0
        (-0.4, -0.6, -0.2, "contradicted"),
        (-3.0, -4.0, -2.0, "contradicted"),
        (0.4, -0.2, 1.0, "equivalent"),
        (0.0, 0.0, 0.0, "equivalent"),
        (0.0, -1.2, 1.2, "equivalent"),  # the 90 % interval of two one-sided tests is [-0.89, 0.89]
        (0.0, -1.4, 1.4, "undecided"),
        (0.4, -0.6, 1.4, "undecided"),
        (3.0, -1.0, 7.0, "undecided"),
        (float("nan"), float("nan"), float("nan"), "does not apply"),
        (float("inf"), float("nan"), float("nan"), "does not apply"),
    ],
)
def test_rule(mean, low, high, word):
    assert decide(Interval(mean, low, high, 4), margin=1.0) == word


def test_several_at_once_are_judged_like_one_where_there_is_one():
    rng = np.random.default_rng(3)
    for center in (0.0, 0.2, 1.0, -1.0):
        for _ in range(20):
            sample = rng.normal(center, 0.5, 12)
            alone = paired(sample.tolist(), [0.0] * 12)
            together = judge(sample[None], 0.5)
            assert together.words.tolist() == [decide(alone, 0.5)]
            assert together.low[0] == pytest.approx(alone.low)
            theirs = scipy_stats.ttest_1samp(sample, 0.0).pvalue
            assert together.p_difference[0] == pytest.approx(theirs)


def test_holm_multiplies_the_smallest_by_the_number():
    np.testing.assert_allclose(holm(np.array([0.3, 0.01, 0.04])), [0.3, 0.03, 0.08])
    np.testing.assert_allclose(holm(np.array([[0.6, 0.6], [0.02, 0.01]])), [[1, 1], [0.02, 0.02]])


MARGIN, SIMULATED = 0.5, 2000


@pytest.mark.parametrize("seeds", [4, 32])
@pytest.mark.parametrize("contenders", [1, 5])
def test_words_mean_what_they_say(seeds, contenders):
    """2,000 comparisons of each kind, with effects that are known."""
    rng = np.random.default_rng(seeds * contenders)

    def words(*effects):
        noise = rng.standard_normal((SIMULATED, contenders, seeds))
        return judge(noise + np.resize(effects, contenders)[:, None], MARGIN).words

    sure = 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / SIMULATED)  # 99.5 % of such simulations lie below
    null = words(0.0)
    assert np.mean((null == "shown").any(-1)) <= sure / 2 + 0.01
    assert np.mean(((null == "shown") | (null == "contradicted")).any(-1)) <= sure
    for effects in ((MARGIN,), (-MARGIN,), (MARGIN, -MARGIN)):
        assert np.mean((words(*effects) == "equivalent").any(-1)) <= sure
    worse = words(-0.2)
    assert np.mean((worse == "shown").any(-1)) <= sure / 2
    # A mixture: what is truly worse is not called better because others are better.
    mixed = words(1.5, -0.2)
    assert np.mean((mixed[:, 1::2] == "shown").any(-1)) <= sure
    if seeds == 32:
        assert np.mean(words(1.2) == "shown") > 0.99
        assert np.mean(words(-1.2) == "contradicted") > 0.99
        quiet = judge(0.3 * rng.standard_normal((SIMULATED, contenders, seeds)), MARGIN).words
        assert np.mean(quiet == "equivalent") > 0.9


def test_the_detectable_difference_is_detected_in_four_of_five():
    rng = np.random.default_rng(5)
    sample = rng.standard_normal((SIMULATED, 1, 32))
    effect = judge(sample, 1.0).detectable.mean()
    assert np.mean(judge(sample + effect, 1.0).words == "shown") == pytest.approx(0.8, abs=0.03)


def test_scaling_an_interval_turns_its_ends_with_the_sign():
    assert Interval(1.0, 0.5, 1.5, 4).scaled(-2) == Interval(-2.0, -3.0, -1.0, 4)


def test_diverged_runs_have_no_verdict_and_do_not_warn():
    assert decide(paired([float("inf"), 1.0], [1.0, 1.0]), margin=1.0) == "does not apply"
    assert judge(np.array([[np.inf, 1.0], [1.0, 1.1]]), 1.0).words[0] == "does not apply"
    assert spread([float("inf"), 1.0]).mean == float("inf")


def test_bad_input():
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        paired([1.0], [2.0])
    with pytest.raises(ValueError, match="in pairs, got 2 and 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least 2 seeds, got 1"):
        judge(np.ones((3, 1)), 1.0)
    with pytest.raises(ValueError, match="values must not be empty"):
        spread([])
    with pytest.raises(ValueError, match="must be one of"):
        Verdict("claim", "task", "maybe", "evidence", "rule")
