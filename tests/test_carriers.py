"""Objects that carry several schedules, passed as the learning rate: 1cycle, phases, restarts."""

from __future__ import annotations

import inspect
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax import Phase, adamw, one_cycle, phases, scale_by_one_cycle, sgdw, warm_restarts
from adamw_jax.direction._decay import FORMS
from tests.catalogue import (
    TYPICAL,
    assert_close,
    one_step,
    run,
    sample_gradients,
    sample_params,
    with_direction,
)

pytestmark = pytest.mark.quick

STEPS = 12


def drives(direction: Any) -> bool:
    """Whether a 1cycle has a momentum to drive; None is no buffer."""
    parameters = inspect.signature(direction).parameters
    return any(parameters[n].default is not None for n in ("b1", "momentum") if n in parameters)


WITH_MOMENTUM = [name for name in with_direction() if drives(aj.info(name).direction)]


def test_every_optimizer_so_far_has_a_momentum() -> None:
    """So that the table below is not empty by a change of a name."""
    assert {"adam", "adamw", "adamax", "amsgrad", "radam", "adabelief", "sgdw"} <= set(
        WITH_MOMENTUM
    )


def options_of(name: str) -> dict[str, Any]:
    """A short memory, so that radam moves within a few steps."""
    known = inspect.signature(aj.info(name).direction).parameters
    return {"b2": 0.9} if "b2" in known else {}


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("adam", "fastai_v1"),
        *(
            pytest.param(name, "pytorch", marks=() if name in TYPICAL else pytest.mark.slow)
            for name in WITH_MOMENTUM
        ),
    ],
)
def test_one_cycle_in_a_plain_chain_is_the_whole_optimizer(name: str, preset: str) -> None:
    """And that is not the optimizer with a momentum that stands still."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    cycle, options = one_cycle(0.1, STEPS, preset), options_of(name)
    chained = optax.chain(
        optax.clip(1e9), scale_by_one_cycle(cycle, aj.info(name).direction, **options)
    )
    factory = aj.info(name).factory
    got, _ = run(chained, params, gradients)
    whole, _ = run(factory(cycle, weight_decay=None, **options), params, gradients)
    assert_close(got, whole, rtol=1e-6)
    rate_only = factory(cycle.learning_rate, weight_decay=None, **options)
    still, _ = run(rate_only, params, gradients)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(still), strict=True)
    assert not all(np.allclose(x, y, rtol=1e-3) for x, y in pairs)


@pytest.mark.parametrize("name", [n for n in with_direction() if n not in WITH_MOMENTUM])
def test_one_cycle_gives_no_buffer_where_there_is_none(name: str) -> None:
    """It drives the learning rate alone, and no other argument that happens to come first."""
    params, gradients = sample_params(), sample_gradients(3)
    row, cycle = aj.info(name), one_cycle(0.1, STEPS)
    options = {"relative_step": False} if name == "adafactor" else {}
    whole = row.factory(cycle.learning_rate, **row.example, **options)
    chained = scale_by_one_cycle(cycle, row.direction)
    expected, state = run(whole, params, gradients)
    for tx in (row.factory(cycle, **row.example, **options), chained):
        got, after = run(tx, params, gradients)
        assert_close(got, expected, rtol=1e-6)
        assert sorted(after.stages) == sorted(state.stages)


def test_a_momentum_of_none_stays_none_and_the_cycle_s_can_be_asked_for() -> None:
    cycle, params = one_cycle(0.1, STEPS), sample_params()
    arrays = [x for x in jax.tree.leaves(sgdw(cycle, None).init(params).stages) if x.ndim]
    assert not arrays
    for tx, name in (
        (aj.clipped_sgd(cycle, 0.5, cycle.momentum), "momentum"),
        (aj.adafactor(cycle, b1=cycle.momentum), "b1"),
        (
            scale_by_one_cycle(cycle, aj.scale_by_normalized_sgd, momentum=cycle.momentum),
            "momentum",
        ),
    ):
        assert tx.hyperparams[name].value is cycle.momentum
    with pytest.raises(ValueError, match=r"momentum=0\.9, but .* give momentum=that\.momentum"):
        aj.clipped_sgd(cycle, 0.5, 0.9)
    with pytest.raises(ValueError, match=r"b1=0\.8, but .* leave b1 out"):
        scale_by_one_cycle(cycle, aj.scale_by_adam, b1=0.8)


def test_one_cycle_stage_by_stage_in_a_plain_chain() -> None:
    """Without a direction it is the learning rate alone, after stages that take the momentum."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    cycle = one_cycle(0.1, STEPS)
    with jax.numpy_dtype_promotion("standard"):  # for optax's decay
        got, _ = run(
            optax.chain(
                aj.scale_by_adam(cycle.momentum),
                optax.add_decayed_weights(0.3),
                scale_by_one_cycle(cycle),
            ),
            params,
            gradients,
        )
    whole, _ = run(adamw(cycle, weight_decay=0.3), params, gradients)
    assert_close(got, whole)


