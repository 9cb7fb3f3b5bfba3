"""Move only the elements whose direction has the sign of the gradient (cautious updates).

    mask = 1 where u g > 0, else 0
    u <- u mask / max(mean(mask), 1e-3)                    the mean over the leaf

A momentum may still point uphill after the gradient has turned. These elements wait. The division
keeps the size of the whole step. Liang, Chen, Liu & Liu 2024, arXiv 2411.16085.

>>> cautious().spec.kinds
'direction -> direction'
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.gradients import check_gradient, size, sum_over_shards
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

_LEAST_SHARE = 1e-3


def cautious() -> Stage:
    """Zero the elements of the direction whose sign differs from that of the gradient.

    The gradient is the one that the moments see, after clipping and L2. The other elements of the
    leaf are divided by their share of it, at least 1e-3 (authors' C-AdamW; their C-Lion adds 1 to
    the number of moving elements). Complex elements move if the real part of conj(u) g is positive.
    Put the stage before ``decoupled_decay``.

    Returns:
      A stage *direction -> direction*, without state. It needs whole leaves, and a ``compose`` that
      also makes the direction.

    Raises:
      ValueError: (in ``update``) it stands alone, as in ``optax.chain``, where no stage can tell it
        the gradient.

    >>> import jax.numpy as jnp
    >>> from adamw_jax import compose, scale_by_adam
    >>> tx = compose(scale_by_adam(), cautious())
    >>> params = jnp.zeros(2)
    >>> _, state = tx.update(jnp.array([5.0, 5.0]), tx.init(params), params)
    >>> tx.update(jnp.array([-1.0, 5.0]), state, params)[0].round(2)
    Array([0., 2.], dtype=float32)
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        gradient = step.facts.gradient
        if gradient is None:
            raise ValueError(
                "cautious() needs the gradient from the stage that makes the direction: put both "
                "into one compose(), such as compose(scale_by_adam(), cautious())."
            )
        check_gradient(direction, gradient)
        agree = jax.tree.map(numerics.agreement, direction, gradient)
        scales = jax.tree.map(_scale, agree, direction)
        step.facts.leaf_scalars = scales

        def leaf(u: jax.Array, agree: jax.Array, scale: jax.Array) -> jax.Array:
            wide = numerics.widen(u)  # <= is false for a NaN, which so stays
            waits = lax.le(agree, lax.full_like(agree, 0))
            return lax.select(waits, lax.full_like(wide, 0), numerics.scaled(scale, wide))

        return jax.tree.map(leaf, direction, agree, scales), state

    return stage("cautious", Kind.DIRECTION, Kind.DIRECTION, apply, reduces=True)


def _scale(agree: jax.Array, leaf: jax.Array) -> jax.Array:
    ones = lax.convert_element_type(agree > 0, numerics.default_float())
    count = sum_over_shards([(lax.reduce_sum(ones, tuple(range(agree.ndim))), leaf)])
    return 1.0 / lax.max(count / max(size(leaf), 1), numerics.scalar(_LEAST_SHARE))
