"""A restart of the moments: the next step is the first step of a new optimizer."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

import adamw_jax as aj
from tests.catalogue import (
    EXTRA,
    PLAIN,
    Entry,
    assert_close,
    at,
    label,
    one_operation_at_a_time,
    sample_gradients,
    sample_params,
)

STEPS = 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {"bias_correction": "current"},
    {"amsgrad": True},
    {"momentum": 0.9, "dampening": 0.5},
)
HAVE_MOMENTS = [
    entry for entry in PLAIN if not entry.name.startswith(("lookahead_", "koala_", "norm_adaptive"))
]


def takers(entry: Entry) -> list[Any]:
    """The optimizer with each of the ``OPTIONS`` that it takes."""
    made = [entry.make()]
    for options in OPTIONS:
        try:
            made.append(entry.make(**options))
        except (TypeError, ValueError):  # it does not take this one
            continue
    return made


def last_update(tx: Any, state: Any, restart: bool = False) -> Any:
    """The update of the last gradient, after the others, and perhaps a restart."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    update = one_operation_at_a_time(
        lambda g, s, p: tx.update(g, s, p, **EXTRA), at(gradients, 0), state, params
    )
    for i in range(STEPS - 1):
        _, state = update(at(gradients, i), state, params)
    state = aj.restart_moments(state) if restart else state
    return update(at(gradients, STEPS - 1), state, params)[0]


def first_update(tx: Any) -> Any:
    """The update of the last gradient as the first one."""
    params, gradient = sample_params(), at(sample_gradients(STEPS), STEPS - 1)
    return tx.update(gradient, tx.init(params), params, **EXTRA)[0]


@pytest.mark.parametrize("entry", HAVE_MOMENTS, ids=label)
def test_by_hand(entry: Entry) -> None:
    """AMSGrad's maximum and the previous gradient are forgotten as well."""
    for tx in takers(entry):
        assert_close(last_update(tx, tx.init(sample_params()), restart=True), first_update(tx))


@pytest.mark.parametrize(
    "entry", [e for e in PLAIN if not e.name.startswith("lookahead_")], ids=label
)
def test_by_lookahead(entry: Entry) -> None:
    """A Lookahead that resets its inner state, which synced after three steps."""
    tx = aj.lookahead(entry.make(), STEPS - 1, inner_state="reset")
    assert_close(last_update(tx, tx.init(sample_params())), first_update(entry.make()))


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=str)
def test_by_period(options: dict[str, Any]) -> None:
    tx = aj.adan(0.1, restart_period=STEPS - 1, **options)
    assert_close(last_update(tx, tx.init(sample_params())), first_update(tx))
    later = aj.adan(0.1, restart_period=STEPS, **options)
    kept = last_update(later, later.init(sample_params()))
    fresh = first_update(later)
    assert not np.allclose(kept["dense"]["kernel"], fresh["dense"]["kernel"], rtol=1e-2)


def test_friction_by_period() -> None:
    """diffGrad's previous gradient is a memory too."""
    tx = aj.compose(
        aj.estimate_moments(restart_period=STEPS - 1),
        aj.friction(),
        aj.correct_bias(),
        aj.precondition(),
        aj.scale_by_learning_rate(0.1),
    )
    assert_close(last_update(tx, tx.init(sample_params())), first_update(tx))


def test_steps_and_schedules_go_on() -> None:
    """Only the moments are emptied."""
    tx = aj.adamw(aj.one_cycle(0.1, 10))
    params = sample_params()
    state = tx.init(params)
    for i in range(3):
        _, state = tx.update(at(sample_gradients(), i), state, params)
    restarted = aj.restart_moments(state)
    assert int(restarted.count) == 3
    assert_close(aj.hyperparams(restarted), aj.hyperparams(state))
    assert not any(np.any(x) for x in jax.tree.leaves(restarted.stages["estimate_moments"]))
