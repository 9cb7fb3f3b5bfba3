"""``precondition``: moments in, direction out. The division that makes Adam adaptive.

    direction = gain first / (second^power + eps)

Where the gradient was never other than 0 the direction is 0, also with eps = 0: the root is
floored at 1e-19 (1e-154 in float64), below which the square of a gradient underflows anyway.

>>> precondition().spec.kinds
'moments -> direction'
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax import numerics
from adamw_jax.hyperparameters import NONNEGATIVE, ScalarOrSchedule, declare
from adamw_jax.moments.record import Moments, leafwise
from adamw_jax.stage import Kind, Stage, Step, stage

Tree = Any


def precondition(
    eps: ScalarOrSchedule | None = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    power: float = 0.5,
    *,
    eps_hat: bool = False,
) -> Stage:
    """Divides the first moment by the root of the second.

    Args:
      eps: added to the root, >= 0, in float32 whatever the gradient's dtype; None for nothing.
      eps_root: added under the root, >= 0; None for nothing.
      power: exponent of the second moment in (0, 0.5]; 0.5 is the square root, smaller values are
        Padam's. A second moment that is a magnitude takes twice that exponent.
      eps_hat: add eps to the root of the *uncorrected* second moment (Keras, fairseq, the AdamW
        authors' code), which is the form sqrt(v) + eps with bias correction moved to the step size.

    Returns:
      A stage *moments -> direction*. Without a second moment the direction is the first.
    """
    if not 0.0 < power <= 0.5:
        raise ValueError(f"power must lie in (0, 0.5], got {power!r}.")
    given = {"eps": eps, "eps_root": eps_root}
    declared = {name: (x, NONNEGATIVE) for name, x in given.items() if x is not None}

    def apply(record: Moments, state: Any, step: Step) -> tuple[Tree, Any]:
        eps_now = eps_of(record, step)
        if record.second is None:
            direction = record.first.value
        else:
            direction = jax.tree.map(
                lambda m, v: divided(record, step, eps_now, m, v),
                record.first.value,
                record.second.value,
            )
        if record.gain is not None:
            direction = jax.tree.map(
                lambda d, gain: numerics.like(gain, d) * d,
                direction,
                leafwise(record.gain, direction),
            )
        if record.adaptive is not None:
            direction = jax.tree.map(
                lambda use, d, m: _where(use, d, m if record.fallback == "momentum" else None),
                leafwise(record.adaptive, direction),
                direction,
                record.first.value,
            )
        return direction, state

    def divided(
        record: Moments, step: Step, eps_now: jax.Array | None, m: jax.Array, v: jax.Array
    ) -> jax.Array:
        scale = v if eps_root is None or record.magnitude else v + step["eps_root"]
        if not record.magnitude:
            scale = numerics.root(scale, power)
        elif power != 0.5:
            scale = numerics.root(scale, 2 * power)
        if eps_now is not None:
            scale = scale + eps_now
        if record.magnitude:
            scale = lax.max(scale, lax.full_like(scale, jnp.finfo(scale.dtype).tiny ** 0.5))
        return lax.div(m, numerics.like(scale, m))

    def eps_of(record: Moments, step: Step) -> jax.Array | None:
        if eps is None or record.second is None:
            return None
        divisor = record.second.divisor
        if not eps_hat or divisor is None:
            return step["eps"]
        return step["eps"] / numerics.root(divisor, power)

    return stage(
        "precondition",
        Kind.MOMENTS,
        Kind.DIRECTION,
        apply,
        hyperparams=declare(**declared),
    )


def _where(use: jax.Array, direction: jax.Array, otherwise: jax.Array | None) -> jax.Array:
    other = lax.full_like(direction, 0) if otherwise is None else otherwise
    return jnp.where(use, direction, other)