def test_a_cycle_without_momentum_leaves_b1_alone() -> None:
    params, gradients = sample_params(), sample_gradients(STEPS)
    cycle = one_cycle(0.1, STEPS, momentum=None)
    got, state = run(adamw(cycle, b1=0.7), params, gradients)
    assert float(aj.hyperparams(state)["b1"]) == pytest.approx(0.7)
    assert_close(got, run(adamw(cycle.learning_rate, b1=0.7), params, gradients)[0])
    chained = scale_by_one_cycle(cycle, aj.scale_by_adam, b1=0.7)
    without = run(adamw(cycle, b1=0.7, weight_decay=None), params, gradients)[0]
    assert_close(run(chained, params, gradients)[0], without)


# A plan of three phases, 3 + 4.5 + 3 steps; the second ends with the batch that reaches 7.5.

PLAN = [
    Phase(3, learning_rate=(0.02, 0.08), momentum=(0.95, 0.85), b2=0.99,
          weight_decay=0.3, decay_form="l2"),
    Phase(4.5, learning_rate=(0.08, 0.01), momentum=(0.85, 0.95), b2=(0.99, 0.9),
          weight_decay=0.5, shape="cosine"),
    Phase(3, learning_rate=0.01, momentum=0.9, b2=0.9, weight_decay=0.0),
]  # fmt: skip
PLAN_STEPS = 11


def numbers_at(count: int) -> dict[str, float]:
    """The plan once more, batch by batch."""
    if count < 3:
        at = count / 3
        return {"rate": 0.02 + 0.06 * at, "b1": 0.95 - 0.1 * at, "b2": 0.99, "wd": 0.0, "l2": 0.3}
    if count < 8:
        at = (count - 3) / 4.5
        rate = 0.01 + 0.07 * (1 + np.cos(np.pi * at)) / 2
        b1, b2 = 0.85 + 0.1 * at, 0.99 - 0.09 * at
        return {"rate": rate, "b1": b1, "b2": b2, "wd": 0.5, "l2": 0.0}
    return {"rate": 0.01, "b1": 0.9, "b2": 0.9, "wd": 0.0, "l2": 0.0}


def decayed(form: str, p: Any, direction: Any, n: dict[str, float]) -> Any:
    """One step of a form of decay; lr_0 is the plan's highest rate."""
    step = n["rate"] * direction
    return {
        "learning_rate": p - step - n["rate"] * n["wd"] * p,
        "schedule": p - step - n["rate"] / 0.08 * n["wd"] * p,
        "corrected": p - step - n["rate"] ** 2 / 0.08 * n["wd"] * p,
        "fixed": p - step - n["wd"] * p,
        "proximal": (p - step) / (1 + n["rate"] * n["wd"]),
    }[form]


def by_hand(form: str, adaptive: bool) -> np.ndarray:
    """Adam, with sums of weights for the bias, or SGD with momentum, under the plan."""
    p, (m, v, w, w2) = START, np.zeros((4, START.size))
    rows = []
    for count, gradient in enumerate(GRADIENTS):
        n = numbers_at(count)
        g = gradient + n["l2"] * p
        if adaptive:
            m, w = n["b1"] * m + (1 - n["b1"]) * g, n["b1"] * w + 1 - n["b1"]
            v, w2 = n["b2"] * v + (1 - n["b2"]) * g**2, n["b2"] * w2 + 1 - n["b2"]
            direction = (m / w) / (np.sqrt(v / w2) + 1e-8)
        else:
            m = n["b1"] * m + g
            direction = m
        p = decayed(form, p, direction, n)
        rows.append(p)
    return np.stack(rows)


RNG = np.random.default_rng(3)
GRADIENTS = RNG.normal(size=(PLAN_STEPS, 5)) * np.array([1e-2, 0.3, 1.0, 1.0, 3.0])
START = RNG.normal(size=5)


