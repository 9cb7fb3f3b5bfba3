"""The sign of a momentum that the new gradient has more weight in: Lion's direction.

    direction = sign(b1 m + (1 - b1) g),   then   m' = b2 m + (1 - b2) g

The mix is computed from m', as b1/b2 m' + (1 - b1 - b1/b2 (1 - b2)) g. It is the same, and XLA can
overwrite m without a copy.

Chen et al., NeurIPS 2023, arXiv 2302.06675.

>>> sign_momentum().spec.kinds
'gradient -> direction'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import Domain, ScalarOrSchedule, decay_rate, declare, storage_dtype
from adamw_jax._core.gradients import check_floating, check_gradient
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Slopes, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any


class SignMomentumState(NamedTuple):
    """State of ``sign_momentum``.

    Attributes:
      average: the moving average of the gradients, params-shaped.
    """

    average: Tree
    momenta = ("average",)
    restarts = True


@shows_options
def sign_momentum(
    b1: ScalarOrSchedule = 0.9, b2: ScalarOrSchedule = 0.99, *, dtype: Any = None
) -> Stage:
    """Replace the gradient by the sign of its mix with a moving average.

    Args:
      b1: weight of the average in the mix, in [0, 1), or a schedule of it; 0.9 (paper).
      b2: decay rate of the average, in (0, 1), or a schedule of it; 0.99 (paper).
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *gradient -> direction* with one value of state per parameter. Of a complex element
      the sign is x / |x|.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.moments.sign_momentum(), aj.scale_by_learning_rate(1e-4))
    """
    dtype = storage_dtype("dtype", dtype)

    def init(params: Tree) -> SignMomentumState:
        check_floating(params, "parameter")
        return SignMomentumState(zeros(params, dtype))

    def apply(
        gradient: Tree, state: SignMomentumState, step: Step
    ) -> tuple[Tree, SignMomentumState]:
        check_gradient(gradient, state.average)

        b1, b2 = step["b1"], step["b2"]
        old = b1 / b2
        new = (1.0 - b1) - old * (1.0 - b2)

        def mix(share: jax.Array, m: jax.Array, other: jax.Array, g: jax.Array) -> jax.Array:
            return lax.add(numerics.scaled(share, m), numerics.scaled(other, g))

        def leaf(m: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
            g = numerics.widen(g)
            average = mix(b2, numerics.widen(m), 1.0 - b2, g)
            return lax.sign(mix(old, average, new, g)), numerics.cast(average, m.dtype)

        both = jax.tree.map(leaf, state.average, gradient)
        direction, average = (jax.tree.map(lambda _, x, i=i: x[i], gradient, both) for i in (0, 1))
        return direction, SignMomentumState(average)

    def slopes(gradient: Tree, state: SignMomentumState, step: Step) -> Tree:
        del gradient, step  # 1 / |m|: a sign is a momentum over its magnitude
        sizes = jax.tree.map(lambda m: lax.abs(numerics.widen(m)), state.average)
        return jax.tree.map(lambda size: 1.0 / numerics.nonzero(size), sizes)

    return stage(
        "sign_momentum",
        Kind.GRADIENT,
        Kind.DIRECTION,
        apply,
        init=init,
        hyperparams=declare(b1=decay_rate(b1), b2=Domain(0, 1, "()")(b2)),
        slopes=Slopes(slopes, needs_loss=False),
    )
