"""Optimize the scales by Adam, with a first moment for each of the two kinds of step.

    m_k <- b1 m_k + (1 - b1) d,    v <- b2 v + (1 - b2) d^2,    d = the slope, clipped to [-c, c]
    scale <- scale - lr (m_k / W_m) / (sqrt(v / W_v) + eps)

k is 0 for steps on the loss and 1 for steps on the norm of the gradient. Both kinds share one v
(the authors' code for vision) or have one each (for translation). W is the sum of the weights of an
average; dividing by it corrects the bias towards 0. Zhu et al. 2021, arXiv 2102.08098, and their
code.

>>> import jax.numpy as jnp
>>> moments = ScaleMoments.zeros(2, shared=True)
>>> slope, kind = jnp.array([2.0, -0.5]), jnp.int32(1)
>>> step, moments = direction(slope, moments, kind, betas=(0.9, 0.999), clip=1.0)
>>> print(step.round(3), moments.first.weight_sum.round(3))
[ 1. -1.] [0.  0.1]
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics

EPS = 1e-8
KINDS = 2


class Averages(NamedTuple):
    """Moving averages, one per row; ``weight_sum`` holds the sums of their weights."""

    mean: jax.Array
    weight_sum: jax.Array

    @classmethod
    def zeros(cls, rows: int, size: int) -> Averages:
        """Return averages of shape (rows, size) before the first value."""
        dtype = numerics.default_float()
        return cls(jnp.zeros([rows, size], dtype), jnp.zeros([rows], dtype))

    def enter(self, row: jax.Array, value: jax.Array, rate: float) -> Averages:
        """Return the averages with ``value`` added to one row."""
        b = numerics.scalar(rate)
        return Averages(
            self.mean.at[row].set(b * self.mean[row] + (1.0 - b) * value),
            self.weight_sum.at[row].set(b * self.weight_sum[row] + (1.0 - b)),
        )

    def corrected(self, row: jax.Array) -> jax.Array:
        """Return a row without the bias towards 0; it needs at least one value."""
        return self.mean[row] / self.weight_sum[row]


class ScaleMoments(NamedTuple):
    """Moments of the slopes.

    Attributes:
      first: averages of the slopes, shape (2, blocks), one row for each kind of step.
      second: averages of their squares, shape (1, blocks) if both kinds share one, else
        (2, blocks).
    """

    first: Averages
    second: Averages

    @classmethod
    def zeros(cls, blocks: int, shared: bool) -> ScaleMoments:
        """Return the moments before the first step.

        Args:
          blocks: number of blocks.
          shared: whether both kinds of step share one second moment.
        """
        return cls(Averages.zeros(KINDS, blocks), Averages.zeros(1 if shared else KINDS, blocks))


def direction(
    slope: jax.Array,
    moments: ScaleMoments,
    kind: jax.Array,
    *,
    betas: tuple[float, float],
    clip: float,
) -> tuple[jax.Array, ScaleMoments]:
    """Return the direction of a step, without the learning rate, and the new moments.

    Args:
      slope: derivatives with respect to the scales, shape (blocks,).
      moments: moments before the step.
      kind: kind of the step, 0 or 1, a scalar of an integer dtype.
      betas: decay rates of the first and the second moments.
      clip: largest magnitude of a slope, infinity for no bound.
    """
    bound = jnp.asarray(clip, slope.dtype)
    clipped = lax.clamp(-bound, slope, bound)
    row = kind if len(moments.second.weight_sum) == KINDS else jnp.zeros_like(kind)
    first = moments.first.enter(kind, clipped, betas[0])
    second = moments.second.enter(row, clipped * clipped, betas[1])
    step = first.corrected(kind) / (lax.sqrt(second.corrected(row)) + EPS)
    return step, ScaleMoments(first, second)
