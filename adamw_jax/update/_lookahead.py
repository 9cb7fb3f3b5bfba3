"""Apply Lookahead (Zhang, Lucas, Hinton & Ba, NeurIPS 2019, arXiv 1907.08610).

    every sync_period steps:  slow <- slow + alpha (fast - slow);  fast <- slow

The fast weights are the parameters, at which gradients are taken; the state keeps the slow weights.
A sync moves the parameters to the new slow weights. The next step copies them into the state, in a
``lax.cond``, so that a step needs no scratch memory and steps between syncs only read the slow
weights. So if the parameters are changed between these two steps (by a projection, by loading other
weights), the slow weights change with them, except for leaves narrower than float32, whose slow
weights are stored at the sync. Two Lookaheads of one parameter would disturb each other, and
raise an error.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw, compose, eval_params
>>> tx = compose(adamw(1e-3), lookahead(sync_period=5, slow_step_size=0.5))
>>> params = jnp.ones(2)
>>> eval_params(tx.init(params), params)
Array([1., 1.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics, state as states
from adamw_jax._core.checks import one_of, whole_number
from adamw_jax._core.declare import ScalarOrSchedule, declare, fraction
from adamw_jax._core.gradients import entering
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import (
    Kind,
    Stage,
    Step,
    require_params,
    stage,
    tail,
    transformation,
)
from adamw_jax.update._inner_state import (
    INNER_STATES,
    check_restart,
    momentum_of,
    pulled_back,
    restarted,
)

Tree = Any

NAME = tail("lookahead")


class LookaheadState(NamedTuple):
    """State of Lookahead; ``eval_params`` gives the slow weights at any step.

    Attributes:
      slow: slow weights, params-shaped. Right after a sync they are those of the previous sync,
        except for leaves narrower than the accumulator dtype.
      since_sync: steps since the last sync, int32; at 0 the parameters are the slow weights.
    """

    slow: Tree
    since_sync: jax.Array
    exact = ("slow",)

    owns = "slow"

    def eval_params(self) -> tuple[Tree, Any]:
        """Return the slow weights (right after a sync these are the parameters)."""

        def evaluate(slow: jax.Array, fast: jax.Array) -> jax.Array:
            if slow.dtype != fast.dtype:
                return slow
            return jnp.where(numerics.broadcastable(self.since_sync, fast) == 0, fast, slow)

        return self.slow, evaluate


class LookaheadWrapperState(NamedTuple):
    """State of ``lookahead(inner=...)``.

    Attributes:
      lookahead: slow weights and counter.
      steps: updates made, int32.
      inner: state of the wrapped transformation.
      momentum: its momentum at the last sync with ``inner_state="pullback"``, else empty.
    """

    lookahead: LookaheadState
    steps: jax.Array
    inner: Any
    momentum: Any


@shows_options
def lookahead(
    inner: optax.GradientTransformation | None = None,
    sync_period: int = 5,
    slow_step_size: ScalarOrSchedule = 0.5,
    *,
    inner_state: str = "keep",
) -> Any:
    """Add Lookahead at the end of a recipe, or wrap any optax transformation in it.

    Args:
      inner: None for a stage, as in ``compose(adamw(1e-3), lookahead())``, which must come after
        the learning rate. Or the transformation to wrap, which includes its learning rate.
      sync_period: steps k between syncs, >= 1; 5 (recommended by the paper).
      slow_step_size: alpha in [0, 1], or a schedule of it; 0.5 (paper; the authors' code has 0.8).
        1 does not change the inner optimizer.
      inner_state: effect of a sync on the state of ``inner``. ``"keep"`` does not change it.
        ``"reset"`` starts its moments again, also those of optax; counts of schedules, averages,
        keys and histories stay. ``"pullback"`` mixes alpha of the momentum with 1 - alpha of that
        at the last sync.

    Returns:
      A stage *update -> update*, or the wrapping transformation. Both take ordinary parameters,
      unlike ``optax.lookahead``, and ``eval_params(state, params)`` gives the slow weights. A
      parameter can have only one Lookahead: of two, the inner one would not know that the outer one
      has moved the parameter at a sync, and would go part of the way back at its own next sync.

    Raises:
      ValueError: ``inner_state`` is given without ``inner``, or (in ``init``) the inner optimizer
        has a Lookahead of the same parameters, no single momentum to pull back, or no arrays that
        are known as moments to reset.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> tx = aj.compose(aj.adamw(1e-3), aj.lookahead(sync_period=5, slow_step_size=0.5))
      >>> params = {"w": jnp.ones(3)}
      >>> slow = aj.eval_params(tx.init(params), params)
    """
    sync_period = whole_number("sync_period", sync_period)
    one_of("inner_state", inner_state, INNER_STATES)
    declared = declare(slow_step_size=fraction(slow_step_size))
    if inner is not None:
        return _wrapper(inner, sync_period, declared["slow_step_size"], inner_state)
    if inner_state != "keep":
        raise ValueError(
            f"inner_state={inner_state!r} changes the state of a wrapped optimizer: give it as "
            "inner=, or leave inner_state out."
        )

    def apply(update: Tree, state: LookaheadState, step: Step) -> tuple[Tree, LookaheadState]:
        due = state.since_sync + 1 >= sync_period
        return _advanced(due, update, state, step.params, step["slow_step_size"])

    return stage(
        NAME,
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=_start,
        hyperparams=declared,
        needs_params=True,
    )


def _start(params: Tree) -> LookaheadState:
    return LookaheadState(numerics.copied(params), jnp.zeros([], jnp.int32))


def _advanced(
    due: jax.Array, update: Tree, state: LookaheadState, params: Tree, alpha: jax.Array
) -> tuple[Tree, LookaheadState]:
    """Return the update (at a sync, to the new slow weights) and the new state."""
    slow = _renewed(state, params)
    update = numerics.leaving(update, update, params)  # wide enough for the way back

    def moved(u: jax.Array, s: jax.Array, p: jax.Array) -> jax.Array:
        fast = numerics.widen(p) + numerics.widen(u)
        return s + numerics.like(alpha, s) * (fast - s)

    def leaf(u: jax.Array, s: jax.Array, p: jax.Array) -> jax.Array:
        back = moved(u, s, p) - numerics.widen(p)
        u = numerics.placed_like(u, back)
        return lax.select(due, lax.convert_element_type(back, u.dtype), u)

    def narrow(s: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
        return s if s.dtype == p.dtype else lax.select(due, moved(u, s, p), s)

    since = lax.select(due, jnp.zeros_like(state.since_sync), state.since_sync + 1)
    after = LookaheadState(jax.tree.map(narrow, slow, update, params), since)
    return jax.tree.map(leaf, update, slow, params), after


def _renewed(state: LookaheadState, params: Tree) -> Tree:
    """Return the slow weights of the last sync, the parameters if it was in the step before."""
    slow, structure = jax.tree.flatten(state.slow)
    fast = jax.tree.leaves(params)
    # A parameter narrower than its slow weight cannot replace it.
    same = [i for i, (s, p) in enumerate(zip(slow, fast, strict=True)) if s.dtype == p.dtype]
    new = numerics.branch(
        state.since_sync == 0,
        lambda slow, fast: fast,
        lambda slow, fast: slow,
        [slow[i] for i in same],
        [numerics.placed_like(jnp.asarray(fast[i]), slow[i]) for i in same],
    )
    for i, value in zip(same, new, strict=True):
        slow[i] = value
    return jax.tree.unflatten(structure, slow)


def _check_slow(state: LookaheadState, params: Tree) -> None:
    for s, p in zip(jax.tree.leaves(state.slow), jax.tree.leaves(params), strict=True):
        if s.dtype != numerics.compute_dtype(p):
            raise ValueError(
                f"the slow weights were made for {s.dtype}, but are {numerics.compute_dtype(p)} "
                "now: the state was cast, or jax_enable_x64 was switched. Start with "
                "tx.init(params), or convert a recipe's state with migrate_state."
            )


def _wrapper(inner: Any, sync_period: int, alpha: Any, inner_state: str) -> Stage | Any:
    fast: Any = transformation(inner, "inner")

    def init(params: Tree) -> LookaheadWrapperState:
        params = numerics.as_arrays(params)
        state = fast.init(params)
        momentum: Any = optax.EmptyState()
        if inner_state == "reset":
            check_restart(state)
        elif inner_state == "pullback":
            momentum = jax.tree.map(jnp.zeros_like, momentum_of(state))
        made = LookaheadWrapperState(_start(params), jnp.zeros([], jnp.int32), state, momentum)
        states.check_owners(made)
        return made

    def update(updates: Tree, state: LookaheadWrapperState, params: Tree | None = None, **extra):
        require_params("lookahead", params)
        updates, params = entering(updates, params)
        _check_slow(state.lookahead, params)
        fast_updates, inner_new = fast.update(updates, state.inner, params, **extra)
        due = state.lookahead.since_sync + 1 >= sync_period
        rate = alpha.at(state.steps)
        new, tail = _advanced(due, fast_updates, state.lookahead, params, rate)
        momentum = state.momentum
        if inner_state == "reset":
            inner_new = numerics.branch(
                due, lambda s: restarted(s, fast.init(params)), lambda s: s, inner_new
            )
        elif inner_state == "pullback":
            inner_new, momentum = numerics.branch(
                due,
                lambda s, old: pulled_back(s, old, rate),
                lambda s, old: (s, old),
                inner_new,
                momentum,
            )
        return new, LookaheadWrapperState(
            tail, numerics.increment(state.steps), inner_new, momentum
        )

    return optax.GradientTransformationExtraArgs(init, cast(Any, update))
