"""Search spaces, and what a user may give as an optimizer."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax.lab import Optimizer, log_uniform, uniform
from adamw_jax.lab.contenders import contender, contenders, in_words
from adamw_jax.lab.recipes import SCHEDULES, Carrier, tables
from adamw_jax.lab.spaces import edges, extended, trials

pytestmark = pytest.mark.quick


def test_a_grid_has_every_combination():
    made = trials({"a": (1.0, 2.0), "b": (3.0, 4.0), "c": (5.0,)}, 3, seed=0)
    assert len(made) == 4
    assert {(m["a"], m["b"], m["c"]) for m in made} == {(1, 3, 5), (1, 4, 5), (2, 3, 5), (2, 4, 5)}


@pytest.mark.parametrize("count", [1, 5, 8])
def test_sobol_covers_every_axis_evenly(count):
    space = {"a": log_uniform(1e-4, 1e-1), "b": uniform(-1, 1), "c": (1.0, 2.0)}
    made = trials(space, count, seed=1)
    assert len(made) == count
    assert made == trials(space, count, seed=1)
    assert made != trials(space, count, seed=2)
    if count == 8:  # one point in each eighth of each axis
        eighths = [int(8 * np.log10(m["a"] / 1e-4) / 3) for m in made]
        assert sorted(eighths) == list(range(8))
        assert sorted(int(4 * (m["b"] + 1)) for m in made) == list(range(8))
        assert [m["c"] for m in made].count(1.0) == 4


def test_spaces_are_extended_beyond_the_edge():
    space = {"a": log_uniform(1e-2, 1.0), "b": (0.1, 0.3, 0.9), "c": (0.0, 0.5), "d": uniform(0, 2)}
    above, whole = extended(space, dict.fromkeys(space, True))
    assert (above["a"].low, above["a"].high) == (pytest.approx(1), pytest.approx(10))
    assert above["b"] == (2.7,)
    assert above["c"] == (1.0,)
    assert (above["d"].low, above["d"].high) == (2, 3)
    assert (whole["d"].low, whole["d"].high, whole["b"]) == (0, 3, (0.1, 0.3, 0.9, 2.7))
    below, _ = extended(space, {"a": False, "b": False})
    assert (below["a"].low, below["a"].high) == (pytest.approx(1e-3), pytest.approx(1e-2))
    assert below["b"] == (0.03333,)
    assert below["c"] == space["c"]
    tried = [{"lr": x, "wd": 0.1} for x in (1, 2, 3, 4)]
    assert edges(tried, tried[0]) == {"lr": False}
    assert edges(tried, tried[1]) == {}
    assert edges(tried[:3], tried[0]) == {}  # of three values, two are at an edge


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: log_uniform(0, 1), "must begin above 0, got 0"),
        (lambda: uniform(2, 1), "low < high, got 2 and 1"),
        (lambda: uniform(0, float("inf")), "finite bounds"),
        (lambda: contenders(["adamw"]), "two or more"),
        (lambda: contenders(["adamw", "adamw"]), "different names"),
        (lambda: contenders(["adamw", "adamv"]), "Did you mean 'adam"),
        (lambda: contenders(["adamw", 3]), "a name, a function of hyperparameters"),
        (lambda: contender(Optimizer("adamw", {"b3": 0.1})), "unknown hyperparameter of adamw"),
        (lambda: contender(Optimizer("adamw", {"b2": "x"})), "space of adamw, b2, must be"),
        (lambda: contender(Optimizer("adamw", {"b2": []})), "must be a number, a list"),
        (lambda: contender(Optimizer(optax.sgd(0.1), {"x": 1})), "already made must be empty"),
        (lambda: contenders(["adamw", "radam"], {"x": 1}), "no optimizer takes 'x'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_every_optimizer_gets_decay_unless_told_otherwise():
    def mine(learning_rate, weight_decay, sharpness=1.0):
        return optax.adamw(learning_rate, weight_decay=weight_decay * sharpness)

    made = contenders(["adam", "adamw", "radam", "sgdw", optax.adamw, mine])
    assert all("weight_decay" in one.space for one in made)
    assert [one.name for one in made] == ["adam", "adamw", "radam", "sgdw", "optax.adamw", "mine"]
    plain = contenders(["adam", Optimizer("radam", {"weight_decay": 0.1})], {"weight_decay": None})
    assert [one.space.get("weight_decay") for one in plain] == [None, (0.1,)]
    assert (
        contender("sgdw").space["learning_rate"].high
        > contender("adamw").space["learning_rate"].high
    )
    assert contender(optax.sgd(0.1), "fixed").space == {}
    assert "b2 0.99" in in_words(contender(Optimizer("adamw", {"b2": 0.99})).space)


def values_of(one, numbers, schedule="one_cycle", steps=100):
    recipe = one.recipe
    rates, momenta = tables(schedule, numbers.get("learning_rate", 1.0), steps, recipe.momentum)
    tx = recipe.build(Carrier(jnp.asarray(rates), jnp.asarray(momenta)), numbers)
    return {key: hyper.value for key, hyper in tx.hyperparams.items()}


@pytest.mark.parametrize(
    ("name", "space", "expected"),
    [
        ("adamw", {}, {"b1": (0.95, 0.85), "b2": 0.999}),
        ("adamw", {"b2": 0.99, "b1": 0.8}, {"b1": 0.8, "b2": 0.99}),
        ("lookahead_adamw", {"b2": 0.99}, {"b1": (0.95, 0.85), "b2": 0.99}),
        ("sgdw", {}, {"momentum": (0.95, 0.85)}),
        ("sgdw", {"momentum": 0.5}, {"momentum": 0.5}),
        ("adan", {}, {"b1": 0.98, "b2": 0.92, "b3": 0.99}),
        ("adafactor", {}, {"decay_rate": 0.8}),
        ("clipped_sgd", {}, {}),
    ],
)
def test_optimizers_are_what_their_names_and_spaces_say(name, space, expected):
    """The cycle's momentum where it is the usual one and nobody sets another."""
    one = contender(Optimizer(name, space))
    numbers = {key: axis[0] for key, axis in one.space.items() if isinstance(axis, tuple)}
    found = values_of(one, {"learning_rate": 0.1, **numbers})
    rates = {"b1", "b2", "b3", "momentum", "decay_rate"} & set(found)
    assert rates == set(expected)
    for key in rates:
        at = found[key] if callable(found[key]) else lambda count, key=key: found[key]
        first, lowest = expected[key] if isinstance(expected[key], tuple) else (expected[key],) * 2
        assert float(at(0)) == pytest.approx(first)
        assert min(float(at(count)) for count in range(100)) == pytest.approx(lowest, abs=1e-3)


