"""Average whole updates, after the learning rate (Adafactor's momentum).

    m' = b1 m + (1 - b1) update;  update <- m'

It starts at zero without bias correction, as in the authors' code and its successors, so the first
steps are short: (1 - b1^t) times the average. A change of the learning rate acts with a delay; in
Adam, where it multiplies the average, it acts at once.

>>> average_updates(0.9).spec.kinds
'update -> update'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, storage_dtype
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any


class AverageUpdatesState(NamedTuple):
    """State of ``average_updates``.

    Attributes:
      average: the moving average, params-shaped.
    """

    average: Tree
    momenta = ("average",)


@shows_options
def average_updates(b1: ScalarOrSchedule = 0.9, *, dtype: Any = None) -> Stage:
    """Replace the update by the moving average of the updates, without bias correction.

    Args:
      b1: decay rate in [0, 1), or a schedule of it; 0.9.
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *update -> update* with one value of state per parameter.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.sgdw(0.1, momentum=None), aj.update.average_updates(0.9))
    """
    dtype = storage_dtype("dtype", dtype)

    def init(params: Tree) -> AverageUpdatesState:
        return AverageUpdatesState(zeros(params, dtype))

    def apply(
        update: Tree, state: AverageUpdatesState, step: Step
    ) -> tuple[Tree, AverageUpdatesState]:
        b1 = step["b1"]
        rest = jnp.ones([], b1.dtype) - b1
        moved = jax.tree.map(lambda m, u: numerics.mixed(b1, m, rest, u), state.average, update)
        return moved, AverageUpdatesState(numerics.cast_like(moved, state.average))

    return stage(
        "average_updates",
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=init,
        hyperparams=declare(b1=decay_rate(b1)),
    )
