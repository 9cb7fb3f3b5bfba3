"""Recorded trajectories of the authors' code, replayed through the public functions."""

from __future__ import annotations

import json
import os
from typing import Any

import jax
import numpy as np
import pytest

import adamw_jax as aj
from tests import golden_curvature, golden_initialization
from tests.golden_cases import CASES, VARIABLE, WHERE, Case, discover, require_cases
from tests.golden_replay import (
    assert_matches,
    assert_matches_in_float32,
    assert_told_apart,
    replay,
)
from tests.golden_results import CHECKS
from tests.golden_table import build, row_of

pytestmark = pytest.mark.quick


def label(case: Case) -> str:
    return case.label


def check(case: Case) -> None:
    """Reproduces a case in float64, or, if it records a mistake, does not."""
    with jax.enable_x64(True):
        if case.system in CHECKS:
            CHECKS[case.system](case)
            return
        got = replay(case, build(case))
    if case.is_negative:
        assert_told_apart(case, got)
    else:
        assert_matches(case, got, row_of(case).share(case))


TRAJECTORIES = [case for case in CASES if case.system not in CHECKS and not case.is_negative]


def has_own_schedules(case: Case) -> bool:
    try:
        return row_of(case).own_schedules(case) is not None
    except Exception:  # whatever it is fails in test_reference, not here where tests are collected
        return False


LONG = {*golden_curvature.CHECKS, *golden_initialization.CHECKS}
"""Systems whose cases `make check` runs; where a set is named to be tested, all cases run."""


def every_case() -> list[Any]:
    named = VARIABLE in os.environ
    slow = pytest.mark.slow
    return [
        pytest.param(case, id=case.label, marks=slow if case.system in LONG and not named else ())
        for case in CASES
    ]


def test_there_are_cases() -> None:
    require_cases(CASES, WHERE)


@pytest.mark.sample(90)
@pytest.mark.parametrize("case", every_case())
def test_reference(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("case", TRAJECTORIES, ids=label)
def test_in_float32(case: Case) -> None:
    assert_matches_in_float32(case, replay(case, build(case)))


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    "case", [case for case in TRAJECTORIES if has_own_schedules(case)], ids=label
)
@pytest.mark.usefixtures("x64")
def test_with_the_schedules_of_this_library(case: Case) -> None:
    got = replay(case, build(case, own_schedules=True))
    assert_matches(case, got, row_of(case).share(case, own_schedules=True))


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in TRAJECTORIES
        if case.system == "lookahead" and case.hyperparameters.get("pullback_momentum") == "none"
    ],
    ids=label,
)
@pytest.mark.usefixtures("x64")
def test_lookahead_as_a_tail(case: Case) -> None:
    arguments = row_of(case).arguments(case)
    assert arguments.pop("inner_state") == "keep"
    tx = aj.compose(arguments.pop("inner"), aj.lookahead(**arguments))
    assert_matches(case, replay(case, tx))


# The tests above fail where they should. These use a set that is made here.

SMALL: dict[str, Any] = {
    "system": "adam",
    "source_key": "torch",
    "role": "default",
    "hyperparameters": {"lr": 0.1, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.0},
    "suggested_rtol": 1e-9,
    "suggested_atol": 1e-12,
    "name": "small",
    "file": "small.npz",
    "leaves": {"w": [2]},
}


def write_set(folder: Any, **changed: Any) -> Any:
    """A set with one trajectory of Adam."""
    folder.mkdir(parents=True)
    params, m, v, seen = np.asarray([1.0, -2.0]), np.zeros(2), np.zeros(2), []
    gradients = np.random.default_rng(0).normal(size=(5, 2))
    for t, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.99 * v + 0.01 * gradient**2
        params = params - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        seen.append(params)
    np.savez(folder / SMALL["file"], params_0_w=[1.0, -2.0], grads_w=gradients, params_w=seen)
    (folder / "manifest.json").write_text(json.dumps({"entries": [{**SMALL, **changed}]}))
    return folder


def only_case(folder: Any) -> Case:
    (case,) = discover(folder)
    return case


def test_a_set_and_a_folder_of_sets_are_found(tmp_path: Any) -> None:
    one = write_set(tmp_path / "sets" / "one")
    write_set(tmp_path / "sets" / "two")
    assert [case.label for case in discover(one)] == ["one-small"]
    both = discover(tmp_path / "sets")
    assert [case.label for case in both] == ["one-small", "two-small"]
    require_cases(both, tmp_path / "sets")
    for case in both:
        check(case)


def test_nothing_to_test_fails(tmp_path: Any) -> None:
    with pytest.raises(AssertionError, match="no golden case"):
        require_cases(discover(tmp_path), tmp_path)
    folder = write_set(tmp_path / "set")
    (folder / SMALL["file"]).unlink()
    with pytest.raises(AssertionError, match="missing"):
        require_cases(discover(folder), folder)
    (folder / "manifest.json").write_text('{"cases": []}')
    with pytest.raises(AssertionError, match="no golden case"):
        require_cases(discover(folder), folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"system": "adamagrad"}, "no row for the system 'adamagrad'"),
        ({"source_key": "abacus"}, "no row for the system 'adam' of 'abacus'"),
        ({"hyperparameters": {"lr": 0.1, "warp": 9}}, "for the hyperparameter 'warp'=9"),
        ({"hyperparameters": {"lr": "see the notes"}}, "cannot read"),
        ({"hyperparameters": {"lr": 0.2, "betas": [0.9, 0.99]}}, "Not equal to tolerance"),
        ({"role": "negative example"}, "must not be"),
        ({"arrays": ["slow_w"]}, "lacks \\['slow_w'\\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_unknown_or_wrong_fails(tmp_path: Any, changed: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(only_case(write_set(tmp_path / "set", **changed)))


def test_a_mistake_of_others_passes_where_it_is_not_made(tmp_path: Any) -> None:
    wrong = {**SMALL["hyperparameters"], "lr": 0.2}
    check(only_case(write_set(tmp_path / "set", role="negative example", hyperparameters=wrong)))