def test_functions_get_a_schedule_or_a_number():
    seen = {}

    def mine(learning_rate, weight_decay):
        seen["rate"] = learning_rate
        return aj.adamw(learning_rate, weight_decay=weight_decay)

    values_of(contender(mine), {"learning_rate": 0.1, "weight_decay": 0.0})
    assert float(seen["rate"](0)) == pytest.approx(0.1 / 25, rel=0.1)
    values_of(
        contender(mine, constant=True), {"learning_rate": 0.1, "weight_decay": 0.0}, "constant"
    )
    assert float(seen["rate"]) == pytest.approx(0.1)
    with pytest.raises(TypeError, match="wrong must return an optax transformation, got dict"):
        contender(lambda: {}, "wrong").recipe.build(Carrier(jnp.ones(1), jnp.ones(1)), {})


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_schedules_have_one_value_per_step(name, steps):
    if name == "one_cycle" and steps < 4:
        with pytest.raises(ValueError, match="give more steps"):
            tables(name, 0.5, steps)
        return
    rates, momenta = tables(name, 0.5, steps)
    assert rates.shape == momenta.shape == (steps,)
    assert 0 < rates.max() <= 0.5 + 1e-6
    if name == "warmup_cosine" and steps == 100:
        assert rates[9] == rates[10] == rates.max()


@pytest.mark.parametrize("rates", [[-1.0, 1.0], 0.0, uniform(0.0, 1.0)])
def test_learning_rates_that_do_not_descend_are_refused(rates):
    with pytest.raises(ValueError, match="learning_rate of adamw must be above 0"):
        contenders(["adamw", "sgdw"], {"learning_rate": rates})
