"""Groups of parameters: tables that combine, scheduled multipliers, live groups, the summary."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from adamw_jax import (
    Rule,
    adafactor,
    adamw,
    clear_hyperparams,
    compose,
    decoupled_decay,
    hyperparams,
    koala_m,
    koala_v,
    lamb,
    lars,
    lookahead,
    migrate_state,
    only,
    parameter_rules,
    set_hyperparams,
    sgdw,
    summary,
)
from adamw_jax.direction._decay import FORMS
from tests.catalogue import (
    assert_close,
    assert_equal,
    at,
    one_step,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

RATE, DECAY, STEPS = 0.05, 0.3, 5
RATES = parameter_rules(
    {"dense/*": Rule(learning_rate_factor=0.5)}, default=Rule(learning_rate_factor=2.0)
)
KINDS = parameter_rules({"*/bias": Rule(weight_decay=0.0)}, default=Rule(weight_decay_factor=1.5))
BY_HAND = parameter_rules(
    {
        "dense/bias": Rule(learning_rate_factor=0.5, weight_decay_factor=0.0),
        "dense/kernel": Rule(learning_rate_factor=0.5, weight_decay_factor=1.5),
        "scale": Rule(learning_rate_factor=2.0, weight_decay_factor=1.5),
    }
)

READERS: dict[str, Any] = {
    **{f"adamw {form}": lambda r, f=form: adamw(RATE, l2=0.2, decay=f, **r) for form in FORMS},
    "lamb": lambda r: lamb(RATE, **r),
    "lars": lambda r: lars(RATE, **r),
    "lars, sum of norms": lambda r: lars(RATE, sum_of_norms=True, **r),
    "adafactor": lambda r: adafactor(RATE, **r),
    "adafactor proximal": lambda r: adafactor(RATE, decay="proximal", **r),
    "koala_v": lambda r: koala_v(RATE, **r),
    "koala_m": lambda r: koala_m(RATE, **r),
}
readers = pytest.mark.parametrize("reader", READERS)
"""Every stage that reads the multipliers of rules."""


def trained(reader: str, rules: Any, change: Any = None) -> Any:
    """Parameters after the sample gradients; ``change`` is applied to the first state."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    tx = READERS[reader]({"weight_decay": DECAY, "rules": rules})
    state = tx.init(params)
    state = state if change is None else change(state)
    step = jax.jit(one_step(tx))
    for i in range(STEPS):
        params, state = step(params, state, at(gradients, i))
    assert step._cache_size() == 1
    return params


@pytest.mark.sample(4)
@readers
def test_two_tables_are_the_table_of_products(reader: str) -> None:
    assert_close(trained(reader, RATES * KINDS), trained(reader, BY_HAND))
    assert_close(trained(reader, KINDS * RATES), trained(reader, BY_HAND))


def test_freezing_wins_in_a_product() -> None:
    """In whichever table; the other table may match only frozen leaves with a pattern."""
    freeze = parameter_rules({"dense/*": Rule(freeze=True)}, default=Rule())
    params, gradients = sample_params(), sample_gradients(STEPS)
    for rules in (freeze * KINDS, KINDS * freeze):
        tx = adamw(RATE, weight_decay=DECAY, rules=rules)
        got, state = run(tx, params, gradients)
        assert_equal(got["dense"], params["dense"])
        assert not np.allclose(got["scale"], params["scale"])
        assert state.stages["estimate_moments"].first.moment["dense"]["bias"] == optax.MaskedNode()


def test_frozen_leaves_do_not_decay_in_a_stage_alone() -> None:
    """Also where no recipe hides them, and if the rule has a name."""
    freeze = parameter_rules({"dense/*": Rule(freeze=True, name="still")}, default=Rule())
    params = sample_params()
    tx = optax.chain(decoupled_decay(DECAY, rules=freeze))
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    assert_equal(updates["dense"], zero["dense"])
    np.testing.assert_allclose(updates["scale"], DECAY * params["scale"], rtol=1e-6)


