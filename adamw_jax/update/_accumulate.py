"""Accumulate the gradients of several micro-batches, and take one step with their mean.

    total <- total + g  for every finite g;   after k micro-batches of which n were finite:
    one step with total / n

There is one buffer, in float32 or wider whatever the dtype of the gradients. The optimizer runs
once in k calls, and its counts, schedules and averages count these runs. A micro-batch whose
gradient or loss is not finite is left out, and the mean is that of the others. If none is finite,
there is no step.

>>> import jax.numpy as jnp
>>> from adamw_jax import sgdw
>>> tx = accumulate(sgdw(1.0, momentum=None), every=2)
>>> params, state = jnp.ones(2), tx.init(jnp.ones(2))
>>> updates, state = tx.update(jnp.array([1.0, 2.0]), state, params)
>>> updates
Array([0., 0.], dtype=float32)
>>> updates, state = tx.update(jnp.array([3.0, 4.0]), state, params)
>>> updates
Array([-2., -3.], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import whole_number
from adamw_jax._core.gradients import entering, norms_of, step_of
from adamw_jax._core.numerics import increment
from adamw_jax._core.stage import transformation
from adamw_jax._core.wrapper import Wrapper, wrapper
from adamw_jax.update._bad_values import devices_of, is_bad

Tree = Any

NAME = "accumulate"


class AccumulateState(NamedTuple):
    """State of ``accumulate``.

    Attributes:
      inner: state of the wrapped transformation.
      total: sum of the finite gradients since the last step, params-shaped; while ``good`` is 0 it
        has no meaning (it holds the last update).
      loss: sum of their losses, 0 without ``value=``.
      micro: micro-batches since the last step, int32.
      good: the finite ones among them, int32.
      windows: number of times that ``every`` was reached, int32.
      left_out: micro-batches that were not finite since the start, int32.
    """

    inner: Any
    total: Tree
    loss: jax.Array
    micro: jax.Array
    good: jax.Array
    windows: jax.Array
    left_out: jax.Array
    wraps = True
    exact = ("total",)

    def settled(self) -> AccumulateState:
        """Return the state with the meaningless sum of an empty window as zeros."""
        empty = self.good == 0

        def leaf(x: jax.Array) -> jax.Array:
            return jnp.where(numerics.broadcastable(empty, x), jnp.zeros_like(x), x)

        return self._replace(total=jax.tree.map(leaf, self.total))


def accumulate(
    tx: optax.GradientTransformation,
    every: int | Callable[[jax.Array], Any],
    *,
    axis_name: str | Sequence[str] | None = None,
) -> Wrapper:
    """Take one step of ``tx`` with the mean gradient of ``every`` calls; 0 in the other calls.

    Args:
      tx: any optax transformation, such as ``skip_bad_steps(adamw(1e-3))``, which then judges the
        mean: a sum of finite gradients may overflow.
      every: number k of micro-batches for a step, >= 1, or a function of the number of windows so
        far, an int32, to grow the batch. It is read at every call, so k can change in a window.
      axis_name: as for ``skip_bad_steps``: axes along which all devices leave out a micro-batch
        together.

    Returns:
      A transformation. Its update takes the loss as ``value=``, and ``tx`` gets the mean loss of
      the finite micro-batches; other extra arguments reach ``tx`` as they are in the last call. The
      mean is that of the micro-batches, so give each the same number of examples. Parameters are to
      be changed by its updates only, which are 0 within a window.

    Raises:
      ValueError: ``every`` is not a whole number >= 1, or (in ``update``) shards differ and ``tx``
        has no ``norm_axes``.

    ``optax.MultiSteps`` computes the optimizer in every call and then selects. It does not count a
    micro-batch that it leaves out (``should_skip_update_fn``).

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3)}
      >>> tx = aj.accumulate(aj.adamw(1e-3), every=2)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> updates["w"].tolist()
      [0.0, 0.0, 0.0]
    """
    inner = transformation(tx, "tx")
    number = every if callable(every) else whole_number("every", every)
    devices, norm_axes = devices_of(inner, axis_name)

    def init(params: Tree) -> AccumulateState:
        def zeros(p: Any) -> jax.Array:
            return jnp.zeros_like(p, dtype=numerics.compute_dtype(p))

        loss = jnp.zeros([], numerics.default_float())
        total = jax.tree.map(zeros, numerics.as_arrays(params))
        counts = (jnp.zeros([], jnp.int32) for _ in range(4))  # each its own, to be donated
        return AccumulateState(inner.init(params), total, loss, *counts)

    def update(updates: Tree, state: AccumulateState, params: Tree | None = None, **extra: Any):
        updates, params = entering(updates, params)
        value = extra.get("value")
        loss = jnp.zeros_like(state.loss) if value is None else numerics.scalar(value)
        with step_of(norm_axes, updates, params), norms_of(NAME):
            lost = is_bad(updates) | ~lax.is_finite(loss)
            lost = devices.largest(lost.astype(jnp.int32)) > 0
            state = _added(state, updates, loss, lost)
            k = jnp.asarray(number(state.windows) if callable(number) else number, jnp.int32)
            due = state.micro >= k

            def run(total: Tree, memory: Any) -> tuple[Tree, Any]:
                share = 1.0 / numerics.scalar(state.good)
                mean = jax.tree.map(lambda x: numerics.scaled(share, x), total)
                more = extra if value is None else {**extra, "value": share * state.loss}
                return inner.update(mean, memory, params, **more)

            due_step = due & (state.good > 0)
            moved, total, memory = _run_if(due_step, run, state.total, state.inner)
        return moved, _after(state._replace(inner=memory, total=total), due)

    return wrapper(NAME, inner, init, update)


def _added(
    state: AccumulateState, updates: Tree, loss: jax.Array, lost: jax.Array
) -> AccumulateState:
    """Return the state with a micro-batch counted, and added unless it is lost."""
    first = state.good == 0

    def sum_of(old: jax.Array, new: jax.Array) -> jax.Array:
        new = numerics.placed_like(numerics.cast(new, old.dtype), old)
        return lax.select(lost, old, lax.select(first, new, lax.add(old, new)))

    return state._replace(
        total=jax.tree.map(sum_of, state.total, updates),
        loss=sum_of(state.loss, loss),
        micro=increment(state.micro),
        good=lax.select(lost, state.good, increment(state.good)),
        left_out=lax.select(lost, increment(state.left_out), state.left_out),
    )


def _run_if(
    due: jax.Array, run: Callable[[Tree, Any], tuple[Tree, Any]], total: Tree, memory: Any
) -> tuple[Tree, Tree, Any]:
    """Return update, sum and memory: those of ``run(total, memory)`` if it is due.

    A step writes its update over the sum, which has no meaning any more, so that neither a step nor
    the calls in between need memory for an update of their own.
    """
    types: list[Tree] = []

    def step(total: Tree, memory: Any) -> tuple[Tree, Any]:
        moved, memory = run(total, memory)
        types.append(moved)
        return numerics.cast_like(moved, total), memory

    written, memory = numerics.branch(due, step, lambda *old: old, total, memory)
    if not types:  # a call without jit that is not due
        jax.eval_shape(step, total, memory)

    def moved(x: jax.Array, like: jax.Array) -> jax.Array:
        x = numerics.cast(x, like.dtype)
        return lax.select(due, x, lax.full_like(x, 0))

    return jax.tree.map(moved, written, types[0]), written, memory


def _after(state: AccumulateState, due: jax.Array) -> AccumulateState:
    """Return the state with a new window begun, if one has ended."""

    def anew(x: jax.Array) -> jax.Array:
        return lax.select(due, jnp.zeros_like(x), x)

    return state._replace(
        loss=anew(state.loss),
        micro=anew(state.micro),
        good=anew(state.good),
        windows=lax.select(due, increment(state.windows), state.windows),
    )
