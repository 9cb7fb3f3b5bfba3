"""Learning rates for other batch sizes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from adamw_jax.schedules import legw, scale_learning_rate
from adamw_jax.schedules._batch_size import RULES

BATCH = st.floats(1, 1e6)
RULE = st.sampled_from(sorted(RULES))


def test_the_recipes_of_the_papers() -> None:
    """SGD on WRN and VGG-BN; Adam, whose recipe is rounded to two digits."""
    assert [scale_learning_rate(0.1, 128, b) for b in (256, 512)] == [0.2, 0.4]
    np.testing.assert_allclose(scale_learning_rate(4e-4, 128, 256, "sqrt"), 5.6e-4, rtol=0.02)


@given(BATCH, BATCH, BATCH, RULE)
def test_two_changes_are_one(a: float, b: float, c: float, rule: str) -> None:
    through = scale_learning_rate(scale_learning_rate(0.1, a, b, rule), b, c, rule)
    np.testing.assert_allclose(through, scale_learning_rate(0.1, a, c, rule), rtol=1e-12)


@given(BATCH, BATCH)
def test_legw_keeps_the_updates_of_the_warmup(old: float, new: float) -> None:
    rate, epochs = legw(0.1, 2.0, old_batch=old, new_batch=new)
    np.testing.assert_allclose(epochs / new, 2.0 / old, rtol=1e-12)
    np.testing.assert_allclose(rate**2 / new, 0.01 / old, rtol=1e-12)


def test_schedules_and_arrays() -> None:
    schedule = scale_learning_rate(optax.linear_schedule(0.0, 1.0, 10), 10, 40, "sqrt")
    np.testing.assert_allclose(schedule(jnp.int32(5)), 1.0)
    rate = scale_learning_rate(jnp.float32(0.5), 10, 20)
    assert rate.dtype == jnp.float32
    assert float(rate) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0, 8), "old_batch must be a number > 0, got 0"),
        ((0.1, 8, -1), "new_batch must be a number > 0, got -1"),
        ((-0.1, 8, 8), "learning_rate must be a number >= 0"),
        ((0.1, 8, 16, "cube"), "rule must be one of"),
    ],
)
def test_errors(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scale_learning_rate(*arguments)
    with pytest.raises(ValueError, match="warmup_epochs must be a number >= 0"):
        legw(0.1, -1.0, old_batch=1, new_batch=2)
