"""Average the parameters over the run, with equal, given or exponential weights, or the last k.

    every period steps after start:   mean <- mean + (theta - mean) / (n + 1),   n <- n + 1

n counts the averaged parameters. Polyak & Juditsky 1992; stochastic weight averaging, Izmailov et
al. 2018, 1803.05407; with adaptive methods, Granziol et al., 2003.01247. The stage does not change
the parameters; ``eval_params`` gives the average. It helps most with a high constant learning rate
at the end and with weight decay.

The parameters after a step are collected at the beginning of the next step, in a ``lax.cond``, so
that steps between collections neither read nor write the average. With period 1 a select avoids the
copies of a conditional and writes the average at every step.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw, compose, eval_params
>>> tx = compose(adamw(1e-3), average_iterates(start=100))
>>> params = jnp.ones(2)
>>> eval_params(tx.init(params), params)
Array([1., 1.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of, switch, whole_number
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, nonnegative
from adamw_jax._core.numerics import increment
from adamw_jax._core.options import shows_options
from adamw_jax._core.sequential import after
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail
from adamw_jax.moments._parts import zeros

Tree = Any

NAME = tail("average_iterates")

KINDS = ("equal", "weighted", "ema", "last")


class Weights(NamedTuple):
    """The weight of the parameters to collect, and their slot (of kind ``"last"``)."""

    share: jax.Array
    slot: jax.Array


class IterateAverageState(NamedTuple):
    """State of ``average_iterates``; ``eval_params`` gives the average at any step.

    Attributes:
      mean: the average, params-shaped; of kind ``"last"`` the last k collected parameters, with an
        axis in front.
      collected: number of collections so far, int32.
      due: whether the current parameters are still to be collected.
      next: weight and slot of the next collection.
      total: sum of the weights so far, of kind ``"weighted"``, else None.
      weight_sum: sum of the weights of a debiased ``"ema"``, at most 1, else None.
    """

    mean: Tree
    collected: jax.Array
    due: jax.Array
    next: Weights
    total: jax.Array | None = None
    weight_sum: jax.Array | None = None
    exact = ("mean",)

    def eval_params(self) -> tuple[Tree, Any]:
        """Return the stored mean, and a function that adds the current parameters if due."""

        def evaluate(mean: jax.Array, theta: jax.Array) -> jax.Array:
            wide = numerics.widen(theta)
            due, collected = (
                numerics.broadcastable(self.due, wide),
                numerics.broadcastable(self.collected, wide),
            )
            share, slot = (numerics.broadcastable(x, wide) for x in self.next)
            if mean.ndim > theta.ndim:
                axis = jax.tree.leaves(self.due)[0].ndim  # after the axes of a mapped state
                return _last(mean, wide, axis, due, collected, slot)
            now = mean + numerics.like(jnp.where(due, share, jnp.zeros_like(share)), mean) * (
                wide - mean
            )
            return jnp.where(due | (collected > 0), now, wide)

        return self.mean, evaluate


@shows_options
def average_iterates(
    start: int = 0,
    period: int = 1,
    kind: str = "equal",
    *,
    decay: ScalarOrSchedule | None = None,
    debias: bool = False,
    warm_up: bool = False,
    window: int | None = None,
    weights: ScalarOrSchedule | str | None = None,
) -> Stage:
    """Average the parameters after the steps ``start + period``, ``start + 2 period``, ...

    Args:
      start: steps before averaging, >= 0; about half a run (the authors: 161 of 300 epochs).
      period: steps between collections, >= 1; once per epoch is often enough.
      kind: ``"equal"`` weights (iterate averaging, SWA); ``"weighted"`` by ``weights``; ``"ema"``
        with rate ``decay``; or the mean of the ``"last"`` ``window`` collections.
      decay: rate b of ``"ema"``, in [0, 1), or a schedule of the step count; None for 0.999.
      debias: for ``"ema"``: divide by the sum of the weights, so that the n-th collection before
        the last has the weight b^n, also the first one (Adam's correction; the default of
        ``optax.ema``). False starts with a copy of the first collection (PyTorch, timm), which
        outweighs all others for the first 0.7 / (1 - b) collections.
      warm_up: for ``"ema"``: use the rate min(b, (1 + n) / (10 + n)) after n collections, which
        averages about the last ninth of them until the rate reaches b. TensorFlow's
        ``ExponentialMovingAverage(num_updates=)`` counts steps instead of collections; here the
        rate also warms up after a late ``start``. False always uses b.
      window: number of collections that ``"last"`` keeps, >= 1, and of values of state per
        parameter; None for 5.
      weights: for ``"weighted"``: numbers >= 0. A schedule of the number of steps before the one
        that made the parameters, such as the learning rate; None for t after step t (Lacoste-Julien
        et al., 1212.2002). Or ``"step_size"``, in a recipe with ``scale_by_norm_estimate``: weigh
        parameters by the factor on the gradient in the step that starts from them,
        lr / (m + floor).

    Returns:
      A stage *update -> update* that does not change the update. The average is float32 at least,
      also for bfloat16 parameters. If the model has batch norm, refresh its statistics for the
      averaged weights with ``refresh_batch_stats``.

    Raises:
      ValueError: an option belongs to another kind, or (in ``update``) ``"step_size"`` is given but
        no stage reports a step size.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> tx = aj.compose(aj.adamw(1e-3), aj.average_iterates(kind="ema", decay=0.99))
      >>> params = {"w": jnp.ones(3)}
      >>> averaged = aj.eval_params(tx.init(params), params)
    """
    start, period = _steps("start", start, 0), _steps("period", period, 1)
    one_of("kind", kind, KINDS)
    for name, value in {"debias": debias, "warm_up": warm_up}.items():
        switch(name, value)
    options = [
        ("ema", "decay", decay),
        ("ema", "debias", debias or None),
        ("ema", "warm_up", warm_up or None),
        ("last", "window", window),
        ("weighted", "weights", weights),
    ]
    for its, name, value in options:
        if value is not None and kind != its:
            raise ValueError(
                f'{name} is for kind="{its}", but kind is "{kind}": leave {name} out, '
                f'got {value!r}, or give kind="{its}".'
            )
    window = whole_number("window", 5 if window is None else window)
    declared, by_step = {}, False
    if kind == "ema":
        declared = declare(average_decay=decay_rate(0.999 if decay is None else decay))
    elif kind == "weighted":
        by_step = isinstance(weights, str) and weights == "step_size"
        if not by_step:
            each: Any = _number_of_step if weights is None else weights
            declared = declare(average_weight=nonnegative(each))
    every_step = kind != "last" and isinstance(period, int) and period == 1

    def init(params: Tree) -> IterateAverageState:
        mean = zeros(numerics.unbox(params) if kind == "last" else params)
        if kind == "last":
            mean = jax.tree.map(lambda m: jnp.stack([jnp.zeros_like(m)] * window), mean)
        none = jnp.zeros([], jnp.int32)
        share = jnp.ones([], numerics.default_float())
        due = jnp.zeros([], jnp.bool_)
        total = jnp.zeros_like(share) if kind == "weighted" else None
        weight_sum = jnp.zeros_like(share) if debias else None
        todo = Weights(share, jnp.zeros([], jnp.int32))
        return IterateAverageState(mean, none, due, todo, total, weight_sum)

    def apply(
        update: Tree, state: IterateAverageState, step: Step
    ) -> tuple[Tree, IterateAverageState]:
        share, total, weight_sum = state.next.share, state.total, state.weight_sum
        if by_step:
            assert total is not None
            size = _step_size(step)
            seen = total + size
            share = lax.select(seen > 0, size / numerics.nonzero(seen), jnp.ones_like(seen))
            total = lax.select(state.due, seen, total)

        def collect(mean: jax.Array, theta: jax.Array) -> jax.Array:
            wide = numerics.widen(jnp.asarray(*jax.tree.leaves(theta)))  # perhaps in a box
            if kind == "last":
                wide = numerics.placed_like(wide, lax.index_in_dim(mean, 0, keepdims=False))
                return lax.dynamic_update_index_in_dim(mean, wide, state.next.slot, 0)
            return lax.add(mean, numerics.scaled(share, lax.sub(wide, mean)))

        def collected_into(mean: Tree, params: Tree) -> Tree:
            return jax.tree.map(collect, mean, params)

        if every_step:
            new = collected_into(state.mean, step.params)
            mean = jax.tree.map(lambda a, b: lax.select(state.due, a, b), new, state.mean)
        else:
            mean = numerics.branch(
                state.due, collected_into, lambda mean, _: mean, state.mean, step.params
            )
        if kind != "last":  # both read the parameters, which the update overwrites
            update = after(update, mean, kept=True)
        collected = lax.select(state.due, increment(state.collected), state.collected)
        done = increment(step.count)
        since = done - jnp.asarray(start, done.dtype)
        due = (since > 0) & (lax.rem(since, jnp.asarray(period, done.dtype)) == 0)
        if by_step:  # the weight of parameters is known only in the step that starts from them
            assert total is not None
            share = lax.select(total > 0, jnp.zeros_like(share), jnp.ones_like(share))
        elif kind == "weighted":
            assert total is not None
            weight = lax.select(due, step["average_weight"], jnp.zeros_like(total))
            total = total + weight
            share = lax.select(total > 0, weight / numerics.nonzero(total), jnp.ones_like(total))
        elif kind == "ema":
            rate = step["average_decay"]
            if warm_up:
                number = numerics.scalar(collected)
                rate = lax.min(rate, (1.0 + number) / (10.0 + number))
            share = 1.0 - rate
            if weight_sum is None:
                share = lax.select(collected == 0, jnp.ones_like(share), share)
            else:
                seen = rate * weight_sum + share
                share, weight_sum = share / seen, lax.select(due, seen, weight_sum)
        else:
            share = 1.0 / (numerics.scalar(collected) + 1.0)
        slot = lax.rem(collected, lax.full_like(collected, window))
        todo = Weights(share, slot)
        return update, IterateAverageState(mean, collected, due, todo, total, weight_sum)

    return stage(
        NAME,
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=init,
        hyperparams=declared,
        needs_params=True,
        weights="averaged",
    )


def _step_size(step: Step) -> jax.Array:
    if step.facts.step_size is None:
        raise ValueError(
            'weights="step_size" needs a stage that reports its step size, but the recipe has '
            "none: add scale_by_norm_estimate(), or give a number or a schedule."
        )
    return step.facts.step_size


def _number_of_step(count: jax.Array) -> jax.Array:
    return count + 1


def _steps(name: str, value: Any, least: int) -> Any:
    """Check a number of steps, but not an array, as from ``optax.inject_hyperparams``."""
    return value if isinstance(value, jax.Array) else whole_number(name, value, least)


def _last(kept: Any, theta: Any, axis: int, due: Any, collected: Any, slot: Any) -> jax.Array:
    """Return the mean of the kept parameters along an axis, with the current ones if due."""
    window = kept.shape[axis]
    rows = lax.broadcasted_iota(
        jnp.int32, (1,) * axis + (window,) + (1,) * (theta.ndim - axis), axis
    )
    fresh = jnp.expand_dims(due, axis) & (rows == jnp.expand_dims(slot, axis))
    filled = fresh | (rows < jnp.expand_dims(collected, axis))
    values = jnp.where(fresh, jnp.expand_dims(theta, axis), kept)
    values = jnp.where(filled, values, jnp.zeros_like(values))
    number = jnp.sum(filled.astype(numerics.default_float()), axis=axis)
    mean = jnp.sum(values, axis=axis) / numerics.like(jnp.maximum(number, 1.0), values)
    return jnp.where(number > 0, mean, theta)
