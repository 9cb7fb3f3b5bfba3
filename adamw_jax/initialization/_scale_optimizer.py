"""The optimizer of the scales: Adam with a first moment for each of the two kinds of step.

    m_k <- b1 m_k + (1 - b1) d,    v <- b2 v + (1 - b2) d^2,    d = the slope, clipped to [-c, c]
    scale <- scale - lr (m_k / mass) / (sqrt(v / mass) + eps)

k is 0 for steps on the loss and 1 for steps on the gradient's norm; v is shared by both kinds (the
authors' code for vision) or kept apart (for translation). Division by the mass, the sum of an
average's weights, corrects its bias. Zhu et al. 2021, arXiv 2102.08098, and their code.

>>> import jax.numpy as jnp
>>> moments = ScaleMoments.zeros(2, shared=True)
>>> slope, kind = jnp.array([2.0, -0.5]), jnp.int32(1)
>>> step, moments = direction(slope, moments, kind, betas=(0.9, 0.999), clip=1.0)
>>> print(step.round(3), moments.first.mass.round(3))
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
    """Moving averages, a row for each, and the sums of their weights."""

    mean: jax.Array
    mass: jax.Array

    @classmethod
    def zeros(cls, rows: int, size: int) -> Averages:
        """Averages of nothing, of shape (rows, size)."""
        dtype = numerics.default_float()
        return cls(jnp.zeros([rows, size], dtype), jnp.zeros([rows], dtype))

    def enter(self, row: jax.Array, value: jax.Array, rate: float) -> Averages:
        """``value`` taken into one row."""
        b = numerics.scalar(rate)
        return Averages(
            self.mean.at[row].set(b * self.mean[row] + (1.0 - b) * value),
            self.mass.at[row].set(b * self.mass[row] + (1.0 - b)),
        )

    def corrected(self, row: jax.Array) -> jax.Array:
        """A row with which something has been averaged, without the bias towards 0."""
        return self.mean[row] / self.mass[row]


class ScaleMoments(NamedTuple):
    """Moments of the slopes.

    Attributes:
      first: averages of shape (2, blocks), a row for each kind of step.
      second: of their squares, (1, blocks) where both kinds share one, otherwise (2, blocks).
    """

    first: Averages
    second: Averages

    @classmethod
    def zeros(cls, blocks: int, shared: bool) -> ScaleMoments:
        """The moments before the first step.

        Args:
          blocks: how many there are.
          shared: whether both kinds of step have one second moment.
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
    """The direction of a step, to be multiplied by the scales' learning rate, and new moments.

    Args:
      slope: derivatives in the scales, shape (blocks,).
      moments: before the step.
      kind: 0 or 1, a scalar of an integer dtype.
      betas: decay rates of the first and the second moments.
      clip: largest magnitude of a slope, infinity for no bound.
    """
    bound = jnp.asarray(clip, slope.dtype)
    clipped = lax.clamp(-bound, slope, bound)
    row = kind if len(moments.second.mass) == KINDS else jnp.zeros_like(kind)
    first = moments.first.enter(kind, clipped, betas[0])
    second = moments.second.enter(row, clipped * clipped, betas[1])
    step = first.corrected(kind) / (lax.sqrt(second.corrected(row)) + EPS)
    return step, ScaleMoments(first, second)
