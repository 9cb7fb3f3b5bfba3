"""Skip the steps that would poison parameters or state.

    bad = not finite(gradient, loss, update, new state)  or  loss > mean + k deviation  or
          |gradient| > mean + k deviation
    parameters, state <- those before the step if bad, else those after it

A skipped step leaves parameters, moments, clocks, counts, averages, slow weights, rounding keys and
schedules exactly as they were, and is counted. So the run goes on as if the batch had not been
drawn. However many bad steps follow each other, none is applied. ``optax.apply_if_finite`` applies
bad steps after a while, and sees neither the loss nor a finite gradient whose square overflows in
the state. Spikes are judged as in OLMo (2501.00656) and MaxText, by mean and unbiased deviation of
the last steps.

>>> import jax.numpy as jnp
>>> from adamw_jax import adamw
>>> tx = skip_bad_steps(adamw(0.1))
>>> params = jnp.ones(2)
>>> updates, state = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(params), params)
>>> updates
Array([0., 0.], dtype=float32)
>>> {name: int(value) for name, value in read_skips(state).items() if value}
{'skipped': 1, 'in_a_row': 1, 'by_gradient': 1}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import LAST_COUNT, number, whole_number
from adamw_jax._core.encoded import is_encoded
from adamw_jax._core.gradients import (
    entering,
    norms_of,
    square_norm_of_tree,
    step_of,
)
from adamw_jax._core.numerics import increment
from adamw_jax._core.stage import transformation
from adamw_jax._core.state import find
from adamw_jax._core.two_passes import step_unless
from adamw_jax._core.wrapper import Wrapper, wrapper
from adamw_jax.update._bad_values import any_bad, bad, devices_of, is_bad

Tree = Any

NAME = "skip_bad_steps"

# Codes of a step, by rank: the largest of a step is its cause. A good step has 0.
SPIKE, OVERFLOW, GRADIENT, LOSS = 1, 2, 3, 4
CAUSES = ("spike", "overflow", "gradient", "loss")


class Window(NamedTuple):
    """The last values of a measure, to judge the next.

    Attributes:
      values: a ring, in the default float dtype.
      seen: number of values so far, int32.
    """

    values: jax.Array
    seen: jax.Array


class SkipBadStepsState(NamedTuple):
    """State of ``skip_bad_steps``; ``read_skips`` reads it.

    Attributes:
      inner: state of the wrapped transformation.
      skipped: number of skipped steps by cause (spike, overflow, gradient, loss), int32.
      in_a_row: number of skipped steps since the last good one, int32.
      losses: the last losses with ``loss_spike``, else None.
      norms: the last norms of the gradient with ``norm_spike``, else None.
    """

    inner: Any
    skipped: jax.Array
    in_a_row: jax.Array
    losses: Window | None
    norms: Window | None
    wraps = True


def skip_bad_steps(
    tx: optax.GradientTransformation,
    *,
    loss_spike: float | None = None,
    norm_spike: float | None = None,
    window: int = 128,
    axis_name: str | Sequence[str] | None = None,
) -> Wrapper:
    """Skip steps with a gradient, loss, update or new state that is not finite, and spikes.

    Put it around the whole optimizer, with clipping, averages and rounding inside::

        tx = skip_bad_steps(compose(clip_gradient(1.0), adamw(1e-3), lookahead()))
        updates, state = tx.update(gradients, state, params, value=loss)

    Args:
      tx: any optax transformation.
      loss_spike: also skip a step whose loss lies more than so many deviations above the mean of
        the last losses; None for no limit. 6 is usual (OLMo, MaxText). Each update then needs
        ``value=``.
      norm_spike: the same for the Euclidean norm of the gradient before ``tx``.
      window: number of last values, >= 4, from which mean and deviation are taken. No step is a
        spike before half of them are there. 128 (OLMo, MaxText). A spike enters the window as the
        largest value that is none. So no spike, however large, makes room for the next, and a
        lasting change is accepted in the end: a tenfold deviation after about 20 skipped steps of
        the default window. A value of a step that is not finite does not enter.
      axis_name: axes of ``jax.shard_map`` or ``jax.pmap`` along which all devices skip a step
        together, also if only one has a bad gradient or loss; a spike is judged by the mean over
        them. None: those along which types show that a gradient or loss differs, unless ``tx`` has
        ``norm_axes=()``. Outside of these functions sharded arrays need no option.

    Returns:
      A transformation. Its update is 0 in a skipped step, and takes the loss as ``value=``, which
      also goes to ``tx``. Nothing that stood before is checked: a part of the state that is not
      finite already, such as the empty places in ``percentile_clipping``, does not stop the run.
      ``migrate_state`` adds and removes it. In a compiled step it evaluates ``tx`` twice, first
      without writing any array; a step with effects, such as callbacks, is evaluated once.

    Raises:
      ValueError: a limit is not positive, or (in ``update``) ``loss_spike`` is given, but no
        ``value=``, or shards differ and ``tx`` has no ``norm_axes``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params, bad = {"w": jnp.ones(3)}, {"w": jnp.full(3, jnp.nan)}
      >>> tx = aj.skip_bad_steps(aj.adamw(1e-3))
      >>> updates, state = tx.update(bad, tx.init(params), params)
      >>> updates["w"].tolist()
      [0.0, 0.0, 0.0]
    """
    inner = transformation(tx, "tx")
    for name, limit in {"loss_spike": loss_spike, "norm_spike": norm_spike}.items():
        if limit is not None:
            number(name, limit, above=0)
    window = whole_number("window", window, 4)
    devices, norm_axes = devices_of(inner, axis_name)

    def init(params: Tree) -> SkipBadStepsState:
        def ring(limit: float | None) -> Window | None:  # each array its own, to be donated
            if limit is None:
                return None
            return Window(jnp.zeros([window], numerics.default_float()), jnp.zeros([], jnp.int32))

        counts, in_a_row = jnp.zeros([len(CAUSES)], jnp.int32), jnp.zeros([], jnp.int32)
        rings = ring(loss_spike), ring(norm_spike)
        return SkipBadStepsState(inner.init(params), counts, in_a_row, *rings)

    def update(updates: Tree, state: SkipBadStepsState, params: Tree | None = None, **extra: Any):
        updates, params = entering(updates, params)
        value = extra.get("value")
        if loss_spike is not None and value is None:
            raise ValueError(
                "loss_spike needs the loss: call tx.update(gradients, state, params, value=loss)."
            )
        with step_of(norm_axes, updates, params), norms_of(NAME):
            loss = None if value is None else devices.mean(numerics.scalar(value))
            squares = None if norm_spike is None else square_norm_of_tree(updates)
            norm = None if squares is None else lax.sqrt(devices.mean(squares))
            most_loss, most_norm = _most(state.losses, loss_spike), _most(state.norms, norm_spike)
            spikes = _above(loss, most_loss) | _above(norm, most_norm)
            lost = jnp.bool_(False) if loss is None else ~lax.is_finite(loss)
            known = lax.max(_code(spikes, SPIKE), _code(lost, LOSS))

            def step(updates: Tree, memory: Any) -> tuple[Tree, Any]:
                return inner.update(updates, memory, params, **extra)

            def refuse(moved: Tree, new: Any) -> jax.Array:
                overflown = _code(_overflows(updates, moved, state.inner, new), OVERFLOW)
                code = devices.largest(lax.max(known, overflown))
                return _explained(code, lambda: devices.largest(_code(is_bad(updates), GRADIENT)))

            moved, memory, code = step_unless(step, refuse, updates, state.inner)
        losses = _recorded(state.losses, code, loss, most_loss)
        norms = _recorded(state.norms, code, norm, most_norm)
        return moved, SkipBadStepsState(memory, *_counted(state, code), losses, norms)

    return wrapper(NAME, inner, init, update)


def read_skips(state: Any) -> dict[str, Any]:
    """Return how many steps ``skip_bad_steps`` has skipped, and why.

    Args:
      state: the state of an optimizer with ``skip_bad_steps``, under any wrapper.

    Returns:
      A dict of int32 scalars: ``skipped``, ``in_a_row`` (0 after a good step) and the number by
      cause: ``by_gradient`` or ``by_loss`` that was not finite, ``by_overflow`` in the update or
      the new state, ``by_spike``. A step with several causes counts once, for the first of loss,
      gradient, overflow, spike. If the state has several guards (``optax.partition``), the path of
      its guard precedes each name.

    Raises:
      ValueError: there is no ``skip_bad_steps`` in the state.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params, bad = {"w": jnp.ones(3)}, {"w": jnp.full(3, jnp.nan)}
      >>> tx = aj.skip_bad_steps(aj.adamw(1e-3))
      >>> _, state = tx.update(bad, tx.init(params), params)
      >>> int(aj.update.read_skips(state)["skipped"])
      1
    """
    found = find(numerics.unbox(state), SkipBadStepsState)
    if not found:
        raise ValueError(
            f"there is no skip_bad_steps in this state, a {type(state).__name__}: wrap the "
            "optimizer, as in skip_bad_steps(adamw(1e-3))."
        )
    counts = dict[str, Any]()
    for path, node in found:
        prefix = f"{path}/" if len(found) > 1 else ""
        skipped, in_a_row = numerics.on_device((node.skipped, node.in_a_row))
        counts[f"{prefix}skipped"] = jnp.sum(skipped, axis=-1)
        counts[f"{prefix}in_a_row"] = in_a_row
        for place, cause in enumerate(CAUSES):
            counts[f"{prefix}by_{cause}"] = skipped[..., place]
    return counts


def _code(bad: jax.Array, code: int) -> jax.Array:
    return lax.select(bad, jnp.int32(code), jnp.int32(0))


def _explained(code: jax.Array, gradient: Callable[[], jax.Array]) -> jax.Array:
    """Look for the cause of an overflow in the gradient, which is read again only then."""
    return numerics.branch(code == OVERFLOW, lambda: lax.max(code, gradient()), lambda: code)


def _overflows(updates: Tree, moved: Tree, old: Any, new: Any) -> jax.Array:
    """Return whether gradient or update are not finite, or the new state is less so than the old.

    What belongs to an element of a parameter is judged together, in one reduction.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    found = [(x, bad(x)) for x in jax.tree.leaves(updates)]

    def add(place: int, x: jax.Array, where: jax.Array) -> None:
        like, so_far = found[place] if place >= 0 else (None, where)
        if like is not None and (x.shape, _sharding(x)) == (like.shape, _sharding(like)):
            found[place] = like, lax.bitwise_or(so_far, where)
        else:
            found.append((x, where))

    for place, x in enumerate(jax.tree.leaves(moved)):
        add(place, x, bad(x))
    before, after = (
        jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded) for state in (old, new)
    )
    places = {path: place for place, path in enumerate(paths)}
    starts = numerics.owners_in([path for path, _ in after], places)
    for (path, node), (_, was), start in zip(after, before, starts, strict=True):
        place = -1 if start is None else places[path[start:]]
        for x, y in zip(_floats_in(node), _floats_in(was), strict=True):
            add(place, x, lax.bitwise_and(bad(x), lax.bitwise_not(bad(y))))
    return any_bad(found)