def trajectory(tx: Any) -> np.ndarray:
    """Parameters after every step, in float64."""

    @jax.jit
    def whole(start: jax.Array, gradients: jax.Array) -> jax.Array:
        def body(carry: Any, g: jax.Array) -> Any:
            carry = one_step(tx)(*carry, g)
            return carry, carry[0]

        return jax.lax.scan(body, (start, tx.init(start)), gradients)[1]

    return np.asarray(whole(jnp.asarray(START), jnp.asarray(GRADIENTS)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("factory", [adamw, sgdw], ids=lambda f: f.__name__)
def test_phases_drive_everything(factory: Any, form: str) -> None:
    """Rate, momentum, b2, and a decay that changes from L2 to decoupled to none."""
    plan = phases(PLAN)
    assert plan.total_steps == PLAN_STEPS
    expected = by_hand(form, adaptive=factory is adamw)
    got = trajectory(factory(plan, decay=form))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_a_plan_of_l2_alone_switches_the_optimizers_own_decay_off() -> None:
    """Adamw's default would otherwise decay a second time."""
    plan = phases([Phase(PLAN_STEPS, learning_rate=0.05, weight_decay=0.3, decay_form="l2")])
    got = trajectory(adamw(plan))
    np.testing.assert_allclose(got, trajectory(aj.adam(0.05, l2=0.3)), rtol=1e-12)
    twice = trajectory(adamw(0.05, l2=0.3))
    assert np.abs(got - twice).max() > 1e-6


@pytest.mark.usefixtures("x64")
def test_a_plan_without_decay_or_b2_leaves_them_to_the_optimizer() -> None:
    plan = phases([Phase(PLAN_STEPS, learning_rate=0.05, momentum=0.8)])
    got = trajectory(adamw(plan, b2=0.95, weight_decay=0.4))
    expected = trajectory(adamw(0.05, 0.8, 0.95, weight_decay=0.4))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# Restarts: periods of 3 and of 6 steps, and the begin of the third.


def restarted(count: int) -> tuple[float, float]:
    """Multiplier and length of the period at a step."""
    begin, length = next((b, n) for b, n in ((0, 3), (3, 6), (9, 12)) if count < b + n)
    return (1 + np.cos(np.pi * (count - begin) / length)) / 2, length


def looked_up(values: list[float]) -> Any:
    return lambda count: jnp.asarray(np.asarray(values))[count]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["schedule", "learning_rate"])
@pytest.mark.parametrize("factory", [adamw, sgdw], ids=lambda f: f.__name__)
def test_warm_restarts_carry_rate_decay_and_base(factory: Any, form: str) -> None:
    """The same as the schedules one by one; the base is known without being given."""
    restarts = warm_restarts(0.08, first_period=3, multiplier=2, normalized_decay=0.2)
    got = trajectory(factory(restarts, decay=form))
    shape = [restarted(count) for count in range(PLAN_STEPS)]
    one_by_one = factory(
        looked_up([0.08 * eta for eta, _ in shape]),
        weight_decay=looked_up([0.2 / np.sqrt(length) for _, length in shape]),
        decay=form,
        base_learning_rate=0.08 if form == "schedule" else None,
    )
    np.testing.assert_allclose(got, trajectory(one_by_one), rtol=1e-12, atol=1e-14)
    without = trajectory(factory(restarts.learning_rate, weight_decay=None))
    assert np.abs(got - without).max() > 1e-3


@pytest.mark.usefixtures("x64")
def test_restarts_without_decay_leave_it_to_the_optimizer() -> None:
    restarts = warm_restarts(0.08, first_period=3)
    got = trajectory(adamw(restarts, weight_decay=0.3))
    rates = looked_up([0.08 * restarted(count)[0] for count in range(PLAN_STEPS)])
    np.testing.assert_allclose(got, trajectory(adamw(rates, weight_decay=0.3)), rtol=1e-12)


def test_the_live_record_shows_what_a_plan_sets() -> None:
    """Values of the last step, under the names of the optimizer."""
    plan, params = phases(PLAN), sample_params()
    _, state = run(adamw(plan), params, sample_gradients(5))
    now, expected = aj.hyperparams(state), numbers_at(4)
    names = {"learning_rate": "rate", "b1": "b1", "b2": "b2", "weight_decay": "wd", "l2": "l2"}
    for ours, here in names.items():
        assert float(now[ours]) == pytest.approx(expected[here], rel=1e-5), ours


def test_a_schedule_of_b2_drives_the_rate_of_the_second_moment() -> None:
    """Which Adan calls b3; its b2 weighs the differences, and may be given."""
    plan: Any = types.SimpleNamespace(learning_rate=0.1, b2=lambda count: 0.5)
    driven = aj.adan(plan, b2=0.8).hyperparams
    assert driven["b3"].value is plan.b2
    assert driven["b2"].value == 0.8
    with pytest.raises(ValueError, match=r"b3=0\.9, but SimpleNamespace has a schedule of b2"):
        aj.adan(plan, b3=0.9)


NO_MOMENTUM: dict[str, Any] = {
    "schedule_free_adamw": aj.schedule_free_adamw,
    "schedule_free_radam": aj.schedule_free_radam,
    "create": lambda rate: aj.create(aj.as_direction(optax.scale_by_lion()), rate),
}


@pytest.mark.parametrize("name", NO_MOMENTUM)
def test_a_momentum_that_has_no_place_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"OneCycle has a .* with momentum=None"):
        NO_MOMENTUM[name](one_cycle(0.1, 10))
    NO_MOMENTUM[name](one_cycle(0.1, 10, momentum=None))


def test_an_l2_that_nothing_takes_is_refused() -> None:
    plan: Any = types.SimpleNamespace(learning_rate=1.0, l2=0.1)
    for factory in (aj.koala_v, aj.koala_m):
        with pytest.raises(ValueError, match=r"does not take l2, but SimpleNamespace has"):
            factory(plan)
