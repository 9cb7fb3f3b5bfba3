"""Let each worker train alone, and average the parameters of all every H steps.

    every H steps:  theta <- mean over workers of (theta + u);      else theta <- theta + u

Workers communicate H times less often than with an average of gradients in each step. Post-local
SGD averages in each step at first, and every H steps later (``post_local``), which the paper found
to generalize better than large batches. Stich, ICLR 2019, arXiv 1805.09767; Lin, Stich, Patel &
Jaggi, ICLR 2020, arXiv 1808.07217.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax import compose, sgdw
>>> tx = compose(sgdw(1.0, momentum=None), local_sgd(2, "data"))
>>> params = gradient = jnp.array([[1.0], [5.0]])  # one row a worker
>>> state = jax.vmap(tx.init)(params)
>>> step = jax.vmap(tx.update, axis_name="data")
>>> for _ in range(2):
...     updates, state = step(gradient, state, params)
...     params = params + updates
>>> params
Array([[-3.],
       [-3.]], dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import positive_steps, whole_number
from adamw_jax._core.declare import ScalarOrSchedule, at_least_one, declare
from adamw_jax._core.numerics import increment
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail

Tree = Any

NAME = tail("local_sgd")


class LocalSGDState(NamedTuple):
    """State of ``local_sgd``.

    Attributes:
      since_average: steps since the last average, int32, the same on all workers.
    """

    since_average: jax.Array


@shows_options
def local_sgd(every: ScalarOrSchedule, axis_name: str | Sequence[str]) -> Stage:
    """Average the parameters of all workers every few steps (local SGD).

    Put it last, around any optimizer whose gradients are not averaged::

        tx = compose(adamw(1e-3), local_sgd(8, "data"))
        tx = compose(adamw(1e-3), local_sgd(post_local(10_000, 8), "data"))

    Args:
      every: steps H from one average to the next, >= 1, or a schedule of it, such as
        ``post_local``. There is no default; the papers use 2 to 64.
      axis_name: the axis of ``jax.shard_map`` or ``jax.vmap`` along which the workers are, or
        several.

    Returns:
      A stage *update -> update* that needs the parameters and must be the last of a recipe. Each
      worker has its own parameters and state. Only parameters are averaged, the moments stay those
      of the worker. After an average the parameters of two workers may differ by rounding.

    Raises:
      ValueError: (in ``update``) the axis is not there, or all workers have the same parameters.

    Example:
      >>> import jax, adamw_jax as aj
      >>> tx = aj.compose(aj.sgdw(0.1), aj.communication.local_sgd(4, "data"))
    """
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    declared = declare(every=at_least_one(every))

    def init(params: Tree) -> LocalSGDState:
        del params
        return LocalSGDState(jnp.zeros([], jnp.int32))

    def apply(update: Tree, state: LocalSGDState, step: Step) -> tuple[Tree, LocalSGDState]:
        _check_own(axes, step.params)
        since = increment(state.since_average)
        due = numerics.scalar(since) >= step["every"]
        # XLA runs one of the two branches, so nothing is sent between averages.
        moved = numerics.branch(
            due,
            _to_mean(axes),
            lambda u, p: u,
            numerics.leaving(update, update, step.params),
            step.params,
        )
        return moved, LocalSGDState(lax.select(due, jnp.zeros_like(since), since))

    return stage(
        NAME,
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=init,
        hyperparams=declared,
        needs_params=True,
    )


def post_local(warmup_steps: int, every: int) -> Callable[[Any], jax.Array]:
    """Make the schedule of post-local SGD, for ``local_sgd``.

    Args:
      warmup_steps: number of steps with an average each, >= 1.
      every: steps H from one average to the next after them, >= 1.

    Returns:
      A function of the step count: 1, and from ``warmup_steps`` on ``every``. The paper switches
      where the learning rate is first reduced.

    Example:
      >>> import adamw_jax as aj
      >>> every = aj.communication.post_local(warmup_steps=100, every=8)
      >>> tx = aj.compose(aj.sgdw(0.1), aj.communication.local_sgd(every, "data"))
    """
    warmup_steps = positive_steps("warmup_steps", warmup_steps)
    every = whole_number("every", every)
    return lambda count: jnp.where(count < warmup_steps, 1, every)


def _to_mean(axes: tuple[str, ...]) -> Callable[[Tree, Tree], Tree]:
    def leaf(u: jax.Array, p: jax.Array) -> jax.Array:
        mean = lax.pmean(numerics.widen(p) + numerics.widen(u), axes)
        return lax.convert_element_type(mean - numerics.widen(p), u.dtype)

    return lambda update, params: jax.tree.map(leaf, update, params)


def _check_own(axes: tuple[str, ...], params: Tree) -> None:
    try:
        typed = numerics.varying_axes(lax.axis_index(axes))
    except NameError:
        raise ValueError(
            f"axis_name={axes} is not around this update: call it inside jax.shard_map over the "
            "axis, or inside jax.vmap(..., axis_name=...)."
        ) from None
    for name, p in numerics.named_leaves(params):
        if missing := sorted(typed - numerics.varying_axes(p)):
            raise ValueError(
                f"the parameter {name!r} is the same along the axis {missing}, but each worker of "
                "local_sgd needs its own: give jax.shard_map parameters and state with a first "
                "axis of one row per worker."
            )
