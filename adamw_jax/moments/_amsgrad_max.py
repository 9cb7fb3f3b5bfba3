"""Keep AMSGrad's running maximum of the second moment (Reddi, Kale & Kumar, ICLR 2018).

    v_max' = max(v_max, v)

The place of the stage selects the variant. Before ``correct_bias`` it is the form of PyTorch, Keras
and the fastai article; after it, with ``corrected=True``, that of optax. Without ``correct_bias``
it is the paper's.

>>> amsgrad_max().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments, emptied
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any


class MaximumState(NamedTuple):
    """State of ``amsgrad_max()``.

    Attributes:
      maximum: the largest second moment so far, params-shaped and real.
    """

    maximum: Tree

    nonnegative = ("maximum",)
    restarts = True


class CorrectedMaximumState(NamedTuple):
    """State of ``amsgrad_max(corrected=True)``.

    Attributes:
      corrected_maximum: the largest corrected second moment so far, params-shaped and real.
    """

    corrected_maximum: Tree

    nonnegative = ("corrected_maximum",)
    twins = ("ScaleByAmsgradState.nu_max",)
    restarts = True


@shows_options
def amsgrad_max(corrected: bool = False, *, dtype: Any = None) -> Stage:
    """Replace the second moment by the largest one so far, element by element.

    Args:
      corrected: True if the stage comes after ``correct_bias`` and so keeps the maximum of the
        corrected moment. The two maxima have states of different classes.
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *moments -> moments* with one value of state per parameter.

    Raises:
      ValueError: (in ``update``) the recipe has no second moment, or ``corrected`` does not fit the
        place of the stage.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.moments.amsgrad_max(),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    switch("corrected", corrected)
    kept = CorrectedMaximumState if corrected else MaximumState

    def init(params: Tree) -> Any:
        return kept(zeros(params, dtype, real=True))

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        del step
        if record.second is None:
            raise ValueError(
                "amsgrad_max() needs a second moment, and the recipe has none: give "
                "estimate_moments a part for it, such as ema_of_squares(0.999)."
            )
        if (record.second.divisor is not None) != corrected:
            raise ValueError(
                f"amsgrad_max(corrected={corrected}) gets a second moment whose bias is "
                f"{'not ' * corrected}corrected: give corrected={not corrected}, or put the stage "
                f"{'after' if corrected else 'before'} correct_bias()."
            )
        if not isinstance(state, kept):
            raise ValueError(
                f"amsgrad_max(corrected={corrected}) gets a state with corrected={not corrected}, "
                "which is another maximum: start with its own init."
            )
        (maximum,) = state
        largest = jax.tree.map(
            lambda old, new: lax.max(numerics.widen(old), new),
            emptied(maximum, record.restarted),
            record.second.value,
        )
        return record.with_second(largest), kept(numerics.cast_like(largest, maximum))

    return stage("amsgrad_max", Kind.MOMENTS, Kind.MOMENTS, apply, init=init, elementwise=True)
