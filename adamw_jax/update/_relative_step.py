"""Scale by a relative step, a learning rate that falls without a schedule.

    update = -min(learning_rate, 1 / sqrt(t)) direction          t = 1, 2, ...

Shazeer & Stern, ICML 2018, arXiv 1804.04235, whose learning rate is 1e-2, or 1e-6 t for a slow
start. In PyTorch and Keras the user's learning rate is an upper bound in the same way.

>>> scale_by_relative_step(1e-2).spec.kinds
'direction -> update'
>>> import jax.numpy as jnp
>>> [round(float(relative_step(jnp.float32(0.1), jnp.int32(t - 1))), 3) for t in (1, 100, 400)]
[0.1, 0.1, 0.05]
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, length
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

LARGEST = 1e-2
"""The learning rate of the paper."""


def slow_start(count: Any) -> Any:
    """Return the paper's learning rate with warm-up, ``1e-6 t``."""
    return 1e-6 * (numerics.scalar(count) + 1.0)


def relative_step(learning_rate: jax.Array, count: jax.Array) -> jax.Array:
    """Return ``min(learning_rate, 1 / sqrt(t))`` at step ``t = count + 1``."""
    return lax.min(learning_rate, lax.rsqrt(numerics.scalar(count) + 1.0))


def scale_by_relative_step(learning_rate: ScalarOrSchedule = LARGEST) -> Stage:
    """Multiply the direction by minus the relative step.

    Args:
      learning_rate: upper bound of the relative step, >= 0, or a schedule of it; 1e-2 (paper).

    Returns:
      A stage *direction -> update*.
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        rate = -relative_step(step["learning_rate"], step.count)
        return jax.tree.map(lambda u: numerics.scaled(rate, numerics.widen(u)), direction), state

    declared = declare(learning_rate=length(learning_rate))
    return stage("scale_by_relative_step", Kind.DIRECTION, Kind.UPDATE, apply, hyperparams=declared)
