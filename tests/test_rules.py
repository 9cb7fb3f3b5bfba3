"""Rules by parameter name, masks and freezing: what they do to the leaves they name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import (
    Rule,
    adamw,
    amsgrad,
    compose,
    decoupled_decay,
    ema,
    ema_of_squares,
    estimate_moments,
    except_named,
    kernels_only,
    lookahead,
    matrices_only,
    parameter_rules,
    precondition,
    scale_by_learning_rate,
    sgdw,
)
from adamw_jax.direction._decay import FORMS
from tests.catalogue import (
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    at,
    label,
    one_step,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

BY_ELEMENT = [entry for entry in PLAIN if entry.scope == "element"]
table = pytest.mark.parametrize("entry", BY_ELEMENT, ids=label)

RATE, DECAY = 0.05, 0.3
STEPS = 8  # radam takes its first step at the sixth
EVERY_LEAF = ("dense/bias", "dense/kernel", "scale")


def only_leaf(tree: Any, name: str) -> Any:
    """One leaf of the sample tree, by name."""
    return tree["scale"] if name == "scale" else tree["dense"][name.split("/")[1]]


def with_rule(name: str, rule: Rule) -> Any:
    """The table that gives ``rule`` to one leaf and leaves the others alone."""
    return parameter_rules({other: Rule() for other in EVERY_LEAF} | {name: rule})


def plain_sgd(**options: Any) -> Any:
    """Gradient descent without memory, of which every step is one line of arithmetic."""
    return sgdw(RATE, momentum=None, **options)


def descent(form: str, lr: float, wd: float, l2: float) -> Any:
    """The parameters after the sample gradients, one leaf, by the equations of ``decay``."""

    def after(p: np.ndarray, gradients: np.ndarray) -> np.ndarray:
        for g in gradients:
            step = lr * (g + l2 * p)
            p = {
                "learning_rate": p - step - lr * wd * p,
                "schedule": p - step - wd * p,  # a constant rate is its own base
                "corrected": p - step - lr * wd * p,
                "fixed": p - step - wd * p,
                "proximal": (p - step) / (1 + lr * wd),
            }[form]
        return p

    return after


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", EVERY_LEAF)
def test_multipliers_by_the_equations(form: str, name: str) -> None:
    """lr by 0.5 and decay by 3: the fixed and the schedule form know no learning rate."""
    rule = Rule(learning_rate_factor=0.5, weight_decay_factor=3.0)
    params, gradients = sample_params(), sample_gradients(STEPS)
    tx = plain_sgd(weight_decay=DECAY, l2=0.2, decay=form, rules=with_rule(name, rule))
    got, _ = run(tx, params, gradients)
    for leaf in EVERY_LEAF:
        lr, factor = (0.5 * RATE, 3.0) if leaf == name else (RATE, 1.0)
        after = descent(form, lr, factor * DECAY, factor * 0.2)
        expected = after(
            np.asarray(only_leaf(params, leaf)), np.asarray(only_leaf(gradients, leaf))
        )
        np.testing.assert_allclose(only_leaf(got, leaf), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.sample(5)
@table
def test_learning_rate_multiplies_the_step(entry: Entry) -> None:
    """A leaf with its own multiplier moves as under that learning rate, the others as before."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    plain = {"weight_decay": DECAY, "l2": 0.1}
    tx = entry.make(RATE, rules=with_rule("dense/kernel", Rule(learning_rate_factor=0.25)), **plain)
    got, _ = run(tx, params, gradients)
    slow, _ = run(entry.make(0.25 * RATE, **plain), params, gradients)
    full, _ = run(entry.make(RATE, **plain), params, gradients)
    assert_close(got["dense"]["kernel"], slow["dense"]["kernel"])
    assert_close((got["scale"], got["dense"]["bias"]), (full["scale"], full["dense"]["bias"]))
    assert not np.allclose(slow["dense"]["kernel"], full["dense"]["kernel"], atol=1e-3)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("entry", "form"),
    [(e, form) for e in BY_ELEMENT for form in FORMS if e.name == "adamw" or form == FORMS[0]],
    ids=lambda x: x if isinstance(x, str) else x.label,
)
def test_weight_decay_multiplies_the_coefficients(entry: Entry, form: str) -> None:
    """Of decoupled decay, in every form, and of L2, together."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    rules = with_rule("scale", Rule(weight_decay_factor=2.5))
    tx = entry.make(RATE, weight_decay=0.1, l2=0.2, decay=form, rules=rules)
    got, _ = run(tx, params, gradients)
    more, _ = run(entry.make(RATE, weight_decay=0.25, l2=0.5, decay=form), params, gradients)
    plain, _ = run(entry.make(RATE, weight_decay=0.1, l2=0.2, decay=form), params, gradients)
    assert_close(got["scale"], more["scale"])
    assert_close(got["dense"], plain["dense"])
    assert abs(float(more["scale"] - plain["scale"])) > 1e-3


@pytest.mark.parametrize("option", ["weight_decay", "l2"])
def test_a_decay_multiplier_of_zero_and_the_mask_switch_off(option: str) -> None:
    """Both say no decay, for L2 as for decoupled decay."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    rules = with_rule("dense/bias", Rule(weight_decay=0.0))
    number = {option: DECAY}
    got, _ = run(adamw(RATE, rules=rules, **{"weight_decay": None, **number}), params, gradients)
    masked = adamw(RATE, mask=except_named("bias"), **{"weight_decay": None, **number})
    without = adamw(RATE, weight_decay=None)
    everywhere = adamw(RATE, **{"weight_decay": None, **number})
    assert_close(got, run(masked, params, gradients)[0])
    bias = run(without, params, gradients)[0]["dense"]["bias"]
    assert_close(got["dense"]["bias"], bias)
    assert not np.allclose(bias, run(everywhere, params, gradients)[0]["dense"]["bias"], atol=1e-4)


