"""The interface of a part: one accumulator of ``estimate_moments``.

A part is three pure functions. ``init(params)`` gives its state, ``update(gradient, state, step,
first)`` the state after one gradient, and ``read(state, gradient, step)`` the moment that the
stages see. ``first`` is the reading of the first moment after this gradient, which a centred
second moment needs. State trees are shaped like the parameters, so that sharding, masking and
``optax.tree.map_params`` see through them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import Hyperparameter, storage_dtype
from adamw_jax._core.record import Clock, Reading
from adamw_jax._core.stage import Step

Tree = Any


class Part(NamedTuple):
    """One accumulator: its declaration and its pure functions.

    Attributes:
      name: what ``summary`` and error messages call it.
      hyperparams: its hyperparameters by name.
      init: ``params -> state``.
      update: ``(gradient, state, step, first) -> state``.
      read: ``(state, gradient, step) -> Reading``, or None for no second moment.
      magnitude: whether it is on the scale of |g| (only for second moments).
      entry: ``(state before the update, gradient, step) -> tree`` that the second moment squares in
        place of the gradient, or None (only for first moments).
      write_after_read: ``(state after the update, state of the second moment after its) -> state``,
        the same values, written only after the second moment, whose entry reads what they
        overwrite (only for first moments).
      kind: the class of its state, or None where it has none of its own.
      storage: how its arrays are stored, or None for as they are.
    """

    name: str
    hyperparams: Mapping[str, Hyperparameter]
    init: Callable[[Tree], Any]
    update: Callable[[Tree, Any, Step, Reading | None], Any]
    read: Callable[[Any, Tree, Step], Reading | None]
    magnitude: bool = False
    entry: Callable[[Any, Tree, Step], Tree] | None = None
    write_after_read: Callable[[Any, Any], Any] | None = None
    kind: type | None = None
    storage: Any = None


class AverageState(NamedTuple):
    """State of an exponential moving average of gradients, or of what a part of yours averages.

    The first field of every part is its moment, and the field's name says of what, so that no
    checkpoint of one is taken for another's. ``twins`` are the fields of optax's states that hold
    the same.

    Attributes:
      average: params-shaped.
      clock: the sum of its weights, and their ages.
    """

    average: Tree
    clock: Clock
    twins = ("ScaleByAdamState.mu", "ScaleByAmsgradState.mu", "ScaleByBeliefState.mu")
    moment = property(operator.itemgetter(0))
    momenta = ("average", "clock")


def with_moment(state: Any, moment: Tree) -> Any:
    """The state of a part with another moment."""
    return state._replace(**{state._fields[0]: moment})


def zeros(params: Tree, dtype: Any = None, real: bool = False) -> Tree:
    """Zeros shaped like ``params`` in the accumulator dtype."""
    dtype = storage_dtype("dtype", dtype)

    def zeros_of(p: Any) -> jax.Array:
        chosen = dtype
        if chosen is None:
            chosen = numerics.default_float() if real else numerics.compute_dtype(p)
        elif not real and jnp.issubdtype(p.dtype, jnp.complexfloating):
            chosen = numerics.compute_dtype(p)
        return jnp.zeros_like(p, dtype=chosen)

    return jax.tree.map(zeros_of, params)


def average(
    name: str,
    rate_name: str,
    hyperparams: Mapping[str, Hyperparameter],
    entries: Callable[[Tree, Reading | None], Tree],
    *,
    dtype: Any = None,
    real: bool,
    kind: type = AverageState,
    floor: Callable[[Step], jax.Array] | None = None,
    from_first: bool = False,
    storage: Any = None,
) -> Part:
    """An exponential moving average ``a' = b a + (1 - b) entry`` with its clock.

    ``kind`` is the class of its state, of the average and its clock; ``floor`` gives what is added
    to the accumulator at every step; ``from_first`` makes the first entry the first value.
    """

    def init(params: Tree) -> Any:
        return kind(zeros(params, dtype, real), Clock.start())

    def update(gradient: Tree, state: Any, step: Step, first: Reading | None):
        b = step[rate_name]
        if from_first:
            b = started(b, state.clock)
        rest = jnp.ones([], b.dtype) - b

        def leaf(a: jax.Array, x: jax.Array) -> jax.Array:
            entry = numerics.scaled(rest, x)
            if floor is not None:  # added last, it makes XLA compute the accumulator twice
                entry = lax.add(entry, floor(step))
            new = lax.add(numerics.scaled(b, numerics.widen(a)), entry)
            return numerics.cast(new, a.dtype)

        value = jax.tree.map(leaf, state.moment, entries(gradient, first))
        return kind(value, state.clock.tick(b))

    def read(state: Any, gradient: Tree, step: Step) -> Reading:
        del gradient
        return Reading(jax.tree.map(numerics.widen, state.moment), state.clock, step[rate_name])

    return Part(name, hyperparams, init, update, read, kind=kind, storage=storage)


def started(b: jax.Array, clock: Clock) -> jax.Array:
    """The decay rate of an average that begins with its first entry, and so needs no correction."""
    return lax.select(clock.mass == 0, jnp.zeros_like(b), b)


def no_moment() -> Part:
    """No accumulator: the first moment is the gradient itself, a second there is not.

    ``estimate_moments(no_moment(), ema_of_squares(b2))`` is Adam with b1 = 0 for one value per
    parameter instead of two.

    Returns:
      A part for either moment, without state.
    """

    def read(state: Any, gradient: Tree, step: Step) -> Reading:
        del state, step
        return Reading(jax.tree.map(numerics.widen, gradient))

    return Part(
        "no_moment", {}, lambda _: optax.EmptyState(), lambda g, state, step, first: state, read
    )
