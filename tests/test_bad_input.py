"""The bad-input table: every wrong argument is an error that names it, its value and the remedy."""

from __future__ import annotations

import inspect
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax
from adamw_jax import (
    Rule,
    adafactor,
    adam,
    adamax,
    adamw,
    clear_hyperparams,
    compose,
    create,
    decoupled_decay,
    ema,
    estimate_moments,
    hyperparams,
    info,
    lookahead,
    normalized_decay,
    one_cycle,
    precondition,
    set_hyperparams,
    sgdw,
    theory_decay,
    warm_restarts,
)
from adamw_jax.direction._decay import OF_PEAK
from adamw_jax.optimizers._common import COMMON
from tests.catalogue import (
    PLAIN,
    REFUSED,
    VARIANTS,
    Entry,
    assert_close,
    assert_equal,
    assert_finite,
    at,
    label,
    numeric_arguments,
    sample_gradients,
    sample_params,
    whole_numbers,
)

table = pytest.mark.parametrize("entry", PLAIN, ids=label)
ENTRIES = [entry for entry in PLAIN if not entry.name.startswith("lookahead_")]
COUNTING = [e for e in VARIANTS if {*e.options} & {*whole_numbers(e)} and "kind" not in e.options]
"""Variants with a number of steps, which may put a schedule in the place of a number."""
NUMBERS = [(e, name) for e in [*ENTRIES, *COUNTING] for name in numeric_arguments(e)]
numbers = pytest.mark.parametrize(
    ("entry", "name"), NUMBERS, ids=[f"{entry.label}-{name}" for entry, name in NUMBERS]
)

BELOW_ONE = ("b0", "b1", "b2", "b3")
"""Decay rates: 1 would stop the average."""
AT_MOST_ONE = ("momentum", "dampening", "interpolation")
AT_MOST_HALF = ("partial",)
ABOVE_ZERO = (
    "max_step",
    "max_grad_norm",
    "max_ratio",
    "max_norm",
    "max_scale",
    "trust_coefficient",
    "max_weight_norm",
    "decay_rate",
    "interpolation",
)
AT_LEAST_ONE = ("clipping_threshold",)
ANY = ("b0", "target")
BOUNDS = (
    "clipping_threshold",
    "limit",
    "max_grad_norm",
    "max_norm",
    "max_ratio",
    "max_scale",
    "max_step",
    "max_weight_norm",
)
"""Infinity bounds nothing, and is allowed."""


def make(entry: Entry, **options: Any) -> Any:
    """The optimizer, whether or not the learning rate is among the options."""
    companions = {
        "dampening": {"momentum": 0.9},
        "average_decay": {"kind": "ema"},
        "average_weight": {"kind": "weighted"},
    }
    needed = {k: v for name in options for k, v in companions.get(name, {}).items()}
    known = {"learning_rate": 0.1, **entry.example, **entry.options}
    return entry.factory(**{**known, **needed, **options})


@numbers
def test_numbers_out_of_range(entry: Entry, name: str) -> None:
    """Negative, NaN, infinite, and too large numbers; as Python, NumPy and JAX scalars."""
    bad = [-0.5, float("nan"), np.float32(-0.5), np.float64("nan"), jnp.float32(-0.5)]
    if name in BELOW_ONE:
        bad += [1.0, 1.5, 1, jnp.float32(1.0)]
    if name in AT_MOST_ONE:
        bad += [1.5, np.float32(1.5)]
    if name in AT_MOST_HALF:
        bad += [0.75]
    if name in ABOVE_ZERO:
        bad += [0.0]
    if name in AT_LEAST_ONE:
        bad += [0.0, 0.75]
    if name in ANY:
        bad = [float("nan"), np.float32("nan")]
    bad += [] if name in BOUNDS else [float("inf"), np.float32("inf"), jnp.float32("inf"), 1e39]
    for value in bad:
        shown = re.escape(repr(float(value)))
        with pytest.raises(
            ValueError, match=rf"\b{name} must be a (finite )?number .* got {shown}"
        ):
            make(entry, **{name: value})