def _sharding(x: jax.Array) -> Any:
    """Return the sharding in the type of an array, which differs in a mesh of explicit axes."""
    return jax.typeof(x).sharding


def _floats_in(x: Any) -> list[jax.Array]:
    """Return the array of a leaf of a state if it has floats; of codes, the peaks."""
    arrays = x.peaks() if is_encoded(x) else [x]
    return [x for x in arrays if jnp.issubdtype(x.dtype, jnp.inexact)]


def _most(window: Window | None, limit: float | None) -> jax.Array | None:
    """Return the largest value that is no spike; infinity while the window is not half full."""
    if window is None or limit is None:
        return None
    size = window.values.shape[0]
    number = lax.min(window.seen, jnp.int32(size))
    there = lax.iota(jnp.int32, size) < number
    mean = _sum(there, window.values / jnp.maximum(numerics.scalar(number), 1.0))
    largest = numerics.nonzero(jnp.max(jnp.abs(window.values)))  # so that no square overflows
    squares = _sum(there, ((window.values - mean) / largest) ** 2)
    deviation = largest * lax.sqrt(squares / jnp.maximum(numerics.scalar(number) - 1.0, 1.0))
    most = mean + limit * deviation
    return lax.select(number >= size // 2, most, lax.full_like(most, jnp.inf))


def _above(x: jax.Array | None, most: jax.Array | None) -> jax.Array:
    return jnp.bool_(False) if x is None or most is None else ~(x <= most)


def _sum(where: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(where, x, jnp.zeros_like(x)))


def _counted(state: SkipBadStepsState, code: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the counts by cause and in a row, with this step."""
    one = lax.iota(jnp.int32, len(CAUSES)) == code - 1
    skipped = jnp.where(one, jnp.minimum(state.skipped, LAST_COUNT - 1) + 1, state.skipped)
    return skipped, lax.select(code == 0, jnp.zeros_like(code), increment(state.in_a_row))


def _recorded(
    window: Window | None, code: jax.Array, x: jax.Array | None, most: jax.Array | None
) -> Window | None:
    """Return the window with the value of a step, a spike as the largest value that is none."""
    if window is None or x is None or most is None:
        return window
    use = (code <= SPIKE) & lax.is_finite(x)
    slot = lax.rem(window.seen, jnp.int32(window.values.shape[0]))
    values = lax.dynamic_update_index_in_dim(window.values, lax.min(x, most), slot, 0)
    more = Window(values, increment(window.seen))
    return jax.tree.map(lambda new, old: lax.select(use, new, old), more, window)
