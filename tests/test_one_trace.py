"""One trace: a jitted step compiles once, and nothing that moves a hyperparameter compiles again.

Who wins: the code, unless the user pinned a value.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from adamw_jax import (
    adam,
    adamw,
    average_iterates,
    clear_hyperparams,
    compose,
    hyperparams,
    lookahead,
    one_cycle,
    set_hyperparams,
    sgdw,
)
from tests.catalogue import (
    EVERY,
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    assert_finite,
    at,
    avals,
    one_step,
    reference,
    rows,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

VECTOR = sample_params()["dense"]["bias"]
GRADIENTS = sample_gradients(5)["dense"]["bias"]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of what XLA compiles meanwhile."""
    names: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("Finished XLA compilation"):
                names.append(record.getMessage())

    logger, handler = logging.getLogger("jax"), Handler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        with jax.log_compiles():
            yield names
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def test_the_witness_sees_a_compilation() -> None:
    """The counter of this file counts."""
    with compilations() as names:
        jax.jit(lambda x: x * 3.25)(jnp.ones(3))
    assert len(names) >= 1


@pytest.mark.parametrize("entry", rows(EVERY))
def test_five_steps_compile_once(entry: Entry) -> None:
    """Every entry and variant: one compilation, stable state, finite parameters."""
    tx = entry.make()
    params, state = VECTOR, tx.init(VECTOR)
    before = avals(state)
    step = jax.jit(one_step(tx), donate_argnums=1)
    for i in range(5):
        params, state = step(params, state, GRADIENTS[i])
    assert step._cache_size() == 1
    assert avals(state) == before
    assert_finite(params)


@pytest.mark.parametrize("entry", rows(EVERY))
def test_a_step_without_jit_compiles_nothing_again(entry: Entry) -> None:
    """Six steps, with one sync of Lookahead, compile each operation; the next six compile none."""
    assert not _compiled_by_later_steps(entry.make())


@pytest.mark.parametrize(
    "tail",
    [
        lookahead(sync_period=6),
        *(average_iterates(kind=kind, period=2) for kind in ("equal", "ema", "weighted", "last")),
    ],
)
def test_a_tail_without_jit_compiles_nothing_again(tail: Any) -> None:
    """Also in steps that collect weights."""
    assert not _compiled_by_later_steps(compose(adamw(0.1), tail))


def _compiled_by_later_steps(tx: Any) -> list[str]:
    params, state, step = VECTOR, tx.init(VECTOR), one_step(tx)
    gradients = [GRADIENTS[i % 5] for i in range(12)]
    for gradient in gradients[:6]:
        params, state = step(params, state, gradient)
    with compilations() as names:
        for gradient in gradients[6:]:
            params, state = step(params, state, gradient)
    return names


@pytest.mark.parametrize("name", ["adamw", "sgdw", "radam"])
def test_one_cycle_compiles_once_and_keeps_the_structure(name: str) -> None:
    """Schedules of learning rate and momentum: the structure of the state is that of numbers."""
    entry = Entry(name, name)
    tx = entry.make(one_cycle(0.1, total_steps=6))
    params, state = VECTOR, tx.init(VECTOR)
    assert avals(state) == avals(entry.make().init(VECTOR))
    step = jax.jit(one_step(tx))
    seen = []
    for i in range(5):
        params, state = step(params, state, GRADIENTS[i])
        live = hyperparams(state)
        seen.append((float(live["learning_rate"]), float(live.get("b1", live.get("momentum")))))
    assert step._cache_size() == 1
    assert len(set(seen)) == 5
    rates, momenta = np.array(seen).T
    assert np.argmax(rates) == np.argmin(momenta)


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_pinning_compiles_nothing(entry: Entry) -> None:
    """Pin, change and clear between steps: the step stays compiled, and so does the pinning."""
    tx = entry.make(optax.linear_schedule(0.1, 0.01, 10))
    params, state = VECTOR, tx.init(VECTOR)
    step = jax.jit(one_step(tx))

    def pinned_step(params: Any, state: Any, rate: float) -> tuple[Any, Any]:
        state = set_hyperparams(state, learning_rate=rate)
        params, state = step(params, state, GRADIENTS[0])
        assert float(hyperparams(state)["learning_rate"]) == pytest.approx(rate)
        state = clear_hyperparams(state, "learning_rate")
        return step(params, state, GRADIENTS[0])

    params, state = pinned_step(params, state, 0.5)
    with compilations() as names:
        params, state = pinned_step(params, state, 0.25)
    assert names == []
    assert step._cache_size() == 1
    assert float(hyperparams(state)["learning_rate"]) == pytest.approx(0.1 - 3 * 0.009)


