"""Groups with their own learning rate and decay: against optax, by the equations, live."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax import Rule, adamw, hyperparams, parameter_rules, set_hyperparams, sgdw
from adamw_jax.direction._decay import FORMS
from tests.catalogue import assert_close, at, one_step, run, sample_gradients, sample_params

pytestmark = pytest.mark.quick

RATE, OWN, DECAY, STEPS = 0.05, 0.2, 0.3, 5


def own(count: Any) -> Any:
    """A schedule of the group: 0.05, 0.1, 0.15, ..., with its peak at 0.2."""
    return jnp.minimum(0.05 * (jnp.float32(count) + 1), OWN)


def table(rule: Rule) -> Any:
    """The rules that give ``rule`` to the kernel."""
    return parameter_rules({"dense/kernel": rule}, default=Rule())


@pytest.mark.parametrize("rate", [OWN, own], ids=["number", "schedule"])
@pytest.mark.usefixtures("x64")
def test_a_group_equals_partition_of_optax(rate: Any) -> None:
    """Two optimizers in optax.partition, as its users write it, step by step."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    labels = {"dense": {"bias": "rest", "kernel": "head"}, "scale": "rest"}
    theirs = optax.partition(
        {
            "head": optax.adamw(rate, weight_decay=DECAY),
            "rest": optax.adamw(RATE, weight_decay=0.1),
        },
        labels,
    )
    rules = table(Rule(learning_rate=rate, weight_decay=DECAY))
    ours = adamw(RATE, weight_decay=0.1, rules=rules)
    step, one = jax.jit(one_step(ours)), jax.jit(one_step(theirs))
    p, q, state = params, params, ours.init(params)
    with jax.numpy_dtype_promotion("standard"):  # for optax
        other = theirs.init(params)
        for i in range(STEPS):
            p, state = step(p, state, at(gradients, i))
            q, other = one(q, other, at(gradients, i))
            assert_close(p, q)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", [None, "head"])
@pytest.mark.parametrize("form", FORMS)
def test_decay_follows_the_rate_of_the_group(form: str, name: str | None) -> None:
    """By the equations: the form reads the group's rate, and its peak."""
    rule = Rule(learning_rate=own, base_learning_rate=OWN, weight_decay=DECAY, name=name)
    params, gradients = sample_params(), sample_gradients(STEPS)
    tx = sgdw(RATE, momentum=None, weight_decay=0.1, decay=form, rules=table(rule))
    got, state = run(tx, params, gradients)
    p = np.asarray(params["dense"]["kernel"])
    for t, g in enumerate(np.asarray(gradients["dense"]["kernel"])):
        lr = min(0.05 * (t + 1), OWN)
        step = lr * g
        p = {
            "learning_rate": p - step - lr * DECAY * p,
            "schedule": p - step - lr / OWN * DECAY * p,
            "corrected": p - step - lr * lr / OWN * DECAY * p,
            "fixed": p - step - DECAY * p,
            "proximal": (p - step) / (1 + lr * DECAY),
        }[form]
    np.testing.assert_allclose(got["dense"]["kernel"], p, rtol=1e-5, atol=1e-7)
    if name:
        assert hyperparams(state)["head.learning_rate"] == pytest.approx(OWN)


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda rate, r: adamw(rate, weight_decay=0.1, **r),
    "l2": lambda rate, r: aj.adam(rate, l2=0.1, **r),
    "sgdw inside": lambda rate, r: sgdw(rate, weight_decay=0.1, schedule_inside=True, **r),
    "lars": lambda rate, r: aj.lars(rate, weight_decay=0.1, **r),
    "lamb": lambda rate, r: aj.lamb(rate, weight_decay=0.1, **r),
    "adafactor": lambda rate, r: aj.adafactor(rate, weight_decay=0.1, **r),
    "adafactor relative": lambda rate, r: aj.adafactor(
        rate, relative_step=True, weight_decay=0.1, decay="proximal", **r
    ),
    "foreign": lambda rate, r: aj.create(
        aj.as_direction(optax.scale_by_lion()), rate, weight_decay=0.1, **r
    ),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_group_moves_as_under_its_own_rate(case: str) -> None:
    """In every stage that reads the rate, pinned and in the code; other leaves do not notice."""
    make, params, gradients = OPTIMIZERS[case], sample_params(), sample_gradients(STEPS)
    fast = run(make(OWN, {}), params, gradients)[0]
    slow = run(make(RATE, {}), params, gradients)[0]
    tx = make(RATE, {"rules": table(Rule(learning_rate=1.0, name="head"))})
    state = set_hyperparams(tx.init(params), {"head.learning_rate": OWN})
    step, got = jax.jit(one_step(tx)), params
    for i in range(STEPS):
        got, state = step(got, state, at(gradients, i))
    coded, _ = run(make(RATE, {"rules": table(Rule(learning_rate=OWN))}), params, gradients)
    for found in (got, coded):
        assert_close(found["dense"]["kernel"], fast["dense"]["kernel"])
        assert_close(found["scale"], slow["scale"])
    assert step._cache_size() == 1
    assert not np.allclose(fast["dense"]["kernel"], slow["dense"]["kernel"])


def test_koala_m_reads_the_rate_of_the_group() -> None:
    """All leaves are one filter, so the rate of all leaves is compared."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    rules = parameter_rules({"*": Rule(learning_rate=0.5)})
    got, _ = run(aj.koala_m(1.0, rules=rules), params, gradients)
    assert_close(got, run(aj.koala_m(0.5), params, gradients)[0])


def test_a_multiplier_of_another_table_multiplies_the_rate_of_the_group() -> None:
    params, gradients = sample_params(), sample_gradients(STEPS)
    halves = parameter_rules({}, default=Rule(learning_rate_factor=0.5))
    tx = adamw(RATE, rules=table(Rule(learning_rate=OWN)) * halves)
    got, _ = run(tx, params, gradients)
    expected, _ = run(adamw(RATE / 2, rules=table(Rule(learning_rate=OWN / 2))), params, gradients)
    assert_close(got, expected)
    text = aj.summary(tx, params)
    assert "0.2 x 0.5" in text
    assert "x 0.5" in text.splitlines()[-1]


def test_mistakes_with_the_values_of_a_group() -> None:
    params, mine = sample_params(), table(Rule(learning_rate=OWN))
    with pytest.raises(ValueError, match=r"learning_rate is given by two .* learning_rate_factor"):
        adamw(RATE, rules=mine * mine).init(params)
    with pytest.raises(ValueError, match=r"Rule\(weight_decay=0.1\) has a weight_decay, but"):
        aj.adam(RATE, rules=table(Rule(weight_decay=0.1)))
    aj.adam(RATE, rules=table(Rule(weight_decay=0.0)))
    for form in ("schedule", "corrected"):
        with pytest.raises(ValueError, match=r"give the peak as base_learning_rate to Rule\("):
            adamw(RATE, decay=form, rules=table(Rule(learning_rate=own)))
    with pytest.raises(TypeError, match=r"which has several: give its \.learning_rate"):
        Rule(learning_rate=aj.one_cycle(1e-3, 10))
    with pytest.raises(TypeError, match="positional"):
        Rule(10.0)  # type: ignore[misc]