def memory_of(state: Any, word: str) -> list[str]:
    """Paths of the arrays of a state that belong to the leaves whose name holds ``word``."""
    found = jax.tree_util.tree_leaves_with_path(state)
    return [jax.tree_util.keystr(path) for path, _ in found if word in jax.tree_util.keystr(path)]


@pytest.mark.sample(5)
@table
def test_frozen_leaves_have_no_state_and_do_not_move(entry: Entry) -> None:
    """The others move as without them."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    options = {"weight_decay": DECAY, "l2": 0.1}
    tx = entry.make(RATE, rules=with_rule("dense/kernel", Rule(freeze=True)), **options)
    got, state = run(tx, params, gradients)
    assert_equal(got["dense"]["kernel"], params["dense"]["kernel"])
    assert memory_of(tx.init(params), "kernel") == memory_of(state, "kernel") == []
    assert memory_of(state, "bias")
    plain, _ = run(entry.make(RATE, **options), params, gradients)
    assert_close((got["scale"], got["dense"]["bias"]), (plain["scale"], plain["dense"]["bias"]))


@table
def test_nan_in_the_gradient_of_a_frozen_leaf_goes_nowhere(entry: Entry) -> None:
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = entry.make(RATE, rules=with_rule("scale", Rule(freeze=True)))
    broken = {**gradient, "scale": jnp.asarray(jnp.nan)}
    got, _ = one_step(tx)(params, tx.init(params), broken)
    assert_equal(got, one_step(tx)(params, tx.init(params), gradient)[0])
    assert float(got["scale"]) == float(params["scale"])


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_may_name_frozen_leaves_only(form: str) -> None:
    """A pattern for what is frozen is not a typing error; the others then do not decay."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    options = {"weight_decay": DECAY, "l2": 0.2, "decay": form}
    rules = with_rule("dense/kernel", Rule(freeze=True))
    got, _ = run(adamw(RATE, mask="*/kernel", rules=rules, **options), params, gradients)
    without, _ = run(adamw(RATE, weight_decay=None), params, gradients)
    assert_equal(got["dense"]["kernel"], params["dense"]["kernel"])
    assert_close((got["scale"], got["dense"]["bias"]), (without["scale"], without["dense"]["bias"]))
    with pytest.raises(ValueError, match=r"pattern '\*/kernal'"):
        run(adamw(RATE, mask="*/kernal", rules=rules, **options), params, gradients)


