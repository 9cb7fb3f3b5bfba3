"""``precondition``: moments in, direction out. The division that makes Adam adaptive.

    direction = gain first / (second^power + eps)

Where the gradient was never other than 0 the direction is 0, also with eps = 0.

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
        if record.second is None:
            direction = record.first.value
        else:
            direction = jax.tree.map(
                lambda m, v: _divided(record, step, m, v), record.first.value, record.second.value
            )
        if record.gain is not None:
            direction = jax.tree.map(
                lambda d, gain: gain.astype(d.dtype) * d,
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

    def _divided(record: Moments, step: Step, m: jax.Array, v: jax.Array) -> jax.Array:
        assert record.second is not None
        if record.magnitude:
            scale = v if power == 0.5 else numerics.safe_root(v, 2 * power)
        else:
            scale = numerics.safe_root(v if eps_root is None else v + step["eps_root"], power)
        if eps is not None:
            scale = scale + eps_of(record, step)
        return numerics.safe_divide(m, scale.astype(m.dtype))

    def eps_of(record: Moments, step: Step) -> jax.Array:
        assert record.second is not None
        divisor = record.second.divisor
        if not eps_hat or divisor is None:
            return step["eps"]
        return numerics.safe_divide(step["eps"], numerics.safe_root(divisor, power))

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
