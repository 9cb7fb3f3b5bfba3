"""What the golden data tell apart: other forms of a formula, and the mistakes of others.

These use the project's own set, whatever set the environment names.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
import pytest

from tests.golden_cases import OWN_SETS, Case, discover
from tests.golden_diagnostics import learned
from tests.golden_replay import (
    FAR,
    assert_matches,
    assert_told_apart,
    distance,
    float32_excess,
    replay,
)
from tests.golden_table import build, row_of

pytestmark = pytest.mark.quick

CASES = discover(OWN_SETS)
STANDARD_PROMOTION = functools.partial(jax.numpy_dtype_promotion, "standard")
"""optax's own functions need implicit promotion."""


def cases_of(system: str, source: str, **hyperparameters: Any) -> list[Case]:
    """The cases of a form that have these hyperparameters."""
    found = [
        case
        for case in CASES
        if (case.system, case.source) == (system, source)
        and all(case.hyperparameters.get(k) == v for k, v in hyperparameters.items())
    ]
    assert found, f"no case of {system} from {source} with {hyperparameters}"
    return found


OTHER_FORMS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "eps before the correction": ("adam", "torch", {"eps": 1e-3}, {"eps_hat": True}),
    "eps after the correction": ("adam", "keras", {"eps": 1e-3}, {"eps_hat": False}),
    "no eps under the root": ("adam", "optax", {"eps_root": 1e-6}, {"eps_root": None}),
    "decay for L2": ("adam", "torch", {"weight_decay": 0.1}, {"l2": None, "weight_decay": 0.1}),
    "L2 for decay": ("adamw", "torch", {"weight_decay": 0.1}, {"l2": 0.1, "weight_decay": None}),
    "decay without mask": ("adamw", "optax", {}, {"mask": None}),
    "decay times the rate": ("adamwr", "paper", {}, {"decay": "learning_rate"}),
    "decay without the schedule": ("adamwr", "paper", {}, {"decay": "fixed"}),
    "schedule outside": ("sgdwr", "paper", {}, {"schedule_inside": False}),
    "eps inside the maximum": ("adamax", "keras", {"eps": 1e-4}, {"eps_inside_max": True}),
    "corrected maximum": ("amsgrad", "torch", {"lr": 0.01}, {"maximum": "corrected"}),
    "raw maximum": ("amsgrad", "optax", {"bias_correction_nu": True}, {"maximum": "raw"}),
    "corrected AMSGrad": (
        "amsgrad",
        "optax",
        {"bias_correction_mu": False},
        {"bias_correction_mu": True},
    ),
    "momentum steps at first": (
        "radam",
        "radam_official",
        {"degenerated_to_sgd": False},
        {"below": "momentum"},
    ),
    "no steps at first": (
        "radam",
        "radam_official",
        {"degenerated_to_sgd": True},
        {"below": "skip"},
    ),
    "the other threshold": ("radam", "optax", {"threshold": 4.0}, {"threshold": 5.0}),
    "momentum kept, not reset": (
        "lookahead",
        "lookahead_official",
        {"pullback_momentum": "reset"},
        {"inner_state": "keep"},
    ),
    "momentum kept, not pulled back": (
        "lookahead",
        "pytorch_optimizer",
        {},
        {"inner_state": "keep"},
    ),
    "moments kept, not reset": ("lookahead", "optax", {}, {"inner_state": "keep"}),
    "exact correction for fastai's": (
        "fastai_onecycle",
        "fastai1",
        {},
        {"bias_correction": "exact"},
    ),
    "biases decay": ("fastai_onecycle", "fastai1", {"bn_wd": False}, {"mask": None}),
    "no clip": ("fastai_onecycle", "fastai07", {"clip": 0.12}, {"before": None}),
}
"""A form -> system, source and hyperparameters of the cases, and the arguments that change it."""


@pytest.mark.sample(8)
@pytest.mark.parametrize("form", OTHER_FORMS)
@pytest.mark.usefixtures("x64")
def test_another_form_is_told_apart(form: str) -> None:
    system, source, hyperparameters, changed = OTHER_FORMS[form]
    case = cases_of(system, source, **hyperparameters)[0]
    arguments = row_of(case).arguments(case)
    assert {k: arguments.get(k) for k in changed} != changed
    assert_told_apart(case, replay(case, build(case, **changed)))


