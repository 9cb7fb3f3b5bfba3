"""Convert states to and from those of optax, for the Adam family and SGD.

Accumulators with the same meaning are the same arrays under other names. The scalars of bias
correction (``Clock``) follow from optax's count t of the moments, if the decay rate b is constant:
weight_sum = 1 - b^t, weighted_age = b (1 - b^t) / (1 - b) - t b^t. Schedules have a count of their
own, which a restart of the moments does not reset.

>>> import jax.numpy as jnp, optax
>>> from adamw_jax import adamw
>>> params = {"w": jnp.ones(2)}
>>> state = from_optax(optax.adamw(1e-3).init(params), adamw(1e-3), params)
>>> type(to_optax(state, optax.adamw(1e-3), params)[0]).__name__
'ScaleByAdamState'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax._core import numerics, state as states
from adamw_jax._core.boxes import boxed
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import declare
from adamw_jax._core.encoded import decode_state, encode_like
from adamw_jax._core.late import LATE
from adamw_jax._core.record import Clock
from adamw_jax._core.stage import transformation
from adamw_jax._core.state import ComposeState
from adamw_jax._core.wrapper import Wrapper, fill_inner
from adamw_jax.moments import (
    CorrectedMaximumState,
    MaximumState,
    MomentsState,
)
from adamw_jax.moments._correct_bias import one_minus_power
from adamw_jax.moments._parts import with_moment
from adamw_jax.state._optax_nodes import (
    check_understood,
    fields_of,
    holder_of,
    holders_of,
    is_zero,
    schedule_count,
    their_state,
    with_schedule_count,
)
from adamw_jax.update._learning_rate import ScaledGradientState

State = Any
Tree = Any


def from_optax(
    saved: State,
    tx: Composed | Wrapper,
    params: Tree,
    *,
    b1: float | None = None,
    b2: float | None = None,
) -> State:
    """Convert the state of an optax optimizer to a state of the recipe ``tx``.

    Args:
      saved: state of ``optax.adam``, ``adamw``, ``adamax``, ``amsgrad``, ``radam``, ``adabelief``
        or ``sgd`` with momentum, wrapped or not. Optax keeps the same state for ``adam``,
        ``adamax`` and ``radam``; it is read as that of ``tx``.
      tx: the recipe of this library to continue with, also in ``skip_bad_steps`` and the like.
      params: current parameters.
      b1: decay rate of the first moment in the saved run, which is not in its state; None for that
        of ``tx``, which must then be a number.
      b2: the same for the second moment.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: ``saved`` has no state of that family or several, its accumulators differ from
        those of ``tx`` in number, meaning or shape, or a decay rate of ``tx`` is a schedule and
        ``b1`` or ``b2`` is not given.

    Example:
      >>> import jax.numpy as jnp, optax, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> saved = optax.adamw(1e-3).init(params)
      >>> state = aj.from_optax(saved, aj.adamw(1e-3), params)
    """
    if isinstance(tx, Wrapper):
        inside: Any = tx.inner
        filled = from_optax(numerics.on_device(saved), inside, params, b1=b1, b2=b2)
        return numerics.in_memory_of(fill_inner(tx, params, filled, saved), saved)
    if not isinstance(tx, Composed):
        raise TypeError(f"tx must be a recipe of adamw_jax, such as adamw(1e-3), got {tx!r}.")
    plain = numerics.on_device(numerics.unbox(saved))
    theirs = their_state(plain)
    check_understood(plain)
    target = tx.init(numerics.unbox(numerics.as_arrays(params)))
    ours: Any = decode_state(target)
    scheduled = schedule_count(plain)
    steps = _their_count(theirs, scheduled)
    moments, maximum = known_stages(ours.stages)
    if moments is None:
        raise ValueError("tx has no estimate_moments stage, which would take the accumulators.")
    check_stages(tx, ours.stages, (moments, maximum))
    rates = next(spec.hyperparams for spec in tx.specs if spec.name == moments)
    fields, held = fields_of(theirs), ours.stages[moments]
    first = filled_part(
        held.first, theirs, fields.momentum, "first moment", steps, rates, ("b1", b1)
    )
    second = filled_part(
        held.second, theirs, fields.second, "second moment", steps, rates, ("b2", b2)
    )
    stages = {**ours.stages, moments: MomentsState(first, second, steps)}
    if maximum is not None:
        if not fields.maximum:
            raise ValueError("tx keeps AMSGrad's maximum, which the saved state does not have.")
        if not isinstance(stages[maximum], CorrectedMaximumState):
            raise ValueError(
                "tx keeps the maximum of the raw second moment, the saved state that of the "
                'corrected one: build tx with maximum="corrected".'
            )
        value = _fit(getattr(theirs, fields.maximum), stages[maximum][0], "maximum")
        stages[maximum] = CorrectedMaximumState(value)
    elif fields.maximum:
        raise ValueError("the saved state has AMSGrad's maximum, for which tx has no place.")
    count = jnp.array(steps if scheduled is None else scheduled, jnp.int32, copy=True)
    filled = encode_like(target, ours._replace(count=count, stages=stages))
    return numerics.in_memory_of(boxed(filled, tx, params, saved), saved)


def to_optax(state: State, tx: optax.GradientTransformation, params: Tree) -> State:
    """Convert the state of a recipe to a state of the optax optimizer ``tx``.

    This is the inverse of ``from_optax``, with the same errors. Hyperparameters, pinned or not,
    have no place in optax and are dropped.

    Args:
      state: the state of one recipe of this library, wrapped or not.
      tx: the optax optimizer to continue with: ``adam``, ``adamw``, ``adamax``, ``amsgrad``,
        ``radam``, ``adabelief`` or ``sgd`` with momentum.
      params: current parameters.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: there is no recipe in ``state`` or several, or it holds arrays for which ``tx``
        has no place, such as averaged weights: read them with ``eval_params`` first.

    Example:
      >>> import jax.numpy as jnp, optax, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.adamw(1e-3)
      >>> state = tx.init(params)
      >>> theirs = aj.to_optax(state, optax.adamw(1e-3), params)
    """
    tx = transformation(tx, "tx")
    plain = numerics.on_device(numerics.unbox(state))
    target = tx.init(numerics.unbox(numerics.as_arrays(params)))
    plain = states.replace(plain, _has_leftovers, lambda _, node: node.settled())
    found = states.nodes(plain, ComposeState)
    if len(found) != 1:
        raise ValueError(f"state must hold one recipe of adamw_jax, found {len(found)}.")
    root, ours = found[0][0], decode_state(found[0][1])
    moments, maximum = known_stages(ours.stages)
    theirs: Any = their_state(target)
    fields = fields_of(theirs)
    if moments is None or (maximum is None) != (not fields.maximum):
        raise ValueError(
            f"the recipe's stages {sorted(ours.stages)} do not fit optax's {type(theirs).__name__}."
        )
    if any(isinstance(memory, ScaledGradientState) for memory in ours.stages.values()):
        raise ValueError(_INSIDE.format("the recipe"))
    if LATE in ours.stages:
        raise ValueError(
            f"optax's {type(theirs).__name__} has one count for all leaves, but the state has "
            "leaves that joined late (thaw=True), which are corrected by clocks of their own."
        )
    if more := sorted(set(ours.stages) - {moments, maximum}):
        raise ValueError(f"optax's {type(theirs).__name__} has no place for the state of {more}.")
    new: dict[str, Any] = {}
    held = ours.stages[moments]
    for part, field, what in (
        (held.first, fields.momentum, "first moment"),
        (held.second, fields.second, "second moment"),
    ):
        if bool(field) != hasattr(part, "moment"):
            raise ValueError(f"only one of the two states has a {what}.")
        if field:
            _check_meaning(part, field, theirs, what)
            new[field] = _fit(part.moment, getattr(theirs, field), what)
    if maximum is not None:
        largest = ours.stages[maximum]
        if not isinstance(largest, CorrectedMaximumState):
            raise ValueError(
                "the recipe keeps the maximum of the raw second moment, optax that of the "
                'corrected one: only a recipe with maximum="corrected" can be converted.'
            )
        like = getattr(theirs, fields.maximum)
        new[fields.maximum] = _fit(largest.corrected_maximum, like, "maximum")
    if "count" in theirs._fields:  # ``hasattr`` would find the method of tuples
        new["count"] = jnp.array(held.steps, jnp.int32, copy=True)
    target = states.replace(target, type(theirs), lambda _, node: node._replace(**new))
    target = with_schedule_count(target, ours.count)
    outside = _outside(plain, root, target, numerics.unbox(params))
    made = _with_leaves(target, outside)
    # Copy arrays of the caller that ``tx`` may hold, such as a learning rate.
    made = jax.tree.map(lambda x: x if x.ndim else jnp.array(x, copy=True), made)
    return numerics.in_memory_of(boxed(made, tx, params, state), state)


def _outside(state: State, root: Any, target: State, params: Tree) -> dict[Any, Any]:
    """Return the leaves outside the recipe in ``state`` with the same place in ``target``, by path.

    Raises:
      ValueError: a nonzero array has no place, and is not only a schedule's or a wrapper's.
    """
    places = dict(jax.tree_util.tree_leaves_with_path(target))
    owners = dict(jax.tree_util.tree_leaves_with_path(params))
    kept: dict[Any, Any] = {}
    holders = holders_of(state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    starts = numerics.owners_in([path for path, _ in leaves], owners)
    for (path, leaf), start in zip(leaves, starts, strict=True):
        if path[: len(root)] == root:
            continue
        owner = None if start is None else owners[path[start:]]
        place = places.get(path)
        if place is not None and (place.shape, place.dtype) == (leaf.shape, leaf.dtype):
            kept[path] = jnp.array(leaf, copy=True)
            continue
        like_a_parameter = owner is not None and leaf.shape == jnp.shape(owner)
        holder = holder_of(holders, path)
        wraps = fields_of(holder).wraps or getattr(type(holder), "wraps", False)
        if not is_zero(leaf) and (like_a_parameter or not wraps):
            raise ValueError(
                f"optax's state has no place for {numerics.leaf_name(path)!r}, which is outside "
                "the recipe: wrap tx in the same way, or read averaged weights with eval_params."
            )
    return kept


def _has_leftovers(node: Any) -> bool:
    """Return whether a state may hold arrays without a meaning, which ``settled()`` clears."""
    return hasattr(type(node), "settled")


def _with_leaves(state: State, values: dict[Any, Any]) -> State:
    return jax.tree_util.tree_map_with_path(lambda path, x: values.get(path, x), state)


def known_stages(stages: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the names of the stages with the moments and with AMSGrad's maximum."""
    kinds = (MomentsState, (MaximumState, CorrectedMaximumState))
    moments, maximum = (
        next((name for name, memory in stages.items() if isinstance(memory, kind)), None)
        for kind in kinds
    )
    return moments, maximum


