"""Bad masks, missing parameters, changed trees, foreign states, rules that do not fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax
from adamw_jax import (
    Rule,
    adam,
    adamw,
    compose,
    l2_decay,
    only,
    parameter_rules,
)
from adamw_jax.update import average_updates
from tests.catalogue import (
    PLAIN,
    Entry,
    at,
    label,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

table = pytest.mark.parametrize("entry", PLAIN, ids=label)

MASKS = {
    "numbers": (
        {"dense": {"bias": 1, "kernel": 0}, "scale": 1},
        TypeError,
        r"Python bools, got 1 at dense/bias",
    ),
    "arrays": (
        jax.tree.map(jnp.ones_like, sample_params()),
        TypeError,
        r"mask must hold Python bools",
    ),
    "missing leaf": (
        {"dense": {"bias": True}, "scale": True},
        ValueError,
        r"mask does not fit the tree",
    ),
    "other tree": ([True, False], ValueError, r"mask does not fit the tree.*dense/bias"),
    "bare bool": (True, ValueError, r"bare bool True.*static_args='mask'"),
    "function to a bool": (lambda params: False, ValueError, r"bare bool False"),
    "function to an array": (lambda params: jnp.array(True), TypeError, r"must hold Python bools"),
    "function to numbers": (
        lambda params: jax.tree.map(lambda p: p.ndim, params),
        TypeError,
        r"Python bools",
    ),
    "pattern without a leaf": (
        "*/kernal",
        ValueError,
        r"mask has the pattern '\*/kernal'.*dense/kernel",
    ),
    "patterns, one idle": (("*/bias", "head*"), ValueError, r"pattern 'head\*'"),
    "a schedule": (
        optax.constant_schedule(0.1),
        TypeError,
        r"mask must hold Python bools, got 0.1",
    ),
}


@pytest.mark.parametrize("case", MASKS)
@pytest.mark.parametrize("form", ["learning_rate", "proximal"])
def test_masks(case: str, form: str) -> None:
    """Masks that are not boolean, do not fit, or are something else that was swallowed."""
    mask, error, message = MASKS[case]
    params = sample_params()

    def train() -> None:
        tx = adamw(0.1, weight_decay=0.1, mask=mask, decay=form)
        tx.update(at(sample_gradients(), 0), tx.init(params), params)

    with pytest.raises(error, match=message):
        train()


@pytest.mark.parametrize("case", ["numbers", "missing leaf", "pattern without a leaf"])
def test_masks_of_l2_and_only(case: str) -> None:
    """The other places that take a mask check it as well."""
    mask, error, message = MASKS[case]
    params, gradient = sample_params(), at(sample_gradients(), 0)
    with pytest.raises(error, match=message):
        l2_decay(0.1, mask).init(params)
    with pytest.raises(error, match=message):
        l2_decay(0.1, mask).update(gradient, l2_decay(0.1).init(params), params)
    with pytest.raises(error, match=message.replace("mask", "where", 1)):
        only(adamw_jax.amsgrad_max(), mask).init(params)


@table
def test_missing_params(entry: Entry) -> None:
    """What needs the parameters says so; what does not works without them."""
    tx, params, gradient = entry.make(), sample_params(), at(sample_gradients(), 0)
    state = tx.init(params)
    if any(spec.needs_params for spec in tx.specs):
        with pytest.raises(
            ValueError, match=r"needs the parameters, got params=None: call tx.update\("
        ):
            tx.update(gradient, state)
    else:
        updates, _ = jax.eval_shape(tx.update, gradient, state)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize(
    "entry",
    [e for e in PLAIN if e.state_values],
    ids=label,  # without a state nothing is known
)
def test_changed_trees(entry: Entry) -> None:
    """Gradients that lost, gained or renamed a leaf, or changed a shape."""
    tx, params = entry.make(weight_decay=None), sample_params()
    state = tx.init(params)
    gradient = at(sample_gradients(), 0)
    less = {"dense": gradient["dense"]}
    more = {**gradient, "head": gradient["scale"]}
    renamed = {"dense": gradient["dense"], "gain": gradient["scale"]}
    for wrong, message in (
        (less, r"missing leaves \['scale'\], surplus leaves \[\]"),
        (more, r"missing leaves \[\], surplus leaves \['head'\]"),
        (renamed, r"missing leaves \['scale'\], surplus leaves \['gain'\].*Call init again"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(wrong, state, wrong)


@pytest.mark.parametrize("shape", [(4,), (1,), (), (2, 3)])
@table
def test_changed_shapes(entry: Entry, shape: tuple[int, ...]) -> None:
    """A gradient of another shape names the leaf and both shapes, also where it would broadcast."""
    tx, params = entry.make(weight_decay=None), sample_params()
    state = tx.init(params)
    gradient = at(sample_gradients(), 0)
    wrong = {**gradient, "dense": {**gradient["dense"], "bias": jnp.ones(shape)}}
    with pytest.raises(ValueError, match=r"dense/bias") as caught:
        tx.update(wrong, state, params)
    assert str((3,)) in str(caught.value)
    assert str(shape) in str(caught.value)


@table
def test_integer_gradients(entry: Entry) -> None:
    """They would give updates of 0."""
    tx, params = entry.make(weight_decay=None), sample_params()
    state = tx.init(params)
    gradient = jax.tree.map(lambda g: jnp.ones(g.shape, jnp.int32), params)
    with pytest.raises(TypeError, match=r"int32"):
        tx.update(gradient, state, params)


@pytest.mark.parametrize("value", [None, "0.1", np.ones(3, np.float32)])
def test_schedules_that_give_no_number(value: Any) -> None:
    """What a schedule returns is checked where it is called, and the name is said."""
    params = sample_params()

    def train() -> None:
        tx = adamw(lambda count: value)
        tx.update(at(sample_gradients(), 0), tx.init(params), params)

    with pytest.raises((TypeError, ValueError), match=r"learning_rate"):
        train()


@table
def test_leaves_without_a_gradient(entry: Entry) -> None:
    """Integer parameters are refused at init, by name, with the remedy."""
    params = {**sample_params(), "steps": jnp.zeros(2, jnp.int32)}
    with pytest.raises(TypeError, match=r"parameter 'steps' has dtype int32.*optax.masked"):
        entry.make().init(params)


@table
def test_states_of_something_else(entry: Entry) -> None:
    """Another optimizer's state, an untyped one, or another recipe's."""
    tx, params, gradient = entry.make(), sample_params(), at(sample_gradients(), 0)
    with pytest.raises(TypeError, match=r"not the ComposeState that init of this recipe returns"):
        tx.update(gradient, optax.adam(0.1).init(params), params)
    untyped = tx.init(params)._asdict()
    with pytest.raises(TypeError, match=r"the state is a dict.*restore into tx.init\(params\)"):
        tx.update(gradient, untyped, params)
    other = compose(entry.make(), average_updates())
    with pytest.raises(
        ValueError, match=r"belongs to another recipe.*migrate_state\(saved, tx, params\)"
    ):
        tx.update(gradient, other.init(params), params)


RULES = {
    "unmatched": ({"dense/*": Rule()}, r"Not matched: \['scale'\]"),
    "doubly matched": (
        {"*": Rule(), "scale": Rule()},
        r"matched more than once: \{'scale': \['\*', 'scale'\]\}",
    ),
    "idle": ({"*": Rule(), "head*": Rule()}, r"patterns that match nothing: \['head\*'\]"),
}


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("freeze", [False, True])
def test_rules(case: str, freeze: bool) -> None:
    """Names that no rule, or more than one, matches; rules that match no name."""
    patterns, message = RULES[case]
    last = list(patterns)[-1]
    patterns = {**patterns, last: Rule(freeze=freeze)}
    params = sample_params()

    def train() -> None:
        tx = adamw(0.1, rules=parameter_rules(patterns))
        tx.update(at(sample_gradients(), 0), tx.init(params), params)

    with pytest.raises(ValueError, match=message):
        train()


def test_rules_of_the_wrong_type() -> None:
    """A number in place of a Rule, a multiplier below 0."""
    with pytest.raises(
        TypeError, match=r"rules must map patterns to Rule\(\.\.\.\), got '\*': 0.1"
    ):
        parameter_rules({"*": 0.1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"rules must .*parameter_rules"):
        adam(0.1, rules={"*": Rule()})
    values = ("learning_rate", "weight_decay")
    for name in (*values, *(f"{value}_factor" for value in values)):
        with pytest.raises(ValueError, match=rf"{name} must be a number >= 0, got -1"):
            Rule(**{name: -1})
        with pytest.raises(ValueError, match=rf"{name} must be a number >= 0, got nan"):
            Rule(**{name: float("nan")})
