"""Provide exponential moving averages as parts of ``estimate_moments``.

    first:   m' = b1 m + (1 - b1) g
    second:  v' = b2 v + (1 - b2) |g|^2                    (Adam; Kingma & Ba 2014, 1412.6980)
             s' = b2 s + (1 - b2) |g - m'|^2 + eps_root    (AdaBelief; Zhuang et al., 2010.07468)

>>> import jax.numpy as jnp
>>> part = ema(0.9)
>>> part.init(jnp.zeros(2)).moment
Array([0., 0.], dtype=float32)
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Clock
from adamw_jax._core.stage import Step
from adamw_jax.moments._parts import Part, average

Tree = Any


@shows_options
def ema(b1: ScalarOrSchedule = 0.9, *, dtype: Any = None, storage: Any = None) -> Part:
    """Average gradients, ``m' = b1 m + (1 - b1) g``.

    Args:
      b1: decay rate in [0, 1), or a schedule of it; 0.9 (Adam's paper).
      dtype: storage dtype; the default is float32 (float64 under x64). Arithmetic is in float32
        whatever the storage dtype.
      storage: ``"8bit"`` and the like, as for ``quantize_state``; the step reads the moment before
        it is encoded. None stores arrays of ``dtype``.

    Returns:
      A part for the first moment, with one value of state per parameter. Its ``Clock`` of two
      scalars keeps the sum of the weights, for bias correction.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    return average(
        "ema",
        "b1",
        declare(b1=decay_rate(b1)),
        lambda gradient, first: jax.tree.map(numerics.widen, gradient),
        dtype=dtype,
        real=False,
        storage=storage,
        elementwise=True,
    )


class SquaresState(NamedTuple):
    """State of ``ema_of_squares``.

    Attributes:
      squares: the average, params-shaped.
      clock: its weights.
    """

    squares: Tree
    clock: Clock
    twins = ("ScaleByAdamState.nu", "ScaleByAmsgradState.nu", "TorchState.exp_avg_sq")
    moment = property(operator.itemgetter(0))


@shows_options
def ema_of_squares(
    b2: ScalarOrSchedule = 0.999,
    *,
    dtype: Any = None,
    storage: Any = None,
    rate_name: str = "b2",
    from_first: bool = False,
) -> Part:
    """Average squared magnitudes, ``v' = b2 v + (1 - b2) |g|^2``.

    Some first moments, such as ``gradient_differences``, provide another array to be squared in
    place of the gradient.

    Args:
      b2: decay rate in [0, 1), or a schedule of it; 0.999 (Adam's paper).
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.
      rate_name: name of the decay rate for ``set_hyperparams``: ``"b2"``, or ``"b3"`` as in Adan.
      from_first: start the average at the first squared gradient instead of 0; then it has no bias.

    Returns:
      A part for the second moment, with one real value of state per parameter, and a clock.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def squares(gradient: Tree, first: Any) -> Tree:
        entry = gradient if first is None or first.entry is None else first.entry
        return jax.tree.map(lambda g: numerics.abs_square(numerics.widen(g)), entry)

    return average(
        "ema_of_squares",
        rate_name,
        declare(**{rate_name: decay_rate(b2)}),
        squares,
        dtype=dtype,
        real=True,
        kind=SquaresState,
        from_first=from_first,
        storage=storage,
        elementwise=True,
    )


class SquaredMomentumState(NamedTuple):
    """State of ``ema_of_squared_momentum``.

    Attributes:
      squared_momentum: the average, params-shaped.
      clock: its weights.
    """

    squared_momentum: Tree
    clock: Clock
    moment = property(operator.itemgetter(0))


@shows_options
def ema_of_squared_momentum(
    b2: ScalarOrSchedule = 0.999, *, dtype: Any = None, storage: Any = None
) -> Part:
    """Average the squared first moment, ``v' = b2 v + (1 - b2) |m'|^2``.

    ``m'`` includes this gradient and is not bias corrected (Crawshaw et al., 2208.11195).

    Args:
      b2: decay rate in [0, 1), or a schedule of it; 0.999.
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the second moment, with one real value of state per parameter, and a clock.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.moments.ema_of_squared_momentum(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def squares(gradient: Tree, first: Any) -> Tree:
        del gradient
        return jax.tree.map(numerics.abs_square, first.raw)

    return average(
        "ema_of_squared_momentum",
        "b2",
        declare(b2=decay_rate(b2)),
        squares,
        dtype=dtype,
        real=True,
        kind=SquaredMomentumState,
        storage=storage,
        elementwise=True,
    )


class CenteredSquaresState(NamedTuple):
    """State of ``ema_of_centered_squares``.

    Attributes:
      centered_squares: the average, params-shaped.
      clock: its weights.
    """

    centered_squares: Tree
    clock: Clock
    twins = ("ScaleByBeliefState.nu",)
    moment = property(operator.itemgetter(0))


class FlooredSquaresState(NamedTuple):
    """State of ``ema_of_centered_squares(from_floor=True)``.

    Attributes:
      floored_squares: the average, which started at ``eps_root``, params-shaped.
      clock: its weights.
    """

    floored_squares: Tree
    clock: Clock
    moment = property(operator.itemgetter(0))


@shows_options
def ema_of_centered_squares(
    b2: ScalarOrSchedule = 0.999,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    from_floor: bool = False,
    dtype: Any = None,
    storage: Any = None,
) -> Part:
    """Average squared residuals, ``s' = b2 s + (1 - b2) |g - m'|^2 + eps_root``.

    ``m'`` includes this gradient and is not bias corrected. As in the paper every step adds
    ``eps_root``, so its share of the average tends to ``eps_root / (1 - b2)``.

    Args:
      b2: decay rate in [0, 1), or a schedule of it; 0.999.
      eps_root: added at every step, >= 0; 1e-16, as in ``adabelief``.
      from_floor: start the accumulator at ``eps_root`` instead of 0 (ACProp with AMSGrad). The two
        accumulators have states of different classes.
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the second moment, with one real value of state per parameter, and a clock.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.moments.ema_of_centered_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def residual(gradient: Tree, first: Any) -> Tree:
        return jax.tree.map(
            lambda g, m: numerics.abs_square(lax.sub(numerics.widen(g), m)), gradient, first.raw
        )

    def floor(step: Step) -> jax.Array:
        added = step["eps_root"]
        if not from_floor:
            return added
        return added + lax.select(step.count == 0, step["b2"] * added, jnp.zeros_like(added))

    return average(
        "ema_of_centered_squares",
        "b2",
        declare(b2=decay_rate(b2), eps_root=nonnegative(eps_root)),
        residual,
        dtype=dtype,
        real=True,
        kind=FlooredSquaresState if from_floor else CenteredSquaresState,
        floor=floor,
        storage=storage,
        elementwise=True,
    )
