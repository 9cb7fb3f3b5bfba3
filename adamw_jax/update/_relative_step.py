"""The relative step: a learning rate that falls by itself.

    update = -min(learning_rate, 1 / sqrt(t)) direction          t = 1, 2, ...

Shazeer & Stern, ICML 2018, arXiv 1804.04235, where the learning rate is 1e-2, or 1e-6 t for a slow
start. PyTorch and Keras cap the relative step by the user's learning rate in the same way.

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
    """The paper's learning rate with warm-up, ``1e-6 t``."""
    return 1e-6 * (numerics.scalar(count) + 1.0)


def relative_step(learning_rate: jax.Array, count: jax.Array) -> jax.Array:
    """``min(learning_rate, 1 / sqrt(t))`` of step ``t = count + 1``."""
    return lax.min(learning_rate, lax.rsqrt(numerics.scalar(count) + 1.0))


def scale_by_relative_step(learning_rate: ScalarOrSchedule = LARGEST) -> Stage:
    """Multiplies the direction by minus the relative step.

    Args:
      learning_rate: what the step is at most, a number >= 0 or a schedule; 1e-2 (paper).

    Returns:
      A stage *direction -> update*.
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        rate = -relative_step(step["learning_rate"], step.count)
        return jax.tree.map(lambda u: numerics.scaled(rate, numerics.widen(u)), direction), state

    declared = declare(learning_rate=length(learning_rate))
    return stage("scale_by_relative_step", Kind.DIRECTION, Kind.UPDATE, apply, hyperparams=declared)
