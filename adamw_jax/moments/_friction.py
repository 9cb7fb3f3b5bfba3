"""diffGrad's friction: a smaller step where the gradient hardly changes.

    xi = 1 / (1 + exp(-|g_previous - g|))            in [1/2, 1); g_previous = 0 at the first step
    direction <- xi direction

Dubey et al., TNNLS 2020, arXiv 1909.11015. It depends on the gradient's scale: where |g| << 1, as
in most networks, xi is 1/2 and the optimizer is Adam at half the learning rate.

>>> friction().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.record import Moments, emptied
from adamw_jax._core.sequential import after
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.moments._parts import zeros

Tree = Any

VARIANTS = ("abs", "signed", "wide")


class FrictionState(NamedTuple):
    """State of ``friction``.

    Attributes:
      previous: the previous gradient, params-shaped.
    """

    previous: Tree

    restarts = True


def friction(variant: str = "abs", *, dtype: Any = None) -> Stage:
    """Multiplies the direction by a sigmoid of the gradient's change, element by element.

    Args:
      variant: ``"abs"``, sigmoid(|d|) in [1/2, 1) (paper); ``"signed"``, sigmoid(d) in (0, 1) with
        d = g_previous - g (the paper's DFC1); ``"wide"``, 9 sigmoid(|d|/2) - 4 in [1/2, 5) (DFC2).
        Of complex gradients the absolute value is taken; ``"signed"`` refuses them.
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A stage *moments -> moments* with one value of state per parameter. It may stand before or
      after the other ones, and combines with rectification.

    Raises:
      ValueError: ``variant`` is unknown.
      TypeError: (in ``init``) ``dtype`` is no real floating-point dtype, or (in ``update``)
        ``"signed"`` meets complex gradients.
    """
    one_of("variant", variant, VARIANTS)

    def init(params: Tree) -> FrictionState:
        return FrictionState(zeros(params, dtype))

    def apply(record: Moments, state: FrictionState, step: Step) -> tuple[Moments, FrictionState]:
        del step

        def leaf(old: jax.Array, g: jax.Array) -> jax.Array:
            change = lax.sub(numerics.widen(old), numerics.widen(g))
            if variant == "signed":
                if jax.numpy.iscomplexobj(change):
                    raise TypeError('variant="signed" has no meaning for complex gradients.')
                return lax.logistic(change)
            size = lax.abs(change)
            if variant == "abs":
                return lax.logistic(size)
            half, nine, four = (lax.full_like(size, x) for x in (0.5, 9.0, 4.0))
            return lax.sub(lax.mul(nine, lax.logistic(lax.mul(half, size))), four)

        factor = jax.tree.map(leaf, emptied(state.previous, record.restarted), record.gradient)
        previous = jax.tree.map(
            lambda g, old: numerics.cast(g, old.dtype), record.gradient, state.previous
        )
        return record.scaled(factor), FrictionState(previous)

    def write_after_read(state: FrictionState, direction: Tree, step: Step) -> FrictionState:
        return FrictionState(after(state.previous, direction))

    return stage(
        "friction",
        Kind.MOMENTS,
        Kind.MOMENTS,
        apply,
        init=init,
        write_after_read=write_after_read,
        reads="gradient",
    )
