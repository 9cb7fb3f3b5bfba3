"""Define a part, one accumulator of ``estimate_moments``.

A part has three pure functions. ``init(params)`` returns its state, ``update(gradient, state, step,
first)`` the state after one gradient, and ``read(state, gradient, step)`` the moment that the
stages see. ``first`` is the first moment after this gradient, which a centred second moment needs.
State trees are shaped like the parameters, so that sharding, masking and ``optax.tree.map_params``
work on them.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import Hyperparameter, storage_dtype
from adamw_jax._core.record import Clock, Reading
from adamw_jax._core.stage import Step, options_shown

Tree = Any


class Part(NamedTuple):
    """One accumulator: its declaration and its pure functions.

    Attributes:
      name: its name in ``summary`` and error messages.
      hyperparams: its hyperparameters by name.
      init: ``params -> state``.
      update: ``(gradient, state, step, first) -> state``.
      read: ``(state, gradient, step) -> Reading``, or None for no second moment.
      magnitude: whether it is on the scale of |g|, not |g|^2 (only for second moments).
      entry: ``(state before the update, gradient, step) -> tree``, which the second moment squares
        instead of the gradient, or None (only for first moments).
      write_after_read: ``(new state, new state of the second moment) -> new state`` with the same
        values, called after the second moment was updated, so that arrays it reads are overwritten
        last; None if not needed (only for first moments).
      kind: the class of its state, or None if the state has no class of its own.
      storage: how its arrays are stored; None stores them unchanged.
      elementwise: whether an element of its state and of its moment depends only on the same
        element of the gradient and the state, in the same way for all leaves. Only then is it
        packed (``pack_small_leaves``).
      options: its other arguments that are not the defaults, in words, set by ``shows_options``.

    Example:
      >>> import adamw_jax as aj
      >>> aj.ema(0.9).name
      'ema'
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
    elementwise: bool = False
    options: Mapping[str, str] = types.MappingProxyType({})

    def __str__(self) -> str:
        """Return the name with the options, ``heavy_ball(nesterov=True)``."""
        return f"{self.name}({', '.join(options_shown(self.options))})"


class AverageState(NamedTuple):
    """State of an exponential moving average, of gradients or in a part of your own.

    The first field of a part's state is its moment. Each part names it differently, so that a
    checkpoint of one part is not restored into another. ``twins`` are the fields of the states of
    optax and PyTorch with the same content.

    Attributes:
      average: the average, params-shaped.
      clock: the sum of its weights, and of the weights times the ages of their entries.
    """

    average: Tree
    clock: Clock
    twins = (
        "ScaleByAdamState.mu",
        "ScaleByAmsgradState.mu",
        "ScaleByBeliefState.mu",
        "TorchState.exp_avg",
    )
    moment = property(operator.itemgetter(0))
    momenta = ("average", "clock")


def with_moment(state: Any, moment: Tree) -> Any:
    """Replace the moment in the state of a part."""
    return state._replace(**{state._fields[0]: moment})


def zeros(params: Tree, dtype: Any = None, real: bool = False) -> Tree:
    """Return zeros shaped like ``params`` in the accumulator dtype."""
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
    elementwise: bool = False,
) -> Part:
    """Make a part that averages entries, ``a' = b a + (1 - b) entry``.

    ``kind`` is the class of its state, with fields for average and clock. ``floor`` returns a
    number that is added at every step. ``from_first`` starts the average at the first entry.
    """

    def init(params: Tree) -> Any:
        return kind(zeros(params, dtype, real), Clock.start(aged=real))

    def update(gradient: Tree, state: Any, step: Step, first: Reading | None):
        b = step[rate_name]
        if from_first:
            b = started(b, state.clock)
        rest, added = 1.0 - b, None if floor is None else floor(step)
        value = jax.tree.map(
            lambda a, x: _averaged(b, a, rest, x, added, real=real),
            state.moment,
            entries(gradient, first),
        )
        return kind(value, state.clock.tick(b))

    def read(state: Any, gradient: Tree, step: Step) -> Reading:
        del gradient
        return Reading(jax.tree.map(numerics.widen, state.moment), state.clock, step[rate_name])

    return Part(
        name,
        hyperparams,
        init,
        update,
        read,
        kind=kind,
        storage=storage,
        elementwise=elementwise,
    )


@numerics.kernel
def _averaged(
    b: jax.Array,
    old: jax.Array,
    rest: jax.Array,
    x: jax.Array,
    floor: jax.Array | None,
    *,
    real: bool,
) -> jax.Array:
    entry = numerics.scaled(rest, x)
    if floor is not None:  # if it were added last, XLA would compute the sum twice
        entry = lax.add(entry, floor)
    new = lax.add(numerics.scaled(b, numerics.widen(old)), entry)
    return numerics.cast_nonnegative(new, old.dtype) if real else numerics.cast(new, old.dtype)


def started(b: jax.Array, clock: Clock) -> jax.Array:
    """Return the decay rate, 0 at the first step, so that the average starts at its first entry."""
    return lax.select(clock.weight_sum == 0, jnp.zeros_like(b), b)


def no_moment() -> Part:
    """Use no accumulator: the gradient as first moment, or no division as second moment.

    ``estimate_moments(no_moment(), ema_of_squares(b2))`` is Adam with b1 = 0 and stores one value
    per parameter instead of two.

    Returns:
      A part for either moment, without state.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.moments.no_moment()),
      ...     aj.precondition(None),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def read(state: Any, gradient: Tree, step: Step) -> Reading:
        del state, step
        return Reading(jax.tree.map(numerics.widen, gradient))

    def update(gradient: Tree, state: Any, step: Step, first: Reading | None) -> Any:
        del gradient, step, first
        return state

    return Part("no_moment", {}, lambda _: optax.EmptyState(), update, read, elementwise=True)