def _check_meaning(part: Any, field: str, theirs: Any, what: str) -> None:
    """Raise if an accumulator of the recipe has another meaning than that of optax."""
    if f"{type(theirs).__name__}.{field}" not in getattr(type(part), "twins", ()):
        raise ValueError(
            f"the {what} of the recipe is of the kind {type(part).__name__}, but "
            f"{type(theirs).__name__} holds another."
        )


_INSIDE = "{} has the learning rate inside its momentum, but optax applies it outside."


def check_stages(tx: Composed, held: Any, known: tuple[str | None, ...]) -> None:
    """Raise if a stage of ``tx``, other than a tail, has state that optax's does not have."""
    for spec in tx.specs:
        if isinstance(held.get(spec.name), ScaledGradientState):
            raise ValueError(_INSIDE.format("tx"))
        new = spec.takes is not None and not spec.tail and spec.name in held
        if new and spec.name not in known:
            raise ValueError(f"tx has a state of {spec.name}, which the saved one does not have.")


def _their_count(theirs: Any, scheduled: jax.Array | None) -> jax.Array:
    """Return the number of updates in the moments; ``optax.trace`` has no count of its own."""
    own = theirs.count if "count" in theirs._fields else scheduled
    return jnp.array(0 if own is None else own, jnp.int32, copy=True)