@pytest.mark.parametrize("mask", ["tree", "function"])
def test_masks_of_the_whole_tree_go_with_freezing(mask: str) -> None:
    """A mask is written for the parameters, frozen ones included."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    masks = {
        "tree": {"dense": {"bias": False, "kernel": True}, "scale": False},
        "function": matrices_only,
    }
    rules = with_rule("dense/bias", Rule(freeze=True))
    got, _ = run(adamw(RATE, weight_decay=DECAY, mask=masks[mask], rules=rules), params, gradients)
    plain, _ = run(adamw(RATE, weight_decay=DECAY, mask="*/kernel"), params, gradients)
    assert_equal(got["dense"]["bias"], params["dense"]["bias"])
    assert_close((got["scale"], got["dense"]["kernel"]), (plain["scale"], plain["dense"]["kernel"]))


def decaying(mask: Any, params: Any) -> tuple[bool, ...]:
    """Which leaves a mask lets decay, seen from a step with gradients of 0."""
    tx = compose(
        estimate_moments(ema(0.9), ema_of_squares(0.99)),
        precondition(),
        decoupled_decay(DECAY, mask),
        scale_by_learning_rate(RATE),
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    return tuple(bool(jnp.any(only_leaf(updates, name) != 0)) for name in EVERY_LEAF)


MASKS = {
    "all": (None, (True, True, True)),
    "except bias": (except_named("bias"), (False, True, True)),
    "except two": (except_named("bias", "scale"), (False, True, False)),
    "except a part of a name": (except_named("ias", "dense", "dense/bias"), (True, True, True)),
    "matrices": (matrices_only, (False, True, False)),
    "kernels": (kernels_only(), (False, True, False)),
    "pattern": ("dense/*", (True, True, False)),
    "patterns": (("*/bias", "scale"), (True, False, True)),
    "prefix tree": ({"dense": False, "scale": True}, (False, False, True)),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(case: str) -> None:
    mask, expected = MASKS[case]
    params = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), sample_params())
    assert decaying(mask, params) == expected


FROZEN = {
    "whole": lambda tx: compose(tx, frozen="*/kernel"),
    "nested": lambda tx: compose(compose(tx, frozen="*/kernel"), lookahead(sync_period=100)),
    "named": lambda tx: compose(("inner", compose(tx, frozen="*/kernel"))),
    "tree": lambda tx: compose(
        tx, frozen={"dense": {"bias": False, "kernel": True}, "scale": False}
    ),
    "function": lambda tx: compose(tx, frozen=matrices_only),
}


@pytest.mark.parametrize("case", FROZEN)
def test_frozen_of_compose(case: str) -> None:
    """As a mask in all its forms, and carried along when the recipe is spliced into another."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    inner = optax.adam(RATE) if case == "named" else adamw(RATE, weight_decay=DECAY)
    tx = FROZEN[case](inner)
    with jax.numpy_dtype_promotion("standard"):  # for optax's adam
        got, state = run(tx, params, gradients)
        plain, _ = run(inner, params, gradients)
    assert_equal(got["dense"]["kernel"], params["dense"]["kernel"])
    assert memory_of(state, "kernel") == []
    assert memory_of(state, "bias")
    assert_close((got["scale"], got["dense"]["bias"]), (plain["scale"], plain["dense"]["bias"]))
    assert not np.allclose(plain["dense"]["kernel"], params["dense"]["kernel"])


def test_two_frozen_masks_are_refused() -> None:
    """Also where one of them comes in by a pair with a name."""
    frozen = compose(optax.sgd(RATE), frozen="scale")
    for inner in (frozen, ("inner", frozen)):
        with pytest.raises(ValueError, match=r"freeze parameters; give one mask"):
            compose(inner, frozen="*/kernel")


def test_a_frozen_pattern_without_a_leaf_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frozen has the pattern 'head\*'"):
        compose(adamw(RATE), frozen="head*").init(sample_params())


def test_rules_work_with_amsgrad_under_jit_and_lookahead() -> None:
    """A table at work in a longer recipe compiles once and equals the recipe leaf by leaf."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    rules = parameter_rules(
        {
            "*/bias": Rule(freeze=True),
            "*/kernel": Rule(learning_rate_factor=0.1),
            "scale": Rule(weight_decay=0.0),
        }
    )
    tail = lookahead(sync_period=2)
    tx = compose(amsgrad(RATE, weight_decay=DECAY, rules=rules), tail)
    step, state, got = jax.jit(one_step(tx)), tx.init(params), params
    for i in range(STEPS):
        got, state = step(got, state, at(gradients, i))
    assert step._cache_size() == 1
    slow, _ = run(
        compose(amsgrad(0.1 * RATE, weight_decay=DECAY), lookahead(sync_period=2)),
        params,
        gradients,
    )
    still, _ = run(compose(amsgrad(RATE), lookahead(sync_period=2)), params, gradients)
    assert_equal(got["dense"]["bias"], params["dense"]["bias"])
    assert_close(got["dense"]["kernel"], slow["dense"]["kernel"])
    assert_close(got["scale"], still["scale"])


@pytest.mark.parametrize("rest", [Rule(), Rule(learning_rate_factor=0.5), Rule(freeze=True)])
@pytest.mark.parametrize("named", [Rule(freeze=True), Rule(weight_decay=0.0)])
def test_a_default_is_the_rule_of_the_leaves_that_match_no_pattern(named: Rule, rest: Rule) -> None:
    short = parameter_rules({"*/bias": named}, default=rest)
    whole = parameter_rules({"*/bias": named, "*/kernel": rest, "scale": rest})
    params, gradients = sample_params(), sample_gradients(STEPS)
    for make in (adamw, sgdw):
        got, _ = run(make(RATE, weight_decay=DECAY, rules=short), params, gradients)
        expected, _ = run(make(RATE, weight_decay=DECAY, rules=whole), params, gradients)
        assert_equal(got, expected)
    with pytest.raises(TypeError, match="default must be a Rule"):
        parameter_rules({}, default=0.1)  # type: ignore[arg-type]