def test_a_negative_learning_rate_has_a_remedy() -> None:
    """A number is refused, here and there; what a schedule gives is not known."""
    with pytest.raises(ValueError, match=r"got -0\.1\. To climb, negate the loss or the gradients"):
        adamw(-0.1)
    state = adamw(0.1).init(jnp.ones(2))
    with pytest.raises(ValueError, match=r"got -0\.1\. To climb, negate the loss"):
        set_hyperparams(state, learning_rate=-0.1)
    with pytest.raises(ValueError, match=r"learning_rate .* got inf, which is not finite"):
        set_hyperparams(state, learning_rate=float("inf"))
    climbing = adamw(lambda count: -0.1, weight_decay=0.0)
    assert float(climbing.update(jnp.ones(2), state, jnp.ones(2))[0][0]) > 0


@pytest.mark.parametrize("make", [adamw, adafactor], ids=["adamw", "adafactor"])
def test_decay_by_the_schedule_needs_a_base_under_injection(make: Any) -> None:
    """An array may be the value of one step: then lr_t / lr_0 were 1 for ever."""
    schedule, one = optax.linear_schedule(0.1, 0.0, 10), jnp.ones(1)
    static = ("decay", *(whole_numbers(Entry(make.__name__, make.__name__, {}))))
    inject = optax.inject_hyperparams(make, static_args=static)
    options = {"weight_decay": 0.01, "decay": "schedule"}
    with pytest.raises(ValueError, match=r"the array .*as base_learning_rate"):
        inject(learning_rate=schedule, **options).init(one)
    with pytest.raises(ValueError, match=r"the array .*as base_learning_rate"):
        make(jnp.float32(0.1), **options)
    tx = inject(learning_rate=schedule, base_learning_rate=0.1, **options)
    plain = make(schedule, base_learning_rate=0.1, **options)
    state, own, zero = tx.init(one), plain.init(one), jnp.zeros(1)
    for _ in range(4):
        update, state = tx.update(zero, state, one)
        expected, own = plain.update(zero, own, one)
        assert_close(update, expected)


@numbers
def test_numbers_of_the_wrong_type(entry: Entry, name: str) -> None:
    """Words, lists, bools and complex numbers are no numbers."""
    for value in ("0.1", [0.1], True, np.bool_(True), 1j, jnp.array(True), jnp.complex64(0.1)):
        with pytest.raises(TypeError, match=rf"\b{name} must be a (finite )?number"):
            make(entry, **{name: value})
    for array in (np.ones(2, np.float32), jnp.ones((1,))):
        with pytest.raises(ValueError, match=rf"\b{name} must be a scalar.*jax\.vmap"):
            make(entry, **{name: array})


@numbers
def test_numbers_that_are_fine(entry: Entry, name: str) -> None:
    """The limits of the range, arrays and schedules are accepted: the checks are not too strict."""
    good = [np.float32(0.5), jnp.float32(0.5), 0.5, lambda count: 0.5]
    good += [] if name in ABOVE_ZERO or (entry.name, name) == ("lion", "b2") else [0.0, 0]
    if name in AT_LEAST_ONE:
        good = [1.0, 1, np.float32(1.5), lambda count: 2.0]
    for value in good:
        assert isinstance(make(entry, **{name: value}), optax.GradientTransformation)


BOUNDED = [(entry, name) for entry, name in NUMBERS if name in BOUNDS]


@pytest.mark.parametrize(
    ("entry", "name"), BOUNDED, ids=[f"{entry.label}-{name}" for entry, name in BOUNDED]
)
def test_an_infinite_bound_bounds_nothing(entry: Entry, name: str) -> None:
    """In the code and pinned, it steps as with a bound that nothing reaches."""
    params, gradients = sample_params(), jax.tree.map(lambda x: x[0], sample_gradients())

    def updates(value: float, **pinned: float) -> Any:
        tx = make(entry, **{name: value})
        state = tx.init(params)
        return tx.update(gradients, set_hyperparams(state, **pinned), params)[0]

    expected = updates(1e30)
    assert_finite(expected)
    assert_equal(updates(jnp.inf), expected)
    assert_equal(updates(1.0, **{name: jnp.inf}), expected)


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_unknown_keywords_get_a_hint(entry: Entry) -> None:
    """Names of other libraries and typing errors."""
    name = entry.name
    for wrong, right in {
        "lr": "learning_rate",
        "betas": "b1",
        "beta_1": "b1",
        "beta_2": "b2",
        "wd": "weight_decay",
        "weight_decay_mask": "mask",
        "momentum": "b1",
        "dtype_momentum": "mu_dtype",
        "weigth_decay": "weight_decay",
        "state_dtypes": "state_dtype",
    }.items():
        if right in entry.keywords and wrong not in entry.keywords:
            hint = rf"did you mean '{right}'"
            if wrong == "betas" and "b2" in entry.keywords:
                hint = "give b1= and b2="
            with pytest.raises(TypeError, match=rf"{name}\(\) has no argument '{wrong}'; {hint}"):
                entry.factory(0.1, **{wrong: 0.1})
    with pytest.raises(TypeError, match=rf"{name}\(\) has no argument 'qqq'; it takes \["):
        entry.factory(0.1, qqq=1)
    if entry.keywords["learning_rate"].default is inspect.Parameter.empty:
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
        if not isinstance(parameter.default, str):
            continue
        with pytest.raises(ValueError, match=rf"{argument} must be one of .*got 'nonsense'"):
            make(entry, **{argument: "nonsense"})


