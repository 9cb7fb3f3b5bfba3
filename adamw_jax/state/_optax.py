"""To and from the states of optax, for the Adam family and SGD.

Accumulators of one meaning are the same arrays under other names; the clocks follow from optax's
count of moments for constant decay rates: mass = 1 - b^t, age = b (1 - b^t) / (1 - b) - t b^t. The
count of the schedules is another one, which goes on where moments were emptied.

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
from jax.tree_util import GetAttrKey

from adamw_jax._core import numerics, optax_states, state as states
from adamw_jax._core.boxes import boxed
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import declare
from adamw_jax._core.encoded import decode_state, encode_like
from adamw_jax._core.record import Clock
from adamw_jax._core.stage import transformation
from adamw_jax._core.state import ComposeState
from adamw_jax.moments import (
    AverageState,
    CenteredSquaresState,
    CorrectedMaximumState,
    HeavyBallState,
    InfinityNormState,
    MaximumState,
    MomentsState,
    SquaresState,
)
from adamw_jax.moments._correct_bias import one_minus_power
from adamw_jax.moments._parts import with_moment
from adamw_jax.update._learning_rate import ScaledGradientState

State = Any
Tree = Any


def from_optax(
    saved: State,
    tx: Composed,
    params: Tree,
    *,
    b1: float | None = None,
    b2: float | None = None,
) -> State:
    """The state of our recipe ``tx`` that goes on where an optax optimizer stood.

    Args:
      saved: state of ``optax.adam``, ``adamw``, ``adamax``, ``amsgrad``, ``radam``, ``adabelief``
        or ``sgd`` with momentum, wrapped or not.
      tx: the recipe of this library to go on with.
      params: current parameters.
      b1: decay rate of the first moment in the saved run, which its state does not tell; None for
        the one of ``tx``, which must be a number then.
      b2: the same for the second moment.

    Returns:
      A state of ``tx``.

    Raises:
      TypeError: ``tx`` is no recipe of this library.
      ValueError: there is no state of that family in ``saved``, or there are several; its
        accumulators are not those of ``tx`` in number, meaning or shape (what optax keeps for
        ``adam``, ``adamax`` and ``radam`` looks the same, and is taken for that of ``tx``); or a
        decay rate of ``tx`` is a schedule and the saved run's is not given.
    """
    if not isinstance(tx, Composed):
        raise TypeError(f"tx must be a recipe of adamw_jax, such as adamw(1e-3), got {tx!r}.")
    plain = numerics.unbox(saved)
    theirs = _their_state(plain)
    _check_understood(plain)
    target = tx.init(numerics.unbox(params))
    ours: Any = decode_state(target)
    scheduled = _schedule_count(plain)
    steps = _their_count(theirs, scheduled)
    moments, maximum = _known(ours.stages)
    if moments is None:
        raise ValueError("tx has no estimate_moments stage to take the accumulators.")
    _check_stages(tx, ours.stages, (moments, maximum))
    rates = next(spec.hyperparams for spec in tx.specs if spec.name == moments)
    fields, held = _fields(theirs), ours.stages[moments]
    first = _filled(held.first, theirs, fields.momentum, "first moment", steps, rates, ("b1", b1))
    second = _filled(held.second, theirs, fields.second, "second moment", steps, rates, ("b2", b2))
    stages = {**ours.stages, moments: MomentsState(first, second, steps)}
    if maximum is not None:
        if not fields.maximum:
            raise ValueError("tx keeps AMSGrad's maximum, which the saved state does not have.")
        if not isinstance(stages[maximum], CorrectedMaximumState):
            raise ValueError(
                "tx keeps the maximum of the raw second moment, the saved state that of the "
                'corrected one: give tx maximum="corrected".'
            )
        value = _fit(getattr(theirs, fields.maximum), stages[maximum][0], "maximum")
        stages[maximum] = CorrectedMaximumState(value)
    elif fields.maximum:
        raise ValueError("the saved state has AMSGrad's maximum, for which tx has no place.")
    count = jnp.array(steps if scheduled is None else scheduled, jnp.int32, copy=True)
    filled = encode_like(target, ours._replace(count=count, stages=stages))
    return boxed(filled, tx, params, saved)


def to_optax(state: State, tx: optax.GradientTransformation, params: Tree) -> State:
    """The state of the optax optimizer ``tx`` that goes on where a recipe of ours stood.

    The inverse of ``from_optax``, with the same family and errors. Live hyperparameters, pinned or
    not, have no place in optax and are dropped.

    Args:
      state: of one recipe of this library, wrapped or not.
      tx: the optax optimizer to go on with: ``adam``, ``adamw``, ``adamax``, ``amsgrad``,
        ``radam``, ``adabelief`` or ``sgd`` with momentum.
      params: current parameters.

    Returns:
      A state of ``tx``.

    Raises:
      ValueError: there is no recipe in ``state``, or several, or it holds something that ``tx`` has
        no place for, such as averaged weights: take them with ``eval_params`` first.
    """
    tx = transformation(tx, "tx")
    plain, target = numerics.unbox(state), tx.init(numerics.unbox(params))
    found = states.nodes(plain, ComposeState)
    if len(found) != 1:
        raise ValueError(f"state must hold one recipe of adamw_jax, found {len(found)}.")
    root, ours = found[0][0], decode_state(found[0][1])
    moments, maximum = _known(ours.stages)
    theirs: Any = _their_state(target)
    fields = _fields(theirs)
    if moments is None or (maximum is None) != (not fields.maximum):
        raise ValueError(
            f"the recipe's stages {sorted(ours.stages)} do not fit optax's {type(theirs).__name__}."
        )
    if any(isinstance(memory, ScaledGradientState) for memory in ours.stages.values()):
        raise ValueError(_INSIDE.format("the recipe"))
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
                'corrected one: only a recipe with maximum="corrected" can go on in optax.'
            )
        like = getattr(theirs, fields.maximum)
        new[fields.maximum] = _fit(largest.corrected_maximum, like, "maximum")
    if "count" in theirs._fields:  # a tuple has a method of that name, too
        new["count"] = jnp.array(held.steps, jnp.int32, copy=True)
    target = states.replace(target, type(theirs), lambda _, node: node._replace(**new))
    target = _with_schedule_count(target, ours.count)
    beside = _beside(plain, root, target, numerics.unbox(params))
    made = _with_leaves(target, beside)
    # ``tx`` may hold arrays of the caller's, a learning rate for one.
    made = jax.tree.map(lambda x: x if x.ndim else jnp.array(x, copy=True), made)
    return boxed(made, tx, params, state)


def _beside(state: State, root: Any, target: State, params: Tree) -> dict[Any, Any]:
    """What stands around the recipe in ``state`` and has the same place in ``target``, by path.

    Raises:
      ValueError: an array like a parameter has none, and is not zero.
    """
    places = dict(jax.tree_util.tree_leaves_with_path(target))
    owners = dict(jax.tree_util.tree_leaves_with_path(params))
    kept: dict[Any, Any] = {}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    starts = numerics.owners_in([path for path, _ in leaves], owners)
    for (path, leaf), start in zip(leaves, starts, strict=True):
        if path[: len(root)] == root:
            continue
        owner = None if start is None else owners[path[start:]]
        place = places.get(path)
        if place is not None and (place.shape, place.dtype) == (leaf.shape, leaf.dtype):
            kept[path] = jnp.array(leaf, copy=True)
        elif owner is not None and leaf.shape == jnp.shape(owner) and not _is_zero(leaf):
            raise ValueError(
                f"optax's state has no place for {numerics.leaf_name(path)!r}, which stands beside "
                "the recipe: wrap tx in the same way, or take averaged weights with eval_params."
            )
    return kept


def _is_zero(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and not np.any(np.asarray(x))


def _with_leaves(state: State, values: dict[Any, Any]) -> State:
    return jax.tree_util.tree_map_with_path(lambda path, x: values.get(path, x), state)


def _fields(theirs: Any) -> optax_states.Fields:
    return optax_states.fields_of(type(theirs)) or optax_states.Fields()


def _is_known(node: Any) -> bool:
    """Whether a recipe can go on with the moments in a state of optax."""
    parts = (AverageState, HeavyBallState, SquaresState, CenteredSquaresState, InfinityNormState)
    twins = {twin.partition(".")[0] for part in parts for twin in part.twins}
    return optax_states.fields_of(type(node)) is not None and type(node).__name__ in twins


def _known(stages: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The names of the stages with the moments and with AMSGrad's maximum."""
    kinds = (MomentsState, (MaximumState, CorrectedMaximumState))
    moments, maximum = (
        next((name for name, memory in stages.items() if isinstance(memory, kind)), None)
        for kind in kinds
    )
    return moments, maximum


