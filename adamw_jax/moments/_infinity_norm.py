"""Provide AdaMax's infinity norm as a part (Kingma & Ba 2014, arXiv 1412.6980, Algorithm 2).

    u' = max(b2 u, |g| + eps)

It is a magnitude, not a square, and needs no bias correction.

>>> infinity_norm(0.999).magnitude
True
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Reading
from adamw_jax._core.stage import Step
from adamw_jax.moments._parts import Part, zeros

Tree = Any


class InfinityNormState(NamedTuple):
    """State of ``infinity_norm``.

    Attributes:
      largest: the running maximum, params-shaped and real.
    """

    largest: Tree
    twins = ("ScaleByAdamState.nu",)
    moment = property(operator.itemgetter(0))


@shows_options
def infinity_norm(
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 0.0,
    *,
    dtype: Any = None,
    storage: Any = None,
) -> Part:
    """Track the exponentially weighted infinity norm, ``u' = max(b2 u, |g| + eps)``.

    Args:
      b2: decay rate in [0, 1), or a schedule of it; 0.999 (paper).
      eps: added to |g| inside the maximum, >= 0, as PyTorch and optax do; 0 is the paper's form.
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the second moment, a magnitude, with one real value of state per parameter.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.moments.infinity_norm(0.999)),
      ...     aj.correct_bias(second=False),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def init(params: Tree) -> InfinityNormState:
        return InfinityNormState(zeros(params, dtype, real=True))

    def update(gradient: Tree, state: InfinityNormState, step: Step, first: Reading | None):
        del first

        def leaf(u: jax.Array, g: jax.Array) -> jax.Array:
            new = lax.add(lax.abs(numerics.widen(g)), step["eps"])
            decayed = numerics.scaled(step["b2"], numerics.widen(u))
            return numerics.cast_nonnegative(lax.max(decayed, new), u.dtype)

        return InfinityNormState(jax.tree.map(leaf, state.moment, gradient))

    def read(state: InfinityNormState, gradient: Tree, step: Step) -> Reading:
        del gradient, step
        return Reading(jax.tree.map(numerics.widen, state.moment))

    declared = declare(b2=decay_rate(b2), eps=nonnegative(eps))
    return Part(
        "infinity_norm",
        declared,
        init,
        update,
        read,
        kind=InfinityNormState,
        magnitude=True,
        storage=storage,
        elementwise=True,
    )