@pytest.mark.parametrize("entry", ENTRIES, ids=label)
def test_a_transformation_is_no_learning_rate(entry: Entry) -> None:
    """As happens when a chain is written inside out."""
    with pytest.raises(TypeError, match=r"learning_rate must be a number.*got the transformation"):
        entry.factory(optax.sgd(0.1), **entry.example)


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
    with pytest.raises(ValueError, match=r"inner_state='reset' changes .*give it as inner="):
        lookahead(inner_state="reset")
    with pytest.raises(
        TypeError, match=r"inner must be an optax transformation such as .*, got 0.1"
    ):
        lookahead(0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"inner must be an optax transformation"):
        lookahead(adam)  # type: ignore[arg-type]
    for wrong in (optax.scale(-1.0), optax.scale_by_adam()):
        with pytest.raises(ValueError, match=r"pullback.*one momentum"):
            lookahead(optax.chain(wrong, wrong), inner_state="pullback").init(sample_params())
    tx = lookahead(adam(0.1))
    state = tx.init(sample_params())
    with pytest.raises(ValueError, match=r"lookahead needs the parameters, got params=None"):
        tx.update(at(sample_gradients(), 0), state)


def test_sgdw_arguments() -> None:
    """Momentum that is not there cannot be damped."""
    for options in ({"nesterov": True}, {"dampening": 0.1}):
        with pytest.raises(ValueError, match="need a momentum: give momentum"):
            sgdw(0.1, momentum=None, **options)


@pytest.mark.parametrize("name", adamw_jax.list_optimizers())
def test_a_common_keyword_without_a_meaning_is_refused_with_the_reason(name: str) -> None:
    """Whatever its value; and of a direction, what acts behind it."""
    row = adamw_jax.info(name)
    for option in row.refuses:
        for make in (row.factory, row.direction or row.factory):
            with pytest.raises(
                TypeError, match=re.escape(f"() does not take {option}: {row.lacks}.")
            ):
                make(**{option: COMMON[option].default})
    if row.direction is not None and "l2" not in row.refuses:
        with pytest.raises(TypeError, match="does not take l2: it acts after the direction"):
            row.direction(l2=0.1)


