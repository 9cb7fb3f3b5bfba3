"""States own their buffers: none is in a state twice, none is the caller's, all may be donated."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import adamw_jax as aj
from tests.catalogue import (
    PLAIN,
    Entry,
    at,
    numeric_arguments,
    one_step,
    rows,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

GRADIENT = at(sample_gradients(), 0)


def check(tx: Any, state: Any, params: Any, *arrays: jax.Array) -> None:
    """Donates a state for three steps; parameters and other arrays of the caller live on."""
    step = jax.jit(one_step(tx), donate_argnums=(1,))
    theta = params
    for _ in range(3):
        theta, state = step(theta, state, GRADIENT)
    assert not any(x.is_deleted() for x in [*jax.tree.leaves(params), *arrays])
    step(params, tx.init(params), GRADIENT)  # a second run with the same optimizer


def pointers(tree: Any) -> list[int]:
    return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]


def assert_own(state: Any, *others: Any) -> None:
    """No array twice in a state, and none of ``others``."""
    held = pointers(state)
    assert len(set(held)) == len(held)
    assert not set(held) & set(pointers(others))


def with_arrays(entry: Entry) -> tuple[Any, dict[str, jax.Array]]:
    """The optimizer with one array for the learning rate and arrays for its other numbers."""
    numbers = {name: entry.keywords[name].default for name in numeric_arguments(entry)}
    numbers = {**numbers, **entry.example, **entry.options}
    arrays = {
        name: jnp.float32(value)
        for name, value in numbers.items()
        if isinstance(value, float) and name != "learning_rate"
    }
    arrays["learning_rate"] = jnp.float32(0.05)
    return made_with(entry, arrays), arrays


def made_with(entry: Entry, numbers: dict[str, Any]) -> Any:
    """The optimizer with these numbers, or the learning rate alone if some must be static."""
    try:
        return entry.make(**numbers)
    except ValueError:
        return entry.make(numbers["learning_rate"])


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_hyperparameters_that_are_arrays_stay_the_caller_s(entry: Entry) -> None:
    tx, arrays = with_arrays(entry)
    params = sample_params()
    check(tx, tx.init(params), params, *arrays.values())


RATE = jnp.float32(0.02)
WAYS = {
    "init": lambda tx, state, params: tx.init(params),
    "update": lambda tx, state, params: one_step(tx)(params, state, GRADIENT)[1],
    "migrate_state": lambda tx, state, params: aj.migrate_state(state, tx, params)[0],
    "set_hyperparams": lambda tx, state, params: aj.set_hyperparams(
        state, {name: RATE for name in aj.hyperparams(state) if name.endswith("/learning_rate")}
    ),
}


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_parts_may_share_their_arrays(entry: Entry) -> None:
    """Two recipes with the same arrays, and a third with schedules that return them."""
    arrays, params = with_arrays(entry)[1], sample_params()
    made = [made_with(entry, arrays), made_with(entry, arrays)]
    scheduled = {
        k: lambda count, x=x: x for k, x in arrays.items() if k in numeric_arguments(entry)
    }
    parts = dict(zip("abc", [*made, made_with(entry, scheduled)], strict=True))
    tx = optax.partition(parts, {"dense": {"bias": "a", "kernel": "b"}, "scale": "c"})
    step = jax.jit(one_step(tx), donate_argnums=1)
    for way in WAYS.values():
        state = way(tx, tx.init(params), params)
        assert_own(state, params, arrays, RATE, GRADIENT)
        theta, state = step(params, state, GRADIENT)
        assert_own(state, theta, params, arrays)
        step(theta, state, GRADIENT)
    assert not any(x.is_deleted() for x in jax.tree.leaves((params, arrays, RATE)))


THEIRS = {
    "adamw": (optax.adamw, aj.adamw),
    "injected adam": (optax.inject_hyperparams(optax.adam), aj.adam),
    "sgd": (lambda rate: optax.sgd(rate, 0.9), aj.sgdw),
}


@pytest.mark.parametrize("kind", ["array", "schedule"])
@pytest.mark.parametrize("name", THEIRS)
def test_several_parts_from_one_state_of_optax_and_back(name: str, kind: str) -> None:
    rate, params = jnp.float32(0.05), sample_params()
    given: Any = rate if kind == "array" else lambda count: rate
    theirs, ours = (make(given) for make in THEIRS[name])
    with jax.numpy_dtype_promotion("standard"):
        _, saved = theirs.update(GRADIENT, theirs.init(params), params)
        parts = [aj.from_optax(saved, ours, params) for _ in range(2)]
        assert_own(parts, saved, params, rate)
        back = [aj.to_optax(part, theirs, params) for part in (parts[0], *parts)]
        assert_own(back, parts, saved, params, rate)
        for tx, states in ((ours, parts), (theirs, back)):
            step = one_step(tx)

            def both(states: Any, step: Any = step) -> Any:
                return [step(params, state, GRADIENT)[1] for state in states]

            assert_own(jax.jit(both, donate_argnums=0)(states), params, rate)
    assert not any(x.is_deleted() for x in jax.tree.leaves((saved, params, rate)))


def test_a_schedule_may_return_one_array() -> None:
    rate, decay = jnp.float32(0.05), jnp.float32(0.01)
    tx = aj.adamw(lambda count: rate, weight_decay=decay, l2=decay)
    params = sample_params()
    check(tx, tx.init(params), params, rate, decay)


def test_parts_of_a_partition_may_share_an_array() -> None:
    rate, params = jnp.float32(0.05), sample_params()
    parts = {"a": aj.adamw(rate), "b": aj.sgdw(rate, momentum=rate)}
    tx = optax.partition(parts, {"dense": {"bias": "a", "kernel": "b"}, "scale": "a"})
    check(tx, tx.init(params), params, rate)


@pytest.mark.parametrize(
    "make", [lambda x: aj.koala_v(sigma=x), lambda x: aj.koala_m(sw=x, sv=x, qw=x)]
)
def test_numbers_that_begin_a_state_stay_the_caller_s(make: Any) -> None:
    start, params = jnp.float32(0.1), sample_params()
    tx = make(start)
    check(tx, tx.init(params), params, start)


MADE = {
    "init": lambda tx, state, params: tx.init(params),
    "update": lambda tx, state, params: tx.update(GRADIENT, state, params)[1],
    "migrate_state": lambda tx, state, params: aj.migrate_state(state, tx, params)[0],
    "from_optax": lambda tx, state, params: aj.from_optax(
        aj.to_optax(state, optax.adamw(0.05), params), tx, params
    ),
    "set_hyperparams": lambda tx, state, params: aj.set_hyperparams(
        state, {name: jnp.float32(0.5) for name in ("b1", "b2")}
    ),
    "restart_moments": lambda tx, state, params: aj.restart_moments(state),
    "repack_state": lambda tx, state, params: aj.repack_state(state, tx, params),
}


@pytest.mark.parametrize("jitted", [False, True], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", MADE)
def test_every_way_to_make_a_state(name: str, jitted: bool) -> None:
    tx, params = aj.adamw(jnp.float32(0.05)), sample_params()
    update = jax.jit(tx.update) if jitted else tx.update
    _, state = update(GRADIENT, tx.init(params), params)
    check(tx, MADE[name](tx, state, params), params)


@pytest.mark.parametrize("name", ["to_optax", "migrate_state"])
def test_what_is_made_of_a_state_shares_nothing_with_it(name: str) -> None:
    """The old state is still there when the new one was donated."""
    tx, params = aj.adamw(optax.linear_schedule(0.05, 0.0, 9)), sample_params()
    _, state = tx.update(GRADIENT, tx.init(params), params)
    if name == "to_optax":
        target = optax.adamw(optax.linear_schedule(0.05, 0.0, 9))
        made: Any = aj.to_optax(state, target, params)
    else:
        target = aj.compose(tx, aj.lookahead(), aj.average_iterates())
        made, _ = aj.migrate_state(state, target, params)
    with jax.numpy_dtype_promotion("standard"):
        check(target, made, params, *jax.tree.leaves(state))


def test_the_arrays_of_an_optimizer_of_optax_stay_the_caller_s() -> None:
    rate, params = jnp.float32(0.05), sample_params()
    theirs = optax.inject_hyperparams(optax.adam)(rate)
    with jax.numpy_dtype_promotion("standard"):
        made = aj.to_optax(aj.adam(0.05).init(params), theirs, params)
        jax.jit(theirs.update, donate_argnums=1)(GRADIENT, made, params)
    assert not rate.is_deleted()


@pytest.mark.parametrize(
    "tail",
    [aj.lookahead, aj.average_iterates, aj.stochastic_rounding, aj.compensated_rounding],
    ids=lambda tail: tail.__name__,
)
def test_tails_copy_the_parameters(tail: Any) -> None:
    params = sample_params()
    alpha = {"slow_step_size": jnp.float32(0.5)} if tail is aj.lookahead else {}
    tx = aj.compose(aj.adamw(0.05), tail(**alpha))
    check(tx, tx.init(params), params, *alpha.values())


WRAPPED = {
    "skip_bad_steps": aj.skip_bad_steps(aj.adamw(0.05), loss_spike=6.0, norm_spike=6.0, window=4),
    "accumulate": aj.accumulate(aj.adamw(0.05), 2),
    "dynamic_loss_scale": aj.dynamic_loss_scale(aj.adamw(0.05)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers(name: str) -> None:
    """As ``init`` and a step without jit make their states."""
    tx, params = WRAPPED[name], sample_params()
    _, state = tx.update(GRADIENT, tx.init(params), params, value=jnp.float32(1.0))
    for made in (tx.init(params), state):
        check(tx, made, params)


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_an_eager_step_keeps_no_array_of_the_caller(entry: Entry) -> None:
    """Some states hold the previous gradient: it is a copy, so a donated state deletes nothing."""
    params, gradient = {"w": jnp.ones(3)}, {"w": jnp.full(3, 0.5)}
    tx, extra = entry.make(), {"value": jnp.float32(1.0)}
    _, state = tx.update(gradient, tx.init(params), params, **extra)
    held = {id(x) for x in jax.tree.leaves(state)}
    assert not held & {id(x) for x in jax.tree.leaves((gradient, params, extra))}