def _of_optax(state: State) -> list[tuple[Any, Any]]:
    """The named states of optax in a state, with their paths."""
    return [
        (path, node)
        for path, node in states.nodes(state, tuple)
        if hasattr(node, "_fields") and type(node).__module__.partition(".")[0] == "optax"
    ]


def _schedule_count(state: State) -> jax.Array | None:
    """The count that drives the schedules in a state of optax, or None without schedules.

    Raises:
      ValueError: they have several.
    """
    counts = [node.count for _, node in _of_optax(state) if _fields(node).schedules]
    known = [int(count) for count in counts if not isinstance(count, jax.core.Tracer)]
    if len(set(known)) > 1:
        raise ValueError(
            f"the schedules of the saved state have made {sorted(set(known))} steps, and a recipe "
            "drives all by one count: go on with the schedules of optax in optax.chain."
        )
    return counts[0] if counts else None


def _with_schedule_count(state: State, count: jax.Array) -> State:
    places = [path for path, node in _of_optax(state) if _fields(node).schedules]
    keys = {(*path, GetAttrKey("count")) for path in places}
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.array(count, x.dtype, copy=True) if path in keys else x, state
    )


def _check_understood(saved: State) -> None:
    """Raises where a state of optax holds more than moments, schedules and empty sums."""
    holders = dict(_of_optax(saved))
    for path, _ in jax.tree_util.tree_leaves_with_path(saved):
        starts = [path[:n] for n in range(len(path) + 1) if path[:n] in holders]
        holder = holders[starts[-1]] if starts else None
        empty = isinstance(holder, optax.MultiStepsState) and _is_zero(holder.mini_step)
        if holder is None or empty or _fields(holder).wraps or _is_known(holder):
            continue
        raise ValueError(
            f"the saved state has a {type(holder).__name__}, which no recipe of adamw_jax goes on "
            "with, so that it would be lost: keep that transformation beside the recipe and its "
            "state beside the new one, or convert between two accumulations."
        )