def pulled_back_by_hand(case: Case, aliased: bool) -> dict[str, np.ndarray]:
    """Lookahead on SGD with momentum; ``aliased`` keeps the buffer itself, no copy, at a sync."""
    told = {"lr": 1e-3, "momentum": 0.9}
    assert case.hyperparameters["inner"] == "SGD lr=1e-3 momentum=0.9"
    period, alpha = case.hyperparameters["k"], case.hyperparameters["alpha"]
    result = {}
    for leaf in case.leaves:
        theta = np.array(case.arrays[f"params_0_{leaf}"])
        slow, buffer, kept, rows = theta.copy(), np.zeros_like(theta), np.zeros_like(theta), []
        for t, gradient in enumerate(case.arrays[f"grads_{leaf}"], 1):
            buffer[...] = told["momentum"] * buffer + gradient
            theta = theta - told["lr"] * buffer
            if t % period == 0:
                slow = slow + alpha * (theta - slow)
                theta = slow
                buffer *= alpha
                buffer += (1 - alpha) * kept
                kept = buffer if aliased else buffer.copy()
            rows.append((theta, slow))
        result[f"params_{leaf}"] = np.stack([row[0] for row in rows])
        result[f"slow_{leaf}"] = np.stack([row[1] for row in rows])
    return result


@pytest.mark.parametrize(
    "case", cases_of("lookahead", "pytorch_optimizer"), ids=lambda case: case.label
)
@pytest.mark.usefixtures("x64")
def test_the_pullback_of_the_official_code_is_not_repeated(case: Case) -> None:
    """There the momentum kept at a sync is the live buffer: the second sync only scales it."""
    assert_matches(case, pulled_back_by_hand(case, aliased=False))
    mistaken, ours = pulled_back_by_hand(case, aliased=True), replay(case, build(case))
    assert_told_apart(case, mistaken)
    second_sync = 2 * case.hyperparameters["k"]
    for name, array in ours.items():
        if name.startswith("params"):
            same, other = np.split(mistaken[name] - array, [second_sync])
            np.testing.assert_allclose(same, 0.0, atol=1e-12)
            assert np.max(np.abs(other[0])) > 1e-6


@pytest.mark.slow
def test_the_rectifier_of_optax_in_float32_is_not_repeated() -> None:
    cases = cases_of("radam", "optax")
    for case in cases:
        with STANDARD_PROMOTION():
            theirs = replay(case, optax.radam(**case.hyperparameters))
        assert float32_excess(case, theirs) > 5
        assert float32_excess(case, replay(case, build(case))) <= 1


@pytest.mark.usefixtures("x64")
def test_amsgrad_of_optax_is_not_that_of_pytorch() -> None:
    for case in cases_of("amsgrad", "torch", lr=0.01):
        told = row_of(case).arguments(case)
        theirs = optax.amsgrad(told["learning_rate"], told["b1"], told["b2"], told["eps"])
        with STANDARD_PROMOTION():
            got = replay(case, theirs)
        assert_told_apart(case, got)
        assert_matches(case, replay(case, build(case)))


def test_decay_and_l2_differ_on_one_run_of_the_references() -> None:
    """The same gradients, coefficients and learning rates: only where the decay goes differs."""
    decay, l2 = (
        next(case for case in cases_of("amsgrad", "torch", weight_decay=0.1) if words in case.says)
        for words in ("decoupled decay", "L2 in the gradient")
    )
    assert decay.hyperparameters == l2.hyperparameters
    for leaf in decay.leaves:
        np.testing.assert_array_equal(decay.arrays[f"grads_{leaf}"], l2.arrays[f"grads_{leaf}"])
    assert distance(decay, l2.reference) > FAR


@pytest.mark.usefixtures("x64")
def test_the_momentum_of_the_published_scripts_is_not_repeated() -> None:
    for case in cases_of("lr_learner", ""):
        theirs = case.arrays["out__published_code_momentum_median"]
        assert abs(learned(case)["heavy_ball_momentum_median"] - theirs) > 0.05