def filled_part(
    part: Any, theirs: Any, field: str, what: str, count: jax.Array, rates: Any, rate: Any
) -> Any:
    """Return the state of a part with the accumulator ``field`` of the saved state."""
    if not hasattr(part, "moment"):
        if field:
            raise ValueError(f"the saved state has a {what}, for which tx has no place.")
        return part
    if not field:
        raise ValueError(f"tx has a {what}, which the saved {type(theirs).__name__} does not have.")
    _check_meaning(part, field, theirs, what)
    value = _fit(getattr(theirs, field), part.moment, what)
    if not hasattr(part, "clock"):
        return with_moment(part, value)
    name, given = rate
    if given is None and callable(rates[name].value):
        raise ValueError(
            f"{name} of tx is a schedule, and its value in the saved run is not known: give it as "
            f"from_optax(..., {name}=...)."
        )
    b = rates[name] if given is None else declare(**{name: rates[name].domain(given)})[name]
    return type(part)(value, clock_after(b.at(count), count))


def clock_after(b: jax.Array, count: jax.Array) -> Clock:
    """Return the clock of an average with constant rate ``b`` after ``count`` entries."""
    weight_sum = one_minus_power(b, count)
    if isinstance(b, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        lost = numerics.scalar(count) * (1 - weight_sum)
        return Clock.of(weight_sum, b * weight_sum / (1 - b) - lost)
    # Early on the age is a small difference of large terms: compute it on the host in float64.
    rate, steps = np.asarray(b, np.float64), np.asarray(count, np.float64)
    kept = rate**steps
    weighted_age = rate * (1 - kept) / (1 - rate) - steps * kept
    return Clock.of(weight_sum, jnp.asarray(weighted_age, weight_sum.dtype))


def _fit(values: Tree, like: Tree, what: str) -> Tree:
    if jax.tree.structure(values) != jax.tree.structure(like):
        raise ValueError(
            f"the {what} has leaves {numerics.leaf_names(values)}, expected "
            f"{numerics.leaf_names(like)}."
        )

    def leaf(path: Any, value: Any, place: Any) -> jax.Array:
        if jnp.shape(value) != place.shape:
            raise ValueError(
                f"the {what} of {numerics.leaf_name(path)!r} has shape {jnp.shape(value)}, "
                f"expected {place.shape}."
            )
        return jnp.array(value, dtype=place.dtype, copy=True)

    return jax.tree_util.tree_map_with_path(leaf, values, like)
