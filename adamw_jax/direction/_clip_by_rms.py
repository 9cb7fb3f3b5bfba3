"""Clip the direction of each leaf at a root mean square.

    u <- u / max(1, RMS(u) / clipping_threshold)             RMS(u) = sqrt(mean |u|^2), leaf by leaf

If gradients grow, the second moment follows with a delay and the steps become too long. This limits
them. Shazeer & Stern, ICML 2018, arXiv 1804.04235, section 6.

>>> import jax.numpy as jnp
>>> stage = clip_by_rms(1.0)
>>> u = jnp.array([3.0, -1.0, 1.0, 3.0])
>>> stage.update(u, stage.init(u))[0].round(4)
Array([ 1.3416, -0.4472,  0.4472,  1.3416], dtype=float32)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, at_least_one, declare
from adamw_jax._core.gradients import norms_of_leaves, size
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any


@shows_options
def clip_by_rms(clipping_threshold: ScalarOrSchedule = 1.0) -> Stage:
    """Scale each leaf of the direction down to a root mean square of ``clipping_threshold``.

    Args:
      clipping_threshold: largest root mean square d, >= 1, or a schedule of it; 1 (paper).

    Returns:
      A stage *direction -> direction*, without state. It needs whole leaves.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.scale_by_adam(), aj.direction.clip_by_rms(1.0), aj.scale_by_learning_rate(1e-3)
      ... )
    """

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        sizes = rms_of_leaves(direction, plain=step.in_sequence)
        step.facts.leaf_scalars = sizes
        if step.facts.again is not None:
            direction = step.facts.again(direction)

        def leaf(u: jax.Array, length: jax.Array) -> jax.Array:
            factor = 1.0 / lax.max(jnp.ones_like(length), length / step["clipping_threshold"])
            return numerics.scaled(factor, numerics.widen(u))

        return jax.tree.map(leaf, direction, sizes), state

    declared = declare(clipping_threshold=at_least_one(clipping_threshold))
    return stage(
        "clip_by_rms",
        Kind.DIRECTION,
        Kind.DIRECTION,
        apply,
        hyperparams=declared,
        reduces=True,
        clips=True,
    )


def rms_of_leaves(tree: Tree, *, plain: bool = False) -> Tree:
    """Return the root mean square of every leaf; see ``norms_of_leaves`` for ``plain``."""
    norms = norms_of_leaves(tree, plain=plain)
    return jax.tree.map(lambda norm, x: norm / max(size(x), 1) ** 0.5, norms, tree)
