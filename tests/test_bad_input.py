"""The bad-input table: every wrong argument is an error that names it, its value and the remedy."""

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
    adamax,
    adamw,
    amsgrad,
    clear_hyperparams,
    compose,
    create,
    decoupled_decay,
    ema,
    estimate_moments,
    hyperparams,
    info,
    l2_decay,
    lookahead,
    normalized_decay,
    only,
    parameter_rules,
    precondition,
    radam,
    set_hyperparams,
    sgdw,
    theory_decay,
)
from tests.catalogue import (
    PLAIN,
    REFUSED,
    Entry,
    at,
    label,
    numeric_arguments,
    sample_gradients,
    sample_params,
)

table = pytest.mark.parametrize("entry", PLAIN, ids=label)
ENTRIES = [entry for entry in PLAIN if not entry.name.startswith("lookahead_")]
NUMBERS = [(entry, name) for entry in ENTRIES for name in numeric_arguments(entry)]
numbers = pytest.mark.parametrize(
    ("entry", "name"), NUMBERS, ids=[f"{entry.label}-{name}" for entry, name in NUMBERS]
)

BELOW_ONE = ("b0", "b1", "b2", "b3")
"""Decay rates: 1 would stop the average."""
AT_MOST_ONE = ("momentum", "dampening")


def make(entry: Entry, **options: Any) -> Any:
    """The optimizer, whether or not the learning rate is among the options."""
    return entry.factory(**{"learning_rate": 0.1, **entry.options, **options})


@numbers
def test_numbers_out_of_range(entry: Entry, name: str) -> None:
    """Negative, NaN, and too large numbers; as Python, NumPy and JAX scalars."""
    bad = [-0.5, float("nan"), np.float32(-0.5), np.float64("nan"), jnp.float32(-0.5)]
    if name in BELOW_ONE:
        bad += [1.0, 1.5, 1, jnp.float32(1.0)]
    if name in AT_MOST_ONE:
        bad += [1.5, np.float32(1.5)]
    for value in bad:
        shown = repr(float(value)).replace(".", r"\.")
        with pytest.raises(ValueError, match=rf"\b{name} must be a number .* got {shown}"):
            make(entry, **{name: value})


@numbers
def test_numbers_of_the_wrong_type(entry: Entry, name: str) -> None:
    """Words, lists, bools and complex numbers are no numbers."""
    for value in ("0.1", [0.1], True, np.bool_(True), 1j, jnp.array(True), jnp.complex64(0.1)):
        with pytest.raises(TypeError, match=rf"\b{name} must be a number"):
            make(entry, **{name: value})
    for array in (np.ones(2, np.float32), jnp.ones((1,))):
        with pytest.raises(ValueError, match=rf"\b{name} must be a scalar.*jax\.vmap"):
            make(entry, **{name: array})


@numbers
def test_numbers_that_are_fine(entry: Entry, name: str) -> None:
    """The limits of the range, arrays and schedules: all accepted, so the checks are not too strict."""
    good = [0.0, 0, np.float32(0.5), jnp.float32(0.5), 0.5, lambda count: 0.5]
    for value in good:
        assert isinstance(make(entry, **{name: value}), optax.GradientTransformation)


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_unknown_keywords_get_a_hint(entry: Entry) -> None:
    """Names of other libraries and typing errors."""
    name = entry.name
    for wrong, right in {
        "lr": "learning_rate",
        "betas": "b1",
        "wd": "weight_decay",
        "weight_decay_mask": "mask",
        "weigth_decay": "weight_decay",
        "state_dtypes": "state_dtype",
    }.items():
        if right in entry.keywords:
            with pytest.raises(
                TypeError, match=rf"{name}\(\) has no argument '{wrong}'; did you mean '{right}'"
            ):
                entry.factory(0.1, **{wrong: 0.1})
    with pytest.raises(TypeError, match=rf"{name}\(\) has no argument 'qqq'; it takes \["):
        entry.factory(0.1, qqq=1)
    with pytest.raises(TypeError, match="learning_rate"):
        entry.factory()


@pytest.mark.parametrize("entry", REFUSED, ids=label)
def test_options_that_do_not_fit(entry: Entry) -> None:
    """An option that an optimizer has no use for is refused by name, not ignored."""
    (argument,) = entry.options
    with pytest.raises(ValueError, match=argument):
        entry.make()


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_words_that_are_no_choice(entry: Entry) -> None:
    """A choice between words names the choices."""
    for argument, parameter in entry.keywords.items():
        if not isinstance(parameter.default, str) or (argument, entry.name) == (
            "bias_correction",
            "sgdw",
        ):
            continue
        name = {"bias_correction": "convention"}.get(argument, argument)
        with pytest.raises(ValueError, match=rf"{name} must be one of .*got 'nonsense'"):
            make(entry, **{argument: "nonsense"})


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_a_transformation_is_no_learning_rate(entry: Entry) -> None:
    """As happens when a chain is written inside out."""
    with pytest.raises(TypeError, match=r"learning_rate must be a number.*got the transformation"):
        entry.factory(optax.sgd(0.1))


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
    tx = l2_decay(0.1, mask)
    state = tx.init(params)
    with pytest.raises(error, match=message):
        tx.update(gradient, state, params)
    with pytest.raises(error, match=message.replace("mask", "where", 1)):
        only(adamw_jax.amsgrad_max(), mask).init(params)


