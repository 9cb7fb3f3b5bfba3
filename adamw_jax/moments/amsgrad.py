"""AMSGrad's running maximum of the second moment (Reddi, Kale & Kumar, ICLR 2018).

    v_max' = max(v_max, v)

Where the stage stands is the variant: before ``correct_bias`` it is PyTorch's, Keras' and the
fastai article's; after it, optax's; with no ``correct_bias`` at all, the paper's.

>>> amsgrad_max().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax import numerics
from adamw_jax.moments.parts import zeros
from adamw_jax.moments.record import Moments, emptied
from adamw_jax.stage import Kind, Stage, Step, stage

Tree = Any


class MaximumState(NamedTuple):
    """State of ``amsgrad_max``.

    Attributes:
      maximum: the largest second moment so far, params-shaped and real.
    """

    maximum: Tree

    nonnegative = ("maximum",)
    restarts = True


def amsgrad_max(*, dtype: Any = None) -> Stage:
    """Replaces the second moment by the largest one so far, element by element.

    Args:
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *moments -> moments* with one value of state per parameter.

    Raises:
      TypeError: (in ``init``) ``dtype`` is no real floating-point dtype.
      ValueError: (in ``update``) the recipe has no second moment.
    """

    def init(params: Tree) -> MaximumState:
        return MaximumState(zeros(params, dtype, real=True))

    def apply(record: Moments, state: MaximumState, step: Step) -> tuple[Moments, MaximumState]:
        del step
        if record.second is None:
            raise ValueError("amsgrad_max() needs a second moment, and the recipe has none.")
        largest = jax.tree.map(
            lambda old, new: lax.max(numerics.widen(old), new),
            emptied(state.maximum, record.restarted),
            record.second.value,
        )
        stored = numerics.cast_like(largest, state.maximum)
        return record.with_second(largest), MaximumState(stored)

    return stage("amsgrad_max", Kind.MOMENTS, Kind.MOMENTS, apply, init=init)
