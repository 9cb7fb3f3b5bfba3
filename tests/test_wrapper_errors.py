"""The cells of the wrapper table that must raise, and say what to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import adamw_jax
from adamw_jax import (
    Moments,
    adamw,
    amsgrad_max,
    compose,
    correct_bias,
    estimate_moments,
    hyperparams,
    lookahead,
    precondition,
    rectify_variance,
    scale_by_learning_rate,
    set_hyperparams,
)
from tests import catalogue
from tests.catalogue import (
    PLAIN,
    Entry,
    accumulators,
    assert_close,
    assert_finite,
    at,
    label,
    run,
    sample_gradients,
    sample_params,
    whole_numbers,
)

pytestmark = pytest.mark.quick

table = pytest.mark.parametrize("entry", PLAIN, ids=label)
UNWRAPPED = [entry for entry in PLAIN if not entry.name.startswith("lookahead_")]
IN_DENSE = {"dense": {"bias": True, "kernel": True}, "scale": False}


# The cells that must raise, and say what to do.


def dimension_mask(params: Any) -> Any:
    """The usual mask: matrices decay, the rest does not."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


@pytest.mark.parametrize("jitted", [False, True])
def test_mask_taken_for_a_schedule_raises(jitted: bool) -> None:
    """``inject_hyperparams`` takes a callable mask for a schedule: said, not swallowed."""
    tx = optax.inject_hyperparams(adamw)(0.1, weight_decay=0.1, mask=dimension_mask)
    params = sample_params()
    gradient = at(sample_gradients(), 0)
    init, update = (jax.jit(tx.init), jax.jit(tx.update)) if jitted else (tx.init, tx.update)

    def train() -> None:
        update(gradient, init(params), params)

    with pytest.raises((TypeError, ValueError), match="static_args"):
        train()


def test_mask_declared_static_works() -> None:
    """And the remedy that the message names works."""
    tx = optax.inject_hyperparams(adamw, static_args="mask")(
        0.05, weight_decay=0.1, mask=dimension_mask
    )
    expected = adamw(0.05, weight_decay=0.1, mask=dimension_mask)
    arguments = sample_params(), sample_gradients()
    assert_close(run(tx, *arguments)[0], run(expected, *arguments)[0])


WITH_B2 = [e for e in UNWRAPPED if "b2" in e.keywords and e.keywords["b2"].default is not None]


@pytest.mark.parametrize("entry", WITH_B2, ids=label)
def test_bfloat16_hyperparameters_are_refused(entry: Entry) -> None:
    """Injected numbers take the parameters' dtype; in bfloat16 b2 would be 1."""
    params = sample_params(jnp.bfloat16)
    with pytest.raises(TypeError, match=r"b[123] has dtype bfloat16.*hyperparam_dtype=jnp.float32"):
        optax.inject_hyperparams(entry.factory, static_args=whole_numbers(entry))(
            0.05, **entry.example, **entry.options
        ).init(params)
    tx = optax.inject_hyperparams(
        entry.factory, static_args=whole_numbers(entry), hyperparam_dtype=jnp.float32
    )(0.05, **entry.example)
    got, _ = run(tx, params, sample_gradients(dtype=jnp.bfloat16))
    assert_finite(got)


@table
def test_gradient_none_alone_raises(entry: Entry) -> None:
    """None in the gradients where there is an accumulator is an error that names the leaf.

    Without accumulators it says that the leaf is not trained.
    """
    params = sample_params()
    tx = entry.make()
    gradient = at(sample_gradients(), 0)
    gradient["dense"]["kernel"] = None
    if not accumulators(tx.init(params)):
        updates, _ = tx.update(gradient, tx.init(params), params)
        assert updates["dense"]["kernel"] is None
        return
    with pytest.raises(ValueError, match=r"missing leaves \['dense/kernel'\].*None in both trees"):
        jax.jit(tx.update)(gradient, tx.init(params), params)


FOREIGN = {
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "scale": optax.scale(-0.5),
    "zero_nans": optax.zero_nans(),
    "add_decayed_weights": optax.add_decayed_weights(0.1),
    "trace": optax.trace(0.9),
    "scale_by_learning_rate": optax.scale_by_learning_rate(0.1),
    "add_noise": optax.add_noise(0.1, 0.5, 0),
    "masked": optax.masked(optax.scale(0.5), IN_DENSE),
    "masked stage": optax.masked(amsgrad_max(), IN_DENSE),
}
NAMELESS = {"add_noise", "masked", "masked stage"}
"""These stumble over the record before they touch it, and the error is in their own words."""


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_between_moments_is_refused_by_compose(name: str) -> None:
    """At construction, with the remedy."""
    with pytest.raises(ValueError, match=r"before estimate_moments or after precondition"):
        compose(estimate_moments(), FOREIGN[name], precondition())


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_between_moments_raises_in_a_chain(name: str) -> None:
    """In ``optax.chain`` at the first update: never a silent change of the moments."""
    tx = optax.chain(estimate_moments(), FOREIGN[name], correct_bias(), precondition())
    errors = (TypeError, AttributeError, ValueError)
    params = sample_params()
    state = tx.init(params)
    with pytest.raises(errors):
        tx.update(at(sample_gradients(), 0), state, params)
    if name not in NAMELESS:
        leaf = params["dense"]["bias"]
        state = tx.init(leaf)
        with pytest.raises(errors, match=r"[Mm]oments"):
            tx.update(at(sample_gradients(), 0)["dense"]["bias"], state, leaf)


