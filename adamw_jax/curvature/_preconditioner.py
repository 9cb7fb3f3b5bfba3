"""Compute the diagonal P by which an optimizer divides, from its state.

    update = -lr m / P;        Adam:  P = (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps)

m is the first moment as stored, so its bias correction is part of P, as in Cohen et al. 2022, arXiv
2207.14484. The stages of the recipe that follow the accumulators are run on a first moment of ones,
and their result is 1 / P. In recipes without moments, one stage declares a function ``slopes`` that
computes 1 / P.

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
from adamw_jax._core.compose import Composed
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.late import LATE
from adamw_jax._core.passes import check_state, live_at
from adamw_jax._core.record import Moments, Reading
from adamw_jax._core.stage import Facts, Kind, Spec, Step
from adamw_jax._core.state import ComposeState, find
from adamw_jax._core.wrapper import innermost
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
    """Return P of the last update; for recipes without moments, P of the next one.

    Args:
      tx: a recipe of this library, such as ``adamw(1e-3)``.
      opt_state: the state of ``tx`` after at least one update, under any wrapper. A state from
        ``quantize_state`` is decoded; P then has the precision of the codes. Or a state of optax's
        ``adam``, ``adamw``, ``adamax``, ``amsgrad``, ``radam``, ``adabelief`` or ``sgd`` with
        momentum; ``tx`` is then the recipe with the same numbers.
      params: the parameters.
      gradient: for ``koala_v`` and ``koala_m`` only: the gradient at ``params``.
      value: for these two: the loss at ``params``, from which both compute the length of a step.
      value_sq_mean: for these two: the same argument as for ``update``, if it gets one.

    Returns:
      A tree like ``params``, in float32 or wider. P contains every factor between
      ``estimate_moments`` and the direction: maxima, bias correction, powers, eps, RAdam's
      rectifier. It is inf where a step is skipped or a leaf is frozen, and 1 for a recipe without
      second moment (SGD). It does not contain later factors of a whole leaf or step (trust ratios,
      clipping, the learning rate), nor Nesterov's look-ahead and diffGrad's friction, which need a
      gradient.

      For recipes without moments P is the divisor of the next gradient: the estimated norm and the
      floor for ``norm_adaptive_sgd`` (of the last step with ``use_previous=False``),
      S / (P_11 l) of a leaf for ``koala_v``, and S / ((P_11 + P_21) l) for ``koala_m``, whose
      gradient moves parameters and velocity. KOALA's gradient is the one after clipping and L2. Its
      l is the loss, with decay, minus its target; if l is negative, so is P.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> tx = aj.adam(1e-3)
      >>> _, state = tx.update(batch, tx.init(params), params)
      >>> divisor = aj.curvature.preconditioner(tx, state, params)
    """
    loss = {"value": value, "value_sq_mean": value_sq_mean}
    slopes = inverse_preconditioner(tx, opt_state, params, gradient, loss)
    return jax.tree.map(lambda slope: 1.0 / slope, slopes)


def inverse_preconditioner(
    tx: Composed, opt_state: State, params: Tree, gradient: Tree | None, loss: Mapping[str, Any]
) -> Tree:
    """Return 1 / P, as ``preconditioner``; ``loss`` holds the extra arguments of KOALA."""
    tx = innermost(tx)
    if not isinstance(tx, Composed):
        raise TypeError(
            "tx must be a recipe of adamw_jax (for a state of optax, the recipe with the same "
            f"numbers), such as adam(1e-3, b1=0.9, b2=0.999, eps=1e-8); got {tx!r}."
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
    """Return whether the preconditioner of ``tx`` depends on the gradient and the loss."""
    tx = innermost(tx)
    specs = tx.specs if isinstance(tx, Composed) else ()
    return any(spec.slopes is not None and spec.slopes.needs_loss for spec in specs)


def _place(tx: Composed) -> int:
    """Return the index of the stage that owns the accumulators."""
    specs = list(tx.specs)
    starts = [
        i
        for i, spec in enumerate(specs)
        if spec.gives is Kind.MOMENTS is not spec.takes or spec.slopes is not None
    ]
    if len(starts) != 1:
        raise ValueError(
            "tx must have exactly one estimate_moments stage, or one filter or norm estimate in "
            f"its place; tx has {len(starts)} among {[spec.name for spec in specs]}."
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
            "of one, and the parameters that it updates."
        )
    state = found[0][1]
    check_state(state, tx.hyperparams, tx.specs)
    if LATE in state.stages:
        raise ValueError(
            "opt_state has leaves that joined later, with a bias correction of their own, which "
            "the preconditioner does not read: freeze them for this measurement, with "
            "migrate_state(opt_state, tx, params, thaw=True)."
        )
    return state


def _slopes(
    tx: Composed,
    at: int,
    state: ComposeState,
    params: Tree,
    gradient: Tree | None,
    loss: Mapping[str, Any],
) -> Tree:
    """Return 1 / P of the parameters that are not frozen."""
    source, memory = tx.specs[at], state.stages[tx.specs[at].name]
    count = memory.steps if source.slopes is None else state.count
    if not isinstance(count, jax.core.Tracer) and not jnp.all(count > 0):
        raise ValueError("opt_state has made no update: call tx.update first.")
    facts = Facts(decoded=True)

    # Moments divided the last step; the other preconditioners divide the next one.
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
    facts.gradient = ones
    if source.slopes is None:
        after = [spec for spec in tx.specs[at + 1 :] if spec.takes is Kind.MOMENTS]
        after = [spec for spec in after if spec.reads != "gradient"]
        return _of_moments(source, after, state, ones, step)
    if source.slopes.needs_loss:
        if gradient is None or loss["value"] is None:
            raise ValueError(
                f"{source.name} computes the length of its step from the loss: give gradient= and "
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
    """Compute the direction for a first moment of ones and the stored second moment."""
    memory = state.stages[estimate.name]
    # The stage reads the stored moments before it adds a gradient. A count of -2 keeps it from
    # restarting the moments now.
    unstarted = memory._replace(steps=jnp.full_like(memory.steps, -2))
    record, _ = estimate.apply(ones, unstarted, step(estimate))
    delayed = any(spec.reads == "prior" for spec in stages)
    ones = record.gradient  # in the layout of the accumulators, which may pack small leaves
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
