"""Divide by a power of the root (Padam), between SGD with momentum and Adam.

    direction = sqrt(c2) / c1 * m / (sqrt(v) + eps)^(2p)

c1 and c2 are the divisors of a ``correct_bias`` before it. Chen et al., "Closing the Generalization
Gap of Adaptive Gradient Methods", 1806.06763, as run by the authors of Gadam (2003.01247): eps is
inside the power, the corrections are outside.

>>> precondition_partially(0.25).spec.kinds
'moments -> direction'
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, nonnegative, up_to_half
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._precondition import factors, numerator, quotient, times, where_adaptive

Tree = Any


@shows_options
def precondition_partially(partial: ScalarOrSchedule = 0.25, eps: ScalarOrSchedule = 1e-8) -> Stage:
    """Divide the first moment by a power of the root of the second.

    Args:
      partial: p in [0, 0.5], or a schedule of it; 1/4, as in ``padam``. 0.5 is Adam in the eps-hat
        form, 0 is momentum times sqrt(c2) / c1.
      eps: added to the root inside the power, >= 0; 1e-8 (code).

    Returns:
      A stage *moments -> direction*.

    Raises:
      ValueError: (in ``update``) the recipe has no second moment of squares.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.moments.precondition_partially(0.25),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def apply(record: Moments, state: Any, step: Step) -> tuple[Tree, Any]:
        second, top = record.second, numerator(record)
        if second is None or record.magnitude:
            raise ValueError(
                "precondition_partially() needs a second moment of squares, such as "
                "ema_of_squares(0.999)."
            )
        factor = None if second.due is None else numerics.root(second.due)
        if top.due is not None:
            factor = (1.0 if factor is None else factor) / top.due
        power = 2.0 * step["partial"]

        def leaf(m: jax.Array, v: jax.Array, use: Any, by: tuple[jax.Array, ...]) -> jax.Array:
            root = lax.add(numerics.root(v), step["eps"])
            scale = numerics.power_of(root, power)
            return quotient(times(m, by), scale, use)

        by = factors(record, factor, top.raw)
        divided = jax.tree.map(leaf, top.raw, second.raw, record.adaptive, by)
        return where_adaptive(divided, record), state

    declared = declare(partial=up_to_half(partial), eps=nonnegative(eps))
    return stage(
        "precondition_partially",
        Kind.MOMENTS,
        Kind.DIRECTION,
        apply,
        hyperparams=declared,
        elementwise=True,
    )