def test_a_pinned_value_is_what_the_step_uses() -> None:
    """A pinned run is the run of that number, over a number and over a schedule."""
    expected, _ = run(sgdw(0.5), VECTOR, GRADIENTS)
    for code in (0.1, optax.constant_schedule(0.1)):
        tx = sgdw(code)
        step = jax.jit(one_step(tx), donate_argnums=1)
        params, state = VECTOR, set_hyperparams(tx.init(VECTOR), learning_rate=0.5)
        for gradient in GRADIENTS:
            params, state = step(params, state, gradient)
        assert_close(params, expected)


def test_pinning_works_under_jit_and_donation_and_in_scan() -> None:
    """``set_hyperparams`` is itself traceable, with a traced value."""
    tx = adamw(0.1)
    expected, _ = run(adamw(0.3), VECTOR, GRADIENTS)

    def pinned(params: Any, state: Any, rate: Any) -> Any:
        state = set_hyperparams(state, learning_rate=rate)
        step = one_step(tx)
        carry, _ = jax.lax.scan(lambda c, g: (step(*c, g), None), (params, state), GRADIENTS)
        return carry

    jitted = jax.jit(pinned, donate_argnums=1)
    params, state = jitted(VECTOR, tx.init(VECTOR), jnp.float32(0.3))
    assert_close(params, expected)
    again, _ = jitted(VECTOR, tx.init(VECTOR), jnp.float32(0.1))
    assert_close(again, run(tx, VECTOR, GRADIENTS)[0])
    assert jitted._cache_size() == 1
    assert float(hyperparams(state)["learning_rate"]) == pytest.approx(0.3)

    def set_inside(carry: Any, given: Any) -> Any:
        params, state = carry
        gradient, rate = given
        state = set_hyperparams(state, learning_rate=rate)
        return one_step(tx)(params, state, gradient), None

    rates = jnp.full((5,), 0.3)
    (params, _), _ = jax.jit(lambda: jax.lax.scan(
        set_inside, (VECTOR, tx.init(VECTOR)), (GRADIENTS, rates)
    ))()  # fmt: skip
    assert_close(params, expected)


def test_every_hyperparameter_can_be_pinned() -> None:
    """Each by its name, and under a wrapper; the others stay as they are."""
    tx = optax.chain(optax.clip(1.0), compose(adamw(0.1, eps_root=1e-6), lookahead()))
    state = tx.init(VECTOR)
    names = sorted(hyperparams(state))
    assert names == [
        "b1", "b2", "eps", "eps_root", "learning_rate", "slow_step_size", "weight_decay"
    ]  # fmt: skip
    for name in names:
        after = hyperparams(set_hyperparams(state, **{name: 0.125}))
        assert float(after.pop(name)) == 0.125
        before = hyperparams(state)
        before.pop(name)
        assert_equal(after, before)


