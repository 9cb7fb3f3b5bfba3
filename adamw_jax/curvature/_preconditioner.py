"""The diagonal by which an optimizer divides, read from its state.

    update = -lr m / P;        Adam:  P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)

with m the first moment as stored, so that its bias correction is part of P, as in Cohen et al.
2022, arXiv 2207.14484. Nothing is rewritten for it: the stages of the recipe that follow the
accumulators are run on a first moment of ones, and what comes out is 1 / P. Recipes without moments
have a stage that says its ``slopes``.

>>> import jax.numpy as jnp
>>> from adamw_jax import adam
>>> tx, params = adam(0.1, b1=0.9, eps=0.0), jnp.ones(2)
>>> _, state = tx.update(jnp.array([2.0, 8.0]), tx.init(params), params)
>>> preconditioner(tx, state, params).round(3)
Array([0.2, 0.8], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import optax

from adamw_jax._core import masks, numerics
from adamw_jax._core.compose import Composed, check_state, live_at
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.record import Moments, Reading
from adamw_jax._core.stage import Facts, Kind, Spec, Step
from adamw_jax._core.state import ComposeState, find
from adamw_jax.curvature._products import real_params
from adamw_jax.state import from_optax

State = Any
Tree = Any


def preconditioner(
    tx: Composed,
    opt_state: State,
    params: Tree,
    *,
    gradient: Tree | None = None,
    value: Any = None,
    value_sq_mean: Any = None,
) -> Tree:
    """P of the last update of ``tx``; of the next one where that is what its state holds.

    Args:
      tx: a recipe of this library, such as ``adamw(1e-3)``.
      opt_state: its state under any wrapper, small ones included (``quantize_state``, with what
        codes cost in precision), after an update at least; or a state of optax's
        ``adam``, ``adamw``, ``adamax``, ``amsgrad``, ``radam``, ``adabelief`` or ``sgd`` with
        momentum, for which ``tx`` is the recipe with the same numbers.
      params: the parameters.
      gradient: for ``koala_v`` and ``koala_m``: the gradient at ``params``.
      value: likewise the loss, of which both filters make the length of their steps.
      value_sq_mean: likewise, where ``update`` gets one.

    Returns:
      A tree like ``params``, float32 at least. It has what stands between ``estimate_moments`` and
      the direction: maxima, bias correction, powers, eps in its place, RAdam's rectifier; inf where
      a step is skipped or a leaf is frozen. It is 1 for a recipe without second moment (SGD). It
      has not what multiplies a whole leaf or the whole step later (trust ratios, clipping, the
      learning rate), nor Nesterov's look-ahead and diffGrad's friction, which need a gradient.

      Of the others it is what the next step divides the gradient by: the estimated norm and the
      floor (``norm_adaptive_sgd``; of the last step with ``use_previous=False``), S / (P_11 l) of a
      leaf (``koala_v``), S / ((P_11 + P_21) l) (``koala_m``, whose gradient moves parameters and
      velocity). For KOALA that is the gradient as clipping and L2 leave it, l the loss above its
      target, with decay; P is negative where l is.

    Raises:
      TypeError: ``tx`` is no recipe of this library.
      ValueError: it has no stage of a known preconditioner, ``opt_state`` is not its state, no
        update has been made, or KOALA got no ``gradient`` and ``value``.
    """
    loss = {"value": value, "value_sq_mean": value_sq_mean}
    slopes = inverse_preconditioner(tx, opt_state, params, gradient, loss)
    return jax.tree.map(lambda slope: 1.0 / slope, slopes)


def inverse_preconditioner(
    tx: Composed, opt_state: State, params: Tree, gradient: Tree | None, loss: Mapping[str, Any]
) -> Tree:
    """1 / P; arguments and errors as for ``preconditioner``, with the loss as extra arguments."""
    if not isinstance(tx, Composed):
        raise TypeError(
            "tx must be a recipe of adamw_jax, for a state of optax the one with the same numbers, "
            f"such as adam(1e-3, b1=0.9, b2=0.999, eps=1e-8); got {tx!r}."
        )
    given = params
    params, gradient = numerics.unbox(real_params(params)), numerics.unbox(gradient)
    found = _plain_inverse(tx, numerics.unbox(opt_state), params, gradient, loss)
    return jax.tree.unflatten(jax.tree.structure(given), jax.tree.leaves(found))


def _plain_inverse(
    tx: Composed, opt_state: State, params: Tree, gradient: Tree | None, loss: Mapping[str, Any]
) -> Tree:
    at = _place(tx)
    state = _state(tx, opt_state, params)
    if tx.frozen is None:
        return _slopes(tx, at, state, params, gradient, loss)
    still = masks.resolve(tx.frozen, params, "frozen")
    if gradient is not None:
        gradient = masks.hide(gradient, still)
    some = _slopes(tx, at, state, masks.hide(params, still), gradient, loss)
    moving = jax.tree.map(lambda frozen: not frozen, still)
    nothing = jax.tree.map(lambda p: jnp.zeros(p.shape, numerics.default_float()), params)
    return masks.merge(moving, some, nothing)


def measures_loss(tx: Any) -> bool:
    """Whether the preconditioner of ``tx`` depends on the gradient and the loss."""
    specs = tx.specs if isinstance(tx, Composed) else ()
    return any(spec.slopes is not None and spec.slopes.needs_loss for spec in specs)


def _place(tx: Composed) -> int:
    """The place of the stage that owns the accumulators."""
    specs = list(tx.specs)
    starts = [
        i
        for i, spec in enumerate(specs)
        if spec.gives is Kind.MOMENTS is not spec.takes or spec.slopes is not None
    ]
    if len(starts) != 1:
        raise ValueError(
            "a preconditioner is read from a recipe with one estimate_moments stage, or one filter "
            f"or norm estimate in its place; tx has {len(starts)} among "
            f"{[spec.name for spec in specs]}."
        )
    return starts[0]


def _state(tx: Composed, opt_state: State, params: Tree) -> ComposeState:
    opt_state = decode_state(opt_state)
    found = find(opt_state, ComposeState)
    if not found:
        return from_optax(opt_state, tx, params)
    if len(found) > 1:
        raise ValueError(
            f"opt_state has {len(found)} recipes, at {[path for path, _ in found]}: give the state "
            "of one, and the parameters it moves."
        )
    state = found[0][1]
    check_state(state, tx.hyperparams, tx.specs)
    return state


def _slopes(
    tx: Composed,
    at: int,
    state: ComposeState,
    params: Tree,
    gradient: Tree | None,
    loss: Mapping[str, Any],
) -> Tree:
    """1 / P of the parameters that move."""
    source, memory = tx.specs[at], state.stages[tx.specs[at].name]
    count = memory.steps if source.slopes is None else state.count
    if not isinstance(count, jax.core.Tracer) and not jnp.all(count > 0):
        raise ValueError("opt_state is that of an optimizer that has made no update: make a step.")
    facts = Facts(decoded=True)

    # Moments divided the last step, the others divide the step to come.
    live = state.hyperparams
    if source.slopes is not None:
        live = live_at(live, state.count, tx.hyperparams)

    def step(spec: Spec) -> Step:
        values = {}
        for name in spec.hyperparams:
            own = f"{spec.name}.{name}"
            values[name] = live.value(own if own in live.names else name)
        return Step(state.count, values, params, loss, facts)

    ones = jax.tree.map(lambda p: jnp.ones(p.shape, numerics.default_float()), params)
    if source.slopes is None:
        after = [spec for spec in tx.specs[at + 1 :] if spec.takes is Kind.MOMENTS]
        after = [spec for spec in after if spec.reads != "gradient"]
        return _of_moments(source, after, state, ones, step)
    if source.slopes.needs_loss:
        if gradient is None or loss["value"] is None:
            raise ValueError(
                f"{source.name} makes the length of its step of the loss: give gradient= and "
                "value=, the gradient and the loss at params."
            )
        for spec in tx.specs[:at]:
            gradient, _ = spec.apply(
                gradient, state.stages.get(spec.name, optax.EmptyState()), step(spec)
            )
    factors = source.slopes.of(gradient, memory, step(source))
    return jax.tree.map(lambda one, factor: one * factor, ones, factors)


def _of_moments(
    estimate: Spec,
    stages: list[Spec],
    state: ComposeState,
    ones: Tree,
    step: Callable[[Spec], Step],
) -> Tree:
    """The direction of the recipe for a first moment of ones and the stored second moment."""
    memory = state.stages[estimate.name]
    # What the stage reads before it takes a gradient in is what is stored; the count it compares
    # with a restart period must not call for one now.
    unstarted = memory._replace(steps=jnp.full_like(memory.steps, -2))
    record, _ = estimate.apply(ones, unstarted, step(estimate))
    delayed = any(spec.reads == "prior" for spec in stages)
    ones = record.gradient  # as accumulators lie, also where small leaves are packed
    record = Moments(
        gradient=ones,
        count=memory.steps + 1 if delayed else memory.steps,
        first=Reading(ones, getattr(memory.first, "clock", None), record.first.rate),
        second=record.prior_second,
        prior_second=record.prior_second,
        magnitude=record.magnitude,
    )
    flow: Any = record
    for spec in stages:
        flow, _ = spec.apply(flow, state.stages.get(spec.name), step(spec))
    return flow
