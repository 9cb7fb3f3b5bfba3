"""Provide the momentum buffer of SGD as a part (Polyak 1964; Sutskever et al. 2013).

    m' = momentum m + (1 - dampening) g        (m' = g at the first step, as in PyTorch)
    read: m', or g + momentum m' with Nesterov's look-ahead

It is a sum, not an average, so it has no bias to correct.

>>> heavy_ball(0.9).name
'heavy_ball'
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, fraction
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Reading
from adamw_jax._core.stage import Step
from adamw_jax.moments._parts import Part, zeros

Tree = Any


class HeavyBallState(NamedTuple):
    """State of ``heavy_ball``.

    Attributes:
      buffer: the momentum buffer, params-shaped.
    """

    buffer: Tree
    twins = ("TraceState.trace", "TorchState.momentum_buffer")
    moment = property(operator.itemgetter(0))
    momenta = ("buffer",)


@shows_options
def heavy_ball(
    momentum: ScalarOrSchedule = 0.9,
    *,
    dampening: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    dtype: Any = None,
    storage: Any = None,
) -> Part:
    """Accumulate momentum, ``m' = momentum m + (1 - dampening) g``.

    Args:
      momentum: factor in [0, 1] on the buffer, or a schedule of it; 0.9, the usual one.
      dampening: share of each gradient that is left out, except of the first, in [0, 1], or a
        schedule of it; None for 0.
      nesterov: read ``g + momentum m'`` instead of ``m'``.
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the first moment, with one value of state per parameter.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.heavy_ball(0.9), aj.moments.no_moment()),
      ...     aj.precondition(None),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    declared = declare(momentum=fraction(momentum))
    if dampening is not None:
        declared |= declare(dampening=fraction(dampening))

    def init(params: Tree) -> HeavyBallState:
        return HeavyBallState(zeros(params, dtype))

    def update(gradient: Tree, state: HeavyBallState, step: Step, first: Reading | None):
        del first
        share = None
        if dampening is not None:
            one = jnp.ones([], numerics.default_float())
            share = lax.select(step.count == 0, one, one - step["dampening"])

        def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
            wide = numerics.widen(g)
            entry = wide if share is None else numerics.scaled(share, wide)
            new = lax.add(numerics.scaled(step["momentum"], numerics.widen(m)), entry)
            return numerics.cast(new, m.dtype)

        return HeavyBallState(jax.tree.map(leaf, state.moment, gradient))

    def read(state: HeavyBallState, gradient: Tree, step: Step) -> Reading:
        def leaf(m: jax.Array, g: jax.Array) -> jax.Array:
            wide = numerics.widen(m)
            if not nesterov:
                return wide
            return lax.add(numerics.widen(g), numerics.scaled(step["momentum"], wide))

        return Reading(jax.tree.map(leaf, state.moment, gradient))

    return Part(
        "heavy_ball",
        declared,
        init,
        update,
        read,
        kind=HeavyBallState,
        storage=storage,
        elementwise=True,
    )
