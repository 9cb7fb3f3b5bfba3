"""Turn gradients into moments, and hold the accumulators of a recipe.

``estimate_moments`` is built from parts; the stages after it only read their moments. So a recipe
without a first moment stores none, and no stage keeps a second copy of an array.

>>> import jax.numpy as jnp, optax
>>> from adamw_jax import correct_bias, ema, ema_of_squares, precondition
>>> tx = optax.chain(
...     estimate_moments(ema(0.9), ema_of_squares(0.999)), correct_bias(), precondition()
... )
>>> params = jnp.ones(3)
>>> updates, _ = tx.update(jnp.array([2.0, -4.0, 0.0]), tx.init(params), params)
>>> updates.round(3)
Array([ 1., -1.,  0.], dtype=float32)
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.checks import whole_number
from adamw_jax._core.gradients import check_floating, check_gradient
from adamw_jax._core.record import Moments, emptied
from adamw_jax._core.sequential import after, known_once_whole
from adamw_jax._core.stage import Kind, Stage, Step, increment, stage, stage_of
from adamw_jax._core.state import restarts
from adamw_jax.moments._averages import ema, ema_of_squares
from adamw_jax.moments._parts import Part, with_moment
from adamw_jax.storage import choose
from adamw_jax.storage._stages import stored

Tree = Any


class MomentsState(NamedTuple):
    """State of ``estimate_moments``.

    Attributes:
      first: state of the part for the first moment.
      second: state of the part for the second moment.
      steps: updates since the start or the last restart, int32.
    """

    first: Any
    second: Any
    steps: jax.Array

    nonnegative = ("second",)
    restarts = True


def estimate_moments(
    first: Part | None = None, second: Part | None = None, *, restart_period: int | None = None
) -> Stage:
    """Turn gradients into the moments that the following stages read.

    Args:
      first: part for the first moment; default ``ema(0.9)``. ``no_moment()`` uses the gradient
        itself and stores nothing.
      second: part for the second moment; default ``ema_of_squares(0.999)``. With ``no_moment()``
        the direction is not divided (momentum SGD).
      restart_period: number of steps, >= 1, after which all moments start again from 0; None for
        never.

    Returns:
      A stage *gradient -> moments*. The ``Moments`` that it returns cannot cross the boundary of a
      ``jax.jit``: jit the whole recipe, or the update of ``scale_by_adam`` and the like.

    Raises:
      ValueError: both parts use one name for different hyperparameters, or (in ``update``) the
        gradients have another structure than the parameters of ``init``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    first = ema() if first is None else first
    second = ema_of_squares() if second is None else second
    for argument, part in (("first", first), ("second", second)):
        if not isinstance(part, Part):
            raise TypeError(f"{argument} must be a part such as ema(0.9), got {part!r}.")
    has_second = second.name != "no_moment"
    if restart_period is not None:
        restart_period = whole_number("restart_period", restart_period)

    def init(params: Tree) -> MomentsState:
        check_floating(params, "parameter")
        return MomentsState(first.init(params), second.init(params), jnp.zeros([], jnp.int32))

    def apply(gradient: Tree, state: MomentsState, step: Step) -> tuple[Moments, MomentsState]:
        for field, part in (("first", first), ("second", second)):
            _check_kind(part, getattr(state, field), field)
        kept = [part.moment for part in state[:2] if hasattr(part, "moment")]
        check_gradient(gradient, kept[0] if kept else step.params)
        restarted = None
        if restart_period is not None:
            restarted = lax.eq(state.steps, lax.full_like(state.steps, restart_period))
            state = emptied(state, restarted)
        step = dataclasses.replace(step, count=state.steps)
        new_first = first.update(gradient, state.first, step, None)
        first_reading = first.read(new_first, gradient, step)
        assert first_reading is not None
        if first.entry is not None:
            entry = first.entry(state.first, gradient, step)
            first_reading = first_reading._replace(entry=entry)
        new_second = second.update(gradient, state.second, step, first_reading)
        if first.write_after_read is not None:
            new_first = first.write_after_read(new_first, new_second)
        record = Moments(
            gradient=gradient,
            count=increment(state.steps),
            first=first_reading,
            second=second.read(new_second, gradient, step) if has_second else None,
            prior_second=second.read(state.second, gradient, step) if has_second else None,
            magnitude=second.magnitude,
            restarted=restarted,
        )
        return record, MomentsState(new_first, new_second, record.count)

    def write_after_read(state: MomentsState, direction: Tree, step: Step) -> MomentsState:
        if not (step.facts.delayed and step.in_sequence) or not hasattr(state.second, "moment"):
            return state
        # The direction reads the second moment of the previous step.
        known = jax.tree.map(known_once_whole, direction)
        step.facts.leaf_scalars = known
        value = after(state.second.moment, known)
        return state._replace(second=with_moment(state.second, value))

    shown = {
        name: str(part)
        for name, part, plain in (("first", first, "ema()"), ("second", second, "ema_of_squares()"))
        if str(part) != plain
    }
    shown |= {} if restart_period is None else {"restart_period": str(restart_period)}
    made = stage(
        "estimate_moments",
        Kind.GRADIENT,
        Kind.MOMENTS,
        apply,
        init=init,
        hyperparams=_joined(first, second),
        elementwise=first.elementwise and second.elementwise,
        write_after_read=write_after_read,
        options=shown,
    )
    parts = {"first": first, "second": second}
    formats = {name: part.storage for name, part in parts.items() if part.storage is not None}
    return stage_of(stored(made.spec, choose(formats))) if formats else made


def _check_kind(part: Part, state: Any, field: str) -> None:
    if part.kind is not None and type(state) is not part.kind:
        raise ValueError(
            f"the state belongs to another optimizer: its {field} moment is a "
            f"{type(state).__name__}, but {part.name} needs a {part.kind.__name__}. Start with "
            "tx.init(params)."
        )


def restart_moments(state: Any) -> Any:
    """Set the moments in a state back to 0, for Adan's restart or new data.

    Args:
      state: the state of a recipe of this library, under any wrapper.

    Returns:
      The state with empty accumulators, AMSGrad's maximum and diffGrad's previous gradient
      included. Everything else stays: step count, schedules, hyperparameters, averaged weights and
      the state of stages on the update (Adafactor's momentum).

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> tx = aj.adamw(1e-3)
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> state = aj.moments.restart_moments(state)
      >>> int(state.stages["estimate_moments"].steps)
      0
    """

    def one(node: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, node) if restarts(node) else node

    return jax.tree.map(one, state, is_leaf=restarts)


def _joined(first: Part, second: Part) -> dict[str, Any]:
    for name in first.hyperparams.keys() & second.hyperparams.keys():
        if not first.hyperparams[name].same_as(second.hyperparams[name]):
            raise ValueError(
                f"both parts, {first.name} and {second.name}, have a hyperparameter {name!r} with "
                "different values: give both the same value, or rename one (rate_name=)."
            )
    return {**first.hyperparams, **second.hyperparams}
