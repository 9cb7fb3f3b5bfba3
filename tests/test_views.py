"""What a user sees of a recipe and of schedules: ``repr``, ``table``, ``plot``, the version."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.schedules import inverse_root

mpl.use("Agg")

SCHEDULES: dict[str, tuple[Any, int | None, list[str]]] = {
    "one_cycle": (aj.one_cycle(1e-2, 100), None, ["learning_rate", "momentum"]),
    "one_cycle without momentum": (
        aj.one_cycle(1e-2, 100, momentum=None), None, ["learning_rate"],
    ),
    "phases": (
        aj.phases([aj.Phase(steps=50, learning_rate=(0.0, 1.0), b2=0.99, weight_decay=0.1)]),
        None, ["learning_rate", "b2", "weight_decay"],
    ),
    "warm_restarts": (aj.warm_restarts(1e-2, 10), 40, ["learning_rate", "multiplier"]),
    "inverse_root": (inverse_root(1e-2, 10), 40, ["learning_rate"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_table_has_the_values_at_its_steps(name: str) -> None:
    made, steps, columns = SCHEDULES[name]
    head, *lines = made.table(rows=5, steps=steps).splitlines()
    assert head.split() == ["step", *columns]
    rows = np.array([[float(cell) for cell in line.split()] for line in lines])
    last = (steps or made.total_steps) - 1
    assert rows[0, 0] == 0
    assert rows[-1, 0] == last
    for column, key in enumerate(columns, start=1):
        want = [float(getattr(made, key)(int(count))) for count in rows[:, 0]]
        np.testing.assert_allclose(rows[:, column], want, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_plot_draws_every_schedule(name: str) -> None:
    made, steps, columns = SCHEDULES[name]
    axes = made.plot(steps=steps)
    assert [one.get_ylabel() for one in axes] == [key.replace("_", " ") for key in columns]
    for one, key in zip(axes, columns, strict=True):
        x, y = one.get_lines()[0].get_data()
        np.testing.assert_allclose(y[7], getattr(made, key)(int(x[7])), rtol=1e-6)
    assert made.plot(axes, steps=steps) is axes
    plt.close("all")


def test_views_name_what_they_need() -> None:
    with pytest.raises(ValueError, match="no end: give steps"):
        aj.warm_restarts(1e-2, 10).table()
    with pytest.raises(ValueError, match="rows"):
        aj.one_cycle(1e-2, 10).table(rows=1)
    with pytest.raises(ValueError, match=r"\['learning_rate', 'momentum'\]"):
        aj.one_cycle(1e-2, 10).plot([plt.subplots()[1]])
    plt.close("all")


def test_a_recipe_shows_its_stages_and_options() -> None:
    tx = aj.compose(aj.adamw(optax.constant_schedule(0.1)), aj.lookahead(), frozen="*/bias")
    assert repr(tx).splitlines() == [
        "<recipe",
        "  estimate_moments(b1=0.9, b2=0.999),",
        "  correct_bias(),",
        "  precondition(eps=1e-08),",
        "  decoupled_decay(weight_decay=0.0001),",
        "  scale_by_learning_rate(learning_rate=schedule),",
        "  lookahead(slow_step_size=0.5),",
        "  frozen=...,",
        ">",
    ]
    lines = {
        "decoupled_decay(weight_decay=0.1, learning_rate=0.1, mask='*/b', form='corrected'),": (
            aj.adamw(0.1, weight_decay=0.1, mask="*/b", decay="corrected")
        ),
        "rectify_variance(threshold=5.0, below='momentum'),": aj.radam(0.1, below="momentum"),
        "estimate_moments(momentum=0.9, first=heavy_ball(nesterov=True), second=no_moment()),": (
            aj.sgdw(0.1, nesterov=True)
        ),
        "correct_bias(convention='current'),": aj.adam(0.1, bias_correction="current"),
        "scale_by_learning_rate(learning_rate=0.1, rules=...),": (
            aj.adam(0.1, rules=aj.parameter_rules({}, aj.Rule()))
        ),
        "average_iterates(average_decay=0.999, kind='ema'),": (
            aj.compose(aj.adam(0.1), aj.average_iterates(kind="ema"))
        ),
        "lookahead(slow_step_size=0.5, sync_period=6),": (
            aj.compose(aj.adam(0.1), aj.lookahead(sync_period=6))
        ),
        "precondition(eps=1e-08, eps_hat=True),": aj.adam(0.1, eps_hat=True),
        "estimate_moments(b1=0.9, b2=0.999, storage=...),": aj.adam(0.1, storage="8bit"),
    }
    for line, tx in lines.items():
        assert line in [one.strip() for one in repr(tx).splitlines()], repr(tx)
    assert repr(aj.precondition()) == "<stage precondition(eps=1e-08): moments -> direction>"


def test_the_version_is_that_of_the_package() -> None:
    assert aj.__version__ == importlib.metadata.version("adamw-jax")