@table
def test_missing_params(entry: Entry) -> None:
    """What needs the parameters says so; what does not works without them."""
    tx, params, gradient = entry.make(), sample_params(), at(sample_gradients(), 0)
    state = tx.init(params)
    needs = "w" in entry.name.removeprefix("sgd") and entry.name != "sgdw"
    if needs:
        with pytest.raises(
            ValueError, match=r"needs the parameters, got params=None: call tx.update\("
        ):
            tx.update(gradient, state)
    else:
        updates, _ = jax.eval_shape(tx.update, gradient, state)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


@table
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
    with pytest.raises(TypeError, match=r"not the ComposeState that init of this recipe gives"):
        tx.update(gradient, optax.adam(0.1).init(params), params)
    untyped = tx.init(params)._asdict()
    with pytest.raises(TypeError, match=r"the state is a dict.*restore into tx.init\(params\)"):
        tx.update(gradient, untyped, params)
    other = compose(entry.make(), lookahead()) if "lookahead" not in entry.name else adam(0.1)
    with pytest.raises(
        ValueError, match=r"belongs to another recipe.*migrate_state\(saved, tx, params\)"
    ):
        tx.update(gradient, other.init(params), params)


RULES = {
    "unmatched": ({"dense/*": Rule()}, r"Unmatched parameters: \['scale'\]"),
    "doubly matched": (
        {"*": Rule(), "scale": Rule()},
        r"matched more than once: \{'scale': \['\*', 'scale'\]\}",
    ),
    "idle": ({"*": Rule(), "head*": Rule()}, r"patterns without a parameter: \['head\*'\]"),
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
    with pytest.raises(TypeError, match=r"rules map a pattern to a Rule, got '\*': 0.1"):
        parameter_rules({"*": 0.1})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"rules must .*parameter_rules"):
        adam(0.1, rules={"*": Rule()})
    for name in ("learning_rate", "weight_decay"):
        with pytest.raises(ValueError, match=rf"{name} must be a number >= 0, got -1"):
            Rule(**{name: -1})
        with pytest.raises(ValueError, match=rf"{name} must be a number >= 0, got nan"):
            Rule(**{name: float("nan")})


@pytest.mark.parametrize("period", [0, -1, 2.5, True, float("nan"), float("inf"), "5", None])
def test_lookahead_period(period: Any) -> None:
    """The period is a whole number of steps."""
    with pytest.raises((ValueError, TypeError), match=r"sync_period must be a whole number >= 1"):
        lookahead(sync_period=period)
    with pytest.raises((ValueError, TypeError), match=r"sync_period must be a whole number >= 1"):
        lookahead(adam(0.1), period)


def test_lookahead_arguments() -> None:
    """Step size, inner state, inner."""
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"slow_step_size must be a number in \[0, 1\]"):
            lookahead(slow_step_size=value)
    with pytest.raises(ValueError, match=r"inner_state must be one of .*got 'forget'"):
        lookahead(adam(0.1), inner_state="forget")
    with pytest.raises(ValueError, match=r"inner_state='reset' acts on .*give it as inner="):
        lookahead(inner_state="reset")
    with pytest.raises(TypeError, match=r"inner must be an optax transformation, got 0.1"):
        lookahead(0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"inner must be an optax transformation"):
        lookahead(adam)  # type: ignore[arg-type]
    for wrong in (optax.scale(-1.0), optax.scale_by_adam()):
        with pytest.raises(ValueError, match=r"pullback.*one momentum"):
            lookahead(optax.chain(wrong, wrong), inner_state="pullback").init(sample_params())
    with pytest.raises(ValueError, match=r"lookahead needs the parameters, got params=None"):
        tx = lookahead(adam(0.1))
        tx.update(at(sample_gradients(), 0), tx.init(sample_params()))


def test_sgdw_arguments() -> None:
    """Momentum that is not there cannot be damped."""
    for options in ({"nesterov": True}, {"dampening": 0.1}):
        with pytest.raises(ValueError, match="momentum=None leaves nothing"):
            sgdw(0.1, momentum=None, **options)