def test_a_parameter_may_be_called_default() -> None:
    params = {"default": jnp.ones(2), "other": jnp.ones(2)}
    rules = parameter_rules({"default": Rule(learning_rate_factor=0.0)}, default=Rule())
    moved, _ = run(
        sgdw(RATE, momentum=None, rules=rules), params, {n: jnp.ones((1, 2)) for n in params}
    )
    assert jax.tree.map(lambda p: bool(jnp.all(p == 1)), moved) == {"default": True, "other": False}


def test_each_table_has_its_own_check() -> None:
    params = sample_params()
    for bad, message in (
        (parameter_rules({"*/bias": Rule()}), r"Not matched: \['dense/kernel', 'scale'\]"),
        (parameter_rules({"head": Rule()}, default=Rule()), r"match nothing: \['head'\]"),
        (parameter_rules({"dense/*": Rule(), "*": Rule()}), "matched more than once"),
    ):
        for rules in (bad * KINDS, KINDS * bad):
            with pytest.raises(ValueError, match=message):
                adamw(RATE, rules=rules).init(params)
    with pytest.raises(TypeError, match="unsupported operand"):
        _ = KINDS * 2.0  # type: ignore[operator]


MISTAKES = {
    "rules": lambda: adamw(RATE, rules=parameter_rules({"*/bias": Rule()})),
    "frozen": (
        lambda: adamw(RATE, rules=parameter_rules({"hed/*": Rule(freeze=True)}, default=Rule()))
    ),
    "decay": lambda: adamw(RATE, weight_decay=DECAY, mask="*/kernal"),
    "l2": lambda: adamw(RATE, l2=DECAY, mask="*/kernal"),
    "trust ratio": lambda: lamb(RATE, trust_ratio_mask="*/kernal"),
    "only": lambda: compose(adamw(RATE, weight_decay=None), only(lookahead(), "*/kernal")),
    "only decay": lambda: only(decoupled_decay(DECAY, "*/kernal"), "dense/*"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_names_are_checked_by_init(case: str) -> None:
    """And by an update, whose parameters may be others."""
    make = MISTAKES[case]
    with pytest.raises(ValueError, match=r"\*/kernal|hed|Not matched"):
        make().init(sample_params())
    with pytest.raises(ValueError, match=r"\*/kernal|hed|Not matched"):
        jax.eval_shape(make().init, sample_params())


@pytest.mark.parametrize("with_params", [True, False])
def test_names_are_checked_by_update(with_params: bool) -> None:
    params = sample_params()
    rules = parameter_rules({"dense/*": Rule(learning_rate_factor=0.5), "scale": Rule()})
    tx = sgdw(RATE, momentum=None, rules=rules)
    renamed = {"layer": params["dense"], "scale": params["scale"]}
    with pytest.raises(ValueError, match=r"match nothing: \['dense/\*'\]"):
        tx.update(renamed, tx.init(params), renamed if with_params else None)


def warmed(count: Any) -> Any:
    """A schedule of a multiplier: 0.25, 0.5, 0.75, ..."""
    return 0.25 * (jnp.float32(count) + 1)


def rising(count: Any) -> Any:
    """A schedule of a multiplier: 1, 2, 3, ..."""
    return jnp.float32(count) + 1


@pytest.mark.parametrize("name", [None, "slow"])
@pytest.mark.parametrize("form", FORMS)
def test_multipliers_on_a_schedule(form: str, name: str | None) -> None:
    """By the equations, for a group with and without a name."""
    rule = Rule(learning_rate_factor=warmed, weight_decay_factor=rising, name=name)
    rules = parameter_rules({"dense/kernel": rule}, default=Rule())
    params, gradients = sample_params(), sample_gradients(STEPS)
    tx = sgdw(RATE, momentum=None, weight_decay=DECAY, l2=0.2, decay=form, rules=rules)
    got, _ = run(tx, params, gradients)
    p = np.asarray(params["dense"]["kernel"])
    for t, g in enumerate(np.asarray(gradients["dense"]["kernel"])):
        lr, wd = 0.25 * (t + 1) * RATE, (1.0 + t) * DECAY
        step = lr * (g + (1.0 + t) * 0.2 * p)
        p = {
            "learning_rate": p - step - lr * wd * p,
            "corrected": p - step - lr * wd * p,
            "schedule": p - step - wd * p,
            "fixed": p - step - wd * p,
            "proximal": (p - step) / (1 + lr * wd),
        }[form]
    np.testing.assert_allclose(got["dense"]["kernel"], p, rtol=1e-5, atol=1e-7)


def test_rules_without_effect_cost_nothing() -> None:
    """Constant rules without a name are numbers in the program; those of 1 are not in it."""
    params, gradient = sample_params(), at(sample_gradients(), 0)

    def program(rules: Any) -> str:
        tx = adamw(RATE, weight_decay=DECAY, l2=0.1, decay="proximal", rules=rules)
        step = jax.jit(tx.update).lower(gradient, tx.init(params), params)
        return step.compiler_ir("hlo").as_hlo_text()

    plain = adamw(RATE, weight_decay=DECAY)
    for rules in (
        RATES * KINDS,
        parameter_rules(
            {"scale": Rule(learning_rate_factor=0.5, weight_decay_factor=warmed)}, default=Rule()
        ),
    ):
        state = adamw(RATE, weight_decay=DECAY, rules=rules).init(params)
        assert jax.tree.structure(state) == jax.tree.structure(plain.init(params))
    assert program(parameter_rules({}, default=Rule()) * parameter_rules({"*": Rule()})) == (
        program(None)
    )
    assert program(RATES * KINDS) == program(BY_HAND)


GROUP = {"slow.learning_rate_factor": 0.5, "slow.weight_decay_factor": 3.0}


@pytest.mark.sample(4)
@readers
def test_a_live_group_is_pinned_and_cleared(reader: str) -> None:
    """Pinned factors equal those in the code, and cost no second trace."""
    ones = parameter_rules({"dense/*": Rule(name="slow")}, default=Rule())
    code = parameter_rules(
        {"dense/*": Rule(learning_rate_factor=0.5, weight_decay_factor=3.0, name="slow")},
        default=Rule(),
    )
    fixed = parameter_rules(
        {"dense/*": Rule(learning_rate_factor=0.5, weight_decay_factor=3.0)}, default=Rule()
    )
    expected = trained(reader, fixed)
    assert_close(trained(reader, code), expected)
    assert_close(trained(reader, ones, lambda state: set_hyperparams(state, GROUP)), expected)
    seven = dict.fromkeys(GROUP, 7.0)
    cleared = trained(reader, code, lambda s: clear_hyperparams(set_hyperparams(s, seven), *GROUP))
    assert_close(cleared, expected)
    assert not np.allclose(trained(reader, ones)["dense"]["kernel"], expected["dense"]["kernel"])


def test_the_names_of_live_groups() -> None:
    params = sample_params()
    rules = parameter_rules(
        {
            "dense/*": Rule(learning_rate_factor=2.0, name="slow"),
            "scale": Rule(freeze=True, name="still"),
        }
    )
    state = adamw(RATE, weight_decay=None, rules=rules).init(params)
    assert {name for name in hyperparams(state) if "." in name} == {"slow.learning_rate_factor"}
    state = adamw(RATE, l2=0.1, decay="proximal", rules=rules).init(params)
    values = hyperparams(state)
    assert {name for name in values if "." in name} == {*GROUP}
    assert values["slow.learning_rate_factor"] == 2.0
    assert values["slow.weight_decay_factor"] == 1.0
    with pytest.raises(ValueError, match=r"slow.learning_rate_factor must be a number >= 0"):
        set_hyperparams(state, {"slow.learning_rate_factor": -1.0})
    for unknown in ("slow.weight_decay", "slow.learning_rate"):
        with pytest.raises(ValueError, match=rf"did you mean '{unknown}_factor'"):
            set_hyperparams(state, {unknown: 1.0})


def test_a_live_group_survives_a_checkpoint_and_edits(tmp_path: pathlib.Path) -> None:
    params = sample_params()
    group = parameter_rules(
        {"dense/*": Rule(learning_rate_factor=0.5, weight_decay_factor=3.0, name="slow")},
        default=Rule(),
    )
    tx = adamw(RATE, rules=group)
    state = set_hyperparams(tx.init(params), {"slow.learning_rate_factor": 0.125})
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        back = checkpointer.restore(tmp_path / "state", tx.init(params))
    assert_equal(back, state)
    wrapped, _ = migrate_state(back, compose(tx, lookahead()), params)
    assert hyperparams(wrapped)["slow.learning_rate_factor"] == 0.125
    assert bool(wrapped.hyperparams.is_pinned("slow.learning_rate_factor"))
    plain, report = migrate_state(back, adamw(RATE), params)
    assert set(report.dropped) == {f"hyperparams/{name}" for name in GROUP}
    named, report = migrate_state(plain, tx, params)
    assert set(report.started) == {f"hyperparams/{name}" for name in GROUP}
    assert hyperparams(named)["slow.learning_rate_factor"] == 0.5


def test_groups_that_cannot_be_told_apart_are_refused() -> None:
    one, other = Rule(name="head"), Rule(learning_rate_factor=0.5, name="head")
    with pytest.raises(ValueError, match="name 'head' stands for two rules"):
        parameter_rules({"a": one, "b": other})
    table = parameter_rules({"a": one})
    for twin in (table, parameter_rules({"a": one})):
        with pytest.raises(ValueError, match="name 'head' is in two tables"):
            _ = table * twin
    parameter_rules({"a": one, "b": one})
    for name in ("my head", "a/b", "", 3):
        with pytest.raises(ValueError, match="name must be an identifier"):
            Rule(name=name)  # type: ignore[arg-type]


def test_summary_says_what_each_leaf_gets() -> None:
    layer = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    params = {name: layer for name in "abc"}
    rates = parameter_rules(
        {
            "b/*": Rule(freeze=True),
            "c/kern*": Rule(learning_rate_factor=2.0, name="head"),
            "c/bi*": Rule(learning_rate_factor=warmed),
        },
        default=Rule(),
    )
    text = summary(adamw(RATE, weight_decay=DECAY, rules=rates * KINDS), params)
    lines = text.split("\n\n")[1].splitlines()
    table = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert table[0] == ["leaves", "parameters", "weight_decay", "rule", "learning rate", "frozen"]
    assert table[2:] == [
        ["a/bias", "2", "no", "*/bias", "x 1", "no"],
        ["a/kernel", "4", "yes, x 1.5", "default", "x 1", "no"],
        ["b/bias", "2", "b/* x */bias", "yes"],
        ["b/kernel", "4", "b/*", "yes"],
        ["c/bias", "2", "no", "c/bi* x */bias", "x schedule", "no"],
        [
            "c/kernel",
            "4",
            "yes, x 1.5 x 1 (head.weight_decay_factor)",
            "c/kern*",
            "x 2 (head.learning_rate_factor)",
            "no",
        ],
    ]


def test_summary_counts_leaves_that_get_the_same() -> None:
    params = sample_params()
    lines = summary(adamw(RATE, mask="*/kernel"), params).splitlines()
    assert lines[-2].split() == ["dense/bias", "and", "1", "more", "4", "no"]
    assert "leaves" not in summary(sgdw(RATE, weight_decay=None), params)
    chosen = summary(compose(adamw(RATE), only(lookahead(), "scale")), params).splitlines()
    assert chosen[-1].split() == ["scale", "1", "yes", "yes"]