def test_decay_arguments() -> None:
    """Forms, and what a form needs."""
    schedule = optax.linear_schedule(0.1, 0.0, 5)
    for form in OF_PEAK:
        with pytest.raises(ValueError, match=rf'"{form}" .*give the peak as base_learning_rate'):
            adamw(schedule, weight_decay=0.1, decay=form)
        with pytest.raises(ValueError, match=rf'"{form}" needs a learning-rate schedule'):
            adamw_jax.adafactor(weight_decay=0.1, decay=form)
    with pytest.raises(ValueError, match=r"base_learning_rate must be a number > 0"):
        adamw(schedule, weight_decay=0.1, decay="schedule", base_learning_rate=0.0)
    with pytest.raises(TypeError, match=r"base_learning_rate must be a number"):
        adamw(schedule, weight_decay=0.1, decay="schedule", base_learning_rate=schedule)
    for form in (*OF_PEAK, "proximal"):
        with pytest.raises(ValueError, match=rf"form='{form}' needs learning_rate"):
            decoupled_decay(0.1, form=form)
    with pytest.raises(ValueError, match="cautious must be True or False, got 'yes'"):
        decoupled_decay(0.1, cautious="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"form must be one of .*got 'l2'"):
        decoupled_decay(0.1, form="l2")
    with pytest.raises(ValueError, match="norm must be a number >= 0, got -1"):
        normalized_decay(-1.0, 10)
    with pytest.raises(ValueError, match="updates must be a number > 0, got 0"):
        normalized_decay(0.1, 0)


def test_rounding_out_of_range() -> None:
    """A decay rate that float32 rounds to 1 would stop the average at 0 / 0."""
    with pytest.raises(ValueError, match=r"b1 must be .* float32 rounds out of that range"):
        adam(0.1, b1=1 - 1e-9)


def test_value_beside_a_schedule() -> None:
    """What the user gave beside an object that brings its own is not silently lost."""
    cycle = one_cycle(1e-3, 100)
    with pytest.raises(
        ValueError, match=r"adamw\(\) got b1=0.5, but OneCycle has a schedule of mom"
    ):
        adamw(cycle, b1=0.5)
    restarts = warm_restarts(1e-3, 10, normalized_decay=0.05)
    with pytest.raises(
        ValueError, match=r"got weight_decay=0\.7, but WarmRestarts has a schedule of"
    ):
        adamw(restarts, weight_decay=0.7)


def test_pins_out_of_range() -> None:
    """A pinned value obeys the range of the argument."""
    state = adam(1e-3).init({"w": jnp.ones(2)})
    for name, value in (("b1", 1.5), ("learning_rate", float("nan")), ("eps", -1e-8)):
        with pytest.raises(ValueError, match=f"{name} must be a number"):
            set_hyperparams(state, **{name: value})


def test_switches() -> None:
    """An option that is on or off is nothing else."""
    with pytest.raises(ValueError, match="amsgrad must be True or False, got 'no'"):
        adam(1e-3, amsgrad="no")
    with pytest.raises(ValueError, match="freeze must be True or False, got 'no'"):
        Rule(freeze="no")  # type: ignore[arg-type]


def test_theory_decay_arguments() -> None:
    """Ranges of the proofs."""
    for b1 in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="b1 must be a number >= 0 and < 1"):
            theory_decay(b1, 0.5)
    for decay in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="decay must be a number > 0 and < 1"):
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
    with pytest.raises(ValueError, match=r"no hyperparameters in this state"):
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
        with pytest.raises(ValueError, match=r"power must be a number > 0 and <= 0.5"):
            precondition(power=power)
    with pytest.raises(ValueError, match=r"have a hyperparameter 'b1' with different values"):
        estimate_moments(ema(0.9), ema(0.8))
    with pytest.raises(TypeError, match=r"adamax|rectify|threshold|argument"):
        adamax(0.1, threshold=5.0)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("AdamW", "adamw"), ("sgd", "sgdw"), ("nadamw", "adamw"), ("RAdam", "radam")],
)
def test_a_name_of_another_library_gets_a_hint(wrong: str, right: str) -> None:
    """As an attribute of the package and as a name of the registry."""
    with pytest.raises(AttributeError, match=f"no attribute '{wrong}'; did you mean '{right}'"):
        getattr(adamw_jax, wrong)
    with pytest.raises(ValueError, match=f"'{wrong}'.*did you mean '{right}'"):
        adamw_jax.info(wrong)
    assert not hasattr(adamw_jax, "__qqq__")


@pytest.mark.parametrize(
    ("name", "written"), [("Muon", "optax.contrib.muon"), ("rmsprop", "optax.rmsprop")]
)
def test_an_optimizer_of_optax_gets_the_adapter(name: str, written: str) -> None:
    """As an attribute of the package and as a name for ``create``; ours gets no second hint."""
    hint = re.escape(f"From optax: as_optimizer({written}(...)).")
    with pytest.raises(AttributeError, match=hint):
        getattr(adamw_jax, name)
    with pytest.raises(ValueError, match=hint):
        adamw_jax.create(name, 0.1)
    with pytest.raises(AttributeError, match=r"did you mean 'adamw'\?$"):
        getattr(adamw_jax, "AdamW")  # noqa: B009


def test_a_mask_that_was_not_called_gets_a_hint() -> None:
    """``matrices_only`` is a mask; the other two make one."""
    for make in (adamw_jax.kernels_only, adamw_jax.except_named):
        with pytest.raises(TypeError, match=rf"call it, mask={make.__name__}\(\)"):
            adamw(0.1, mask=make).init(sample_params())


def test_a_choice_that_is_nearly_right_gets_a_hint() -> None:
    """The preset of PyTorch is called as its authors call it."""
    with pytest.raises(ValueError, match="got 'torch'; did you mean 'pytorch'"):
        adamw_jax.one_cycle(0.1, 50, "torch")