@pytest.mark.parametrize("option", ["amsgrad", "rectify"])
def test_switches_that_contradict_the_name(option: str) -> None:
    """What a name promises cannot be switched off, and not silently."""
    factory, direction = {
        "amsgrad": (amsgrad, adamw_jax.scale_by_amsgrad),
        "rectify": (radam, adamw_jax.scale_by_radam),
    }[option]
    with pytest.raises(ValueError, match=rf"{option}=False makes it Adam"):
        direction(**{option: False})
    with pytest.raises(ValueError, match=rf"{option}=False makes it Adam"):
        factory(0.1, **{option: False})


def test_decay_arguments() -> None:
    """Forms, and what a form needs."""
    schedule = optax.linear_schedule(0.1, 0.0, 5)
    with pytest.raises(ValueError, match=r"needs base_learning_rate, the peak"):
        adamw(schedule, weight_decay=0.1, decay="schedule")
    with pytest.raises(ValueError, match=r"base_learning_rate must be a number > 0"):
        adamw(schedule, weight_decay=0.1, decay="schedule", base_learning_rate=0.0)
    with pytest.raises(TypeError, match=r"base_learning_rate must be a number"):
        adamw(schedule, weight_decay=0.1, decay="schedule", base_learning_rate=schedule)
    with pytest.raises(ValueError, match=r"form='proximal' needs learning_rate"):
        decoupled_decay(0.1, form="proximal")
    with pytest.raises(ValueError, match=r"form must be one of .*got 'l2'"):
        decoupled_decay(0.1, form="l2")
    for norm, updates in ((-1.0, 10), (0.1, 0)):
        with pytest.raises(ValueError, match="norm must be >= 0 and updates > 0"):
            normalized_decay(norm, updates)


def test_theory_decay_arguments() -> None:
    """Ranges of the proofs."""
    for b1 in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"b1 must be a number in \[0, 1\)"):
            theory_decay(b1, 0.5)
    for decay in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"decay must be a number in \(0, 1\)"):
            theory_decay(0.9, decay)


def test_names_of_optimizers() -> None:
    """Unknown names get a hint, with and without the prefix."""
    with pytest.raises(ValueError, match=r"unknown optimizer 'adamaxx'.*did you mean 'adamax'"):
        info("adamaxx")
    with pytest.raises(ValueError, match=r"unknown optimizer 'nonsense'"):
        create("lookahead_nonsense", 0.1)
    with pytest.raises(TypeError, match=r"adam\(\) has no argument 'sync_period'"):
        create("adam", 0.1, sync_period=5)


def test_names_of_hyperparameters() -> None:
    """Unknown names get a hint; states without a recipe say so."""
    state = adamw(0.1).init(sample_params())
    with pytest.raises(
        ValueError, match=r"unknown hyperparameter 'learning_rat'.*did you mean 'learning_rate'"
    ):
        set_hyperparams(state, learning_rat=0.1)
    with pytest.raises(ValueError, match=r"unknown hyperparameter 'l2', the state has \['b1'"):
        clear_hyperparams(state, "l2")
    with pytest.raises(ValueError, match=r"no live hyperparameters in this state"):
        hyperparams(optax.adam(0.1).init(sample_params()))


@pytest.mark.parametrize("value", ["0.1", None, [0.1], 1j, True])
def test_pinning_what_is_no_number(value: Any) -> None:
    """A pinned value is a number or a scalar array."""
    state = adamw(0.1).init(sample_params())
    with pytest.raises((TypeError, ValueError), match="learning_rate"):
        set_hyperparams(state, learning_rate=value)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, "flaot32", 3])
@pytest.mark.parametrize("argument", ["mu_dtype", "state_dtype"])
def test_storage_dtypes(argument: str, dtype: Any) -> None:
    """Accumulators are floating-point."""
    with pytest.raises((TypeError, ValueError), match=rf"{argument}"):
        adam(0.1, **{argument: dtype}).init(sample_params())


def test_parts_and_stages() -> None:
    """A stage where a part belongs, a function where its result belongs, a power out of range."""
    with pytest.raises(TypeError, match=r"first must be a part such as ema\(0.9\)"):
        estimate_moments(precondition())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"second must be a part"):
        estimate_moments(ema(0.9), 0.999)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"did you forget to call"):
        compose(adamw)
    for power in (0.0, 0.75, -0.5, float("nan")):
        with pytest.raises(ValueError, match=r"power must lie in \(0, 0.5\]"):
            precondition(power=power)
    with pytest.raises(ValueError, match=r"have a hyperparameter 'b1' with different values"):
        estimate_moments(ema(0.9), ema(0.8))
    with pytest.raises(TypeError, match=r"adamax|rectify|threshold|argument"):
        adamax(0.1, threshold=5.0)