def _check_meaning(part: Any, field: str, theirs: Any, what: str) -> None:
    """Raises where an accumulator of ours is of another kind than optax's."""
    if f"{type(theirs).__name__}.{field}" not in getattr(type(part), "twins", ()):
        raise ValueError(
            f"the {what} of the recipe is of the kind {type(part).__name__}, which is not what "
            f"optax's {type(theirs).__name__} holds."
        )


_INSIDE = "{} has the learning rate inside its momentum, and optax keeps it outside."


def _check_stages(tx: Composed, held: Any, known: tuple[str | None, ...]) -> None:
    """Raises if a stage of ``tx``, other than a tail, has a state that optax's does not have."""
    for spec in tx.specs:
        if isinstance(held.get(spec.name), ScaledGradientState):
            raise ValueError(_INSIDE.format("tx"))
        new = spec.takes is not None and not spec.tail and spec.name in held
        if new and spec.name not in known:
            raise ValueError(f"tx has a state of {spec.name}, which the saved one does not have.")


def _their_state(saved: State) -> Any:
    found = states.find(saved, _is_known)
    if len(found) != 1:
        raise ValueError(
            "expected one state of optax's Adam family, AdaBelief or SGD with momentum, found "
            f"{len(found)}; restore the checkpoint into the optax optimizer's own state first."
        )
    return found[0][1]


def _their_count(theirs: Any, scheduled: jax.Array | None) -> jax.Array:
    """The number of updates in the moments: optax.trace does not tell its own."""
    own = theirs.count if "count" in theirs._fields else scheduled
    return jnp.array(0 if own is None else own, jnp.int32, copy=True)


def _filled(
    part: Any, theirs: Any, field: str, what: str, count: jax.Array, rates: Any, rate: Any
) -> Any:
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
            f"{name} of tx is a schedule, and the saved state does not tell what it was: give "
            f"from_optax(..., {name}=...), the rate of the saved run."
        )
    b = rates[name] if given is None else declare(**{name: rates[name].domain(given)})[name]
    return type(part)(value, clock_after(b.at(count), count))


def clock_after(b: jax.Array, count: jax.Array) -> Clock:
    """The clock of an average with constant rate ``b`` after ``count`` entries."""
    mass = one_minus_power(b, count)
    if isinstance(b, jax.core.Tracer) or isinstance(count, jax.core.Tracer):
        return Clock.of(mass, b * mass / (1 - b) - numerics.scalar(count) * (1 - mass))
    # The age of a young average is the small difference of the two: in float64, on the host.
    rate, steps = np.asarray(b, np.float64), np.asarray(count, np.float64)
    kept = rate**steps
    return Clock.of(mass, jnp.asarray(rate * (1 - kept) / (1 - rate) - steps * kept, mass.dtype))


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