def restored(tmp_path: Any, state: Any, tx: Any) -> Any:
    """The state after a round trip through a checkpoint, into another recipe's state."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, VECTOR))


def test_unpinned_the_code_wins_after_a_restore(tmp_path: Any) -> None:
    """A number changed in the code, and a number made a schedule, take effect."""
    _, state = run(adamw(0.1), VECTOR, GRADIENTS)
    for edited in (adamw(0.02), adamw(optax.constant_schedule(0.02))):
        old = restored(tmp_path / str(id(edited)), state, edited)
        assert float(hyperparams(old)["learning_rate"]) == pytest.approx(0.1)
        updates, new = jax.jit(edited.update)(GRADIENTS[0], old, VECTOR)
        expected, _ = jax.jit(adamw(0.02).update)(GRADIENTS[0], state, VECTOR)
        assert_close(updates, expected)
        assert float(hyperparams(new)["learning_rate"]) == pytest.approx(0.02)


def test_pinned_the_user_wins_after_a_restore(tmp_path: Any) -> None:
    """A pin is part of the checkpoint, until it is cleared."""
    _, state = run(adamw(0.1), VECTOR, GRADIENTS)
    edited = adamw(0.02)
    old = restored(tmp_path, set_hyperparams(state, learning_rate=0.5), edited)
    update = jax.jit(edited.update)
    assert float(hyperparams(update(GRADIENTS[0], old, VECTOR)[1])["learning_rate"]) == 0.5
    free = clear_hyperparams(old)
    after = update(GRADIENTS[0], free, VECTOR)[1]
    assert float(hyperparams(after)["learning_rate"]) == pytest.approx(0.02)
    assert update._cache_size() == 1


def test_injected_values_are_never_overridden() -> None:
    """The record in the state follows ``inject_hyperparams``, also for a state that ran on 0.1."""
    tx = optax.inject_hyperparams(adamw)(0.1)
    _, state = run(tx, VECTOR, GRADIENTS)
    state.hyperparams["learning_rate"] = jnp.float32(0.02)
    updates, new = jax.jit(tx.update)(GRADIENTS[0], state, VECTOR)
    expected, _ = jax.jit(adamw(0.02).update)(GRADIENTS[0], state.inner_state, VECTOR)
    assert_close(updates, expected)
    assert float(hyperparams(new)["learning_rate"]) == pytest.approx(0.02)


def test_vmapped_values_are_never_overridden() -> None:
    """States that ran on one learning rate go on under a batch of others."""
    _, state = run(adamw(0.1), VECTOR, GRADIENTS)
    rates = jnp.array([0.02, 0.3])
    updates = jax.jit(jax.vmap(lambda r: adamw(r).update(GRADIENTS[0], state, VECTOR)[0]))(rates)
    for i, rate in enumerate((0.02, 0.3)):
        expected, _ = jax.jit(adamw(rate).update)(GRADIENTS[0], state, VECTOR)
        assert_close(updates[i], expected)
    batched = jax.vmap(lambda r: adamw(r).init(VECTOR))(rates)
    pinned = set_hyperparams(batched, learning_rate=jnp.array([0.5, 0.25]))
    assert hyperparams(pinned)["learning_rate"].tolist() == [0.5, 0.25]
    assert avals(pinned) == avals(batched)


def test_derivative_by_a_hyperparameter() -> None:
    """The state's record does not cut the derivative off."""

    def final(rate: jax.Array) -> jax.Array:
        return jnp.sum(run(adam(rate), VECTOR, GRADIENTS)[0])

    slope = jax.grad(final)(jnp.float32(0.1))
    difference = (final(jnp.float32(0.11)) - final(jnp.float32(0.09))) / 0.02
    assert float(slope) == pytest.approx(float(difference), rel=1e-3)


def test_the_live_record_shows_the_last_step() -> None:
    """Before the first step the value of count 0, then what the step before used."""
    schedule = optax.linear_schedule(0.5, 0.1, 4)
    tx = adamw(schedule)
    state = tx.init(VECTOR)
    assert float(hyperparams(state)["learning_rate"]) == 0.5
    update = jax.jit(tx.update)
    for count in range(3):
        _, state = update(GRADIENTS[0], state, VECTOR)
        assert float(hyperparams(state)["learning_rate"]) == pytest.approx(float(schedule(count)))


def test_reference_is_reproducible() -> None:
    """The same recipe built twice gives the same bits."""
    entry = PLAIN[0]
    assert_equal(run(entry.make(), sample_params(), sample_gradients()), reference(entry))
    assert_equal(at(GRADIENTS, 0), GRADIENTS[0])