def a_record() -> Any:
    """A moments record of the sample tree."""
    params = sample_params()
    tx = estimate_moments()
    return tx.update(at(sample_gradients(), 0), tx.init(params), params)[0]


def test_the_record_is_opaque() -> None:
    """One leaf to jax, with an explanation for whoever touches it."""
    record = a_record()
    assert isinstance(record, Moments)
    assert jax.tree.leaves(record) == [record]
    assert "precondition" in repr(record)
    for use in (
        lambda r: r + 1,
        lambda r: 1 - r,
        lambda r: 2.0 * r,
        lambda r: r / 2,
        lambda r: -r,
        lambda r: r**2,
        abs,
        lambda r: r < 0,
    ):
        with pytest.raises(TypeError, match=r"only stages of adamw_jax are allowed"):
            use(record)
    for name in ("dtype", "shape", "astype", "T", "real"):
        with pytest.raises(AttributeError, match=rf"no attribute '{name}'.*precondition\(\)"):
            getattr(record, name)
    with pytest.raises((TypeError, ValueError)):
        jnp.asarray(record)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.count = 3  # type: ignore[misc]


def test_jitting_one_moments_stage_raises() -> None:
    """The record cannot cross a jit boundary; the whole recipe can."""
    stage, params = estimate_moments(), sample_params()
    state = stage.init(params)
    with pytest.raises(TypeError, match=r"Moments"):
        jax.jit(stage.update)(at(sample_gradients(), 0), state, params)
    record, _ = stage.update(at(sample_gradients(), 0), state, params)
    second = correct_bias()
    with pytest.raises(TypeError, match=r"Moments"):
        jax.jit(second.update)(record, second.init(params), params)


def test_forgotten_precondition() -> None:
    """Refused by compose at construction, and in a chain at the next step or apply_updates."""
    with pytest.raises(ValueError, match=r"add precondition\(\)"):
        compose(estimate_moments(), correct_bias())
    with pytest.raises(ValueError, match=r"Put precondition\(\)"):
        compose(estimate_moments(), correct_bias(), scale_by_learning_rate(0.1))
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = optax.chain(estimate_moments(), correct_bias())
    record, _ = tx.update(gradient, tx.init(params), params)
    with pytest.raises((TypeError, ValueError, AttributeError), match="Moments"):
        optax.apply_updates(params, record)
    longer = optax.chain(tx, scale_by_learning_rate(0.1))
    state = longer.init(params)
    with pytest.raises(TypeError, match=r"put precondition\(\) before it"):
        longer.update(gradient, state, params)


@pytest.mark.parametrize(
    "stage", [correct_bias(), amsgrad_max(), rectify_variance(), precondition()]
)
def test_forgotten_estimate(stage: Any) -> None:
    """A stage on moments that gets gradients says what is missing."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    state = stage.init(params)
    with pytest.raises(TypeError, match=r"put estimate_moments\(first=..., second=...\) before it"):
        stage.update(gradient, state, params)
    with pytest.raises(ValueError, match=r"Put estimate_moments\(...\) before it"):
        compose(stage, precondition())


def test_several_recipes_with_one_name() -> None:
    """Under partition a name is told apart by the path of its recipe."""
    labels = {"dense": "fast", "scale": "slow"}
    tx = optax.partition({"fast": adamw(0.1), "slow": adamw(0.01)}, labels)
    state = tx.init(sample_params())
    with pytest.raises(ValueError, match=r"several recipes have a hyperparameter 'learning_rate'"):
        set_hyperparams(state, learning_rate=0.5)
    names = [name for name in hyperparams(state) if name.endswith("learning_rate")]
    assert len(names) == 2
    before, after = hyperparams(state), hyperparams(set_hyperparams(state, {names[0]: 0.5}))
    assert float(after[names[0]]) == 0.5
    assert float(after[names[1]]) == float(before[names[1]])


def test_catalogue_choices() -> None:
    """Every keyword that takes words has a row in the table of choices."""
    for name in adamw_jax.list_optimizers():
        for argument, parameter in Entry(name, name).keywords.items():
            if isinstance(parameter.default, str):
                assert argument in catalogue.CHOICES, (name, argument)


def test_two_lookaheads_of_one_parameter_are_refused() -> None:
    """Tail and tail, a wrapper around either; not of other parameters."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    sgd, tail, around = adamw_jax.sgdw(0.1), lookahead, lookahead
    for tx in (
        adamw_jax.compose(sgd, ("inner", tail()), ("outer", tail(sync_period=7))),
        around(adamw_jax.compose(sgd, tail())),
        around(around(optax.sgd(0.1))),
    ):
        with pytest.raises(ValueError, match=r"LookaheadState both keep weights of \['a', 'b'"):
            tx.init(params)
    masks = {"a": True, "b": False}, {"a": False, "b": True}
    first, second = (adamw_jax.only(tail(), mask) for mask in masks)
    adamw_jax.compose(sgd, ("first", first), ("second", second)).init(params)
