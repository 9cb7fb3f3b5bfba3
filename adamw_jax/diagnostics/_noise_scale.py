"""The gradient noise scale: the batch size at which noise and signal weigh the same in a step.

With G the true gradient, Sigma the covariance of one example's and H the Hessian,

    |G|^2     = (B |g_B|^2 - b |g_b|^2) / (B - b)         from batches of b and of B examples,
    tr Sigma  = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)     both without bias
    B_simple  = tr Sigma / |G|^2,        B_noise = tr(H Sigma) / (G^T H G)

Below the noise scale a larger batch saves as many steps as it is larger, above it little: of the
smallest numbers of steps and examples, (S / S_min - 1) (E / E_min - 1) = 1. The step that lowers
the loss most, to second order, is (|G|^2 / G^T H G) / (1 + B_noise / B). McCandlish, Kaplan, Amodei
et al. 2018, arXiv 1812.06162. In training, ``measure_noise_scale`` averages the two.

>>> import jax
>>> draws = jax.random.normal(jax.random.key(0), (512, 8, 4)) + 0.5     # |G|^2 = 1, tr Sigma = 4
>>> found = gradient_noise_scale(*micro_square_norms(draws.mean(1)), 8, 8 * 512)
>>> print(found.gradient_square.round(1), found.noise_trace.round(1), found.scale.round(0))
1.0 4.0 4.0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.gradients import check_floating, square_norm_of_tree
from adamw_jax.curvature._arrays import inner, real_array

Tree = Any


class NoiseScale(NamedTuple):
    """Signal and noise of a gradient, arrays of one shape.

    Attributes:
      gradient_square: |G|^2, of the gradient without noise; its estimate can be negative.
      noise_trace: tr Sigma, the variance of one example's gradient summed over the parameters.
    """

    gradient_square: jax.Array
    noise_trace: jax.Array

    @property
    def scale(self) -> jax.Array:
        """B_simple in examples; infinite where no gradient is seen under the noise."""
        seen = self.gradient_square > 0
        signal = jnp.where(seen, self.gradient_square, 1.0)
        return jnp.where(seen, self.noise_trace / signal, jnp.inf)


class CurvatureNoise(NamedTuple):
    """What noise and curvature leave of a step, scalars.

    Attributes:
      gradient_square: |G|^2 of the mean of the gradients.
      curvature: G^T H G.
      noise_curvature: tr(H Sigma), of one example's covariance.
    """

    gradient_square: jax.Array
    curvature: jax.Array
    noise_curvature: jax.Array

    @property
    def scale(self) -> jax.Array:
        """B_noise in examples."""
        return self.noise_curvature / self.curvature

    @property
    def max_learning_rate(self) -> jax.Array:
        """The best step of gradient descent without noise, |G|^2 / G^T H G."""
        return self.gradient_square / self.curvature

    def learning_rate(self, batch_size: Any) -> jax.Array:
        """The best step of gradient descent under noise, |G|^2 / (G^T H G + tr(H Sigma) / B).

        Args:
          batch_size: B, examples in a batch, > 0, a number or an array of any shape.

        Raises:
          ValueError: ``batch_size`` is out of its range.
        """
        noise = self.noise_curvature / real_array("batch_size", batch_size, above=0)
        return self.gradient_square / (self.curvature + noise)


def gradient_noise_scale(
    small_square: Any, big_square: Any, small_batch: Any, big_batch: Any
) -> NoiseScale:
    """Signal and noise from the squared norms of gradients of two batch sizes.

    One measurement is noisy: average ``gradient_square`` and ``noise_trace`` over many, *each for
    itself*, and take the ratio last.

    Args:
      small_square: |g_b|^2 of a small batch, or the mean over several, any shape.
      big_square: |g_B|^2 of a big batch, of which the small ones may be parts; of that shape.
      small_batch: b, examples behind ``small_square``, > 0.
      big_batch: B, examples behind ``big_square``, > b.

    Returns:
      Arrays of the default float dtype.

    Raises:
      ValueError: the batch sizes are not 0 < b < B, or a square is negative.
    """
    small = real_array("small_square", small_square, least=0)
    big = real_array("big_square", big_square, least=0)
    few = real_array("small_batch", small_batch, above=0)
    many = real_array("big_batch", big_batch, above=0)
    if not any(isinstance(x, jax.core.Tracer) for x in (small_batch, big_batch)):
        low, high = np.broadcast_arrays(np.asarray(small_batch), np.asarray(big_batch))
        if (wrong := high <= low).any():
            raise ValueError(
                f"big_batch must be > small_batch everywhere, got {high[wrong][0]} and "
                f"{low[wrong][0]}: the two norms must be of different batch sizes."
            )
    signal = (many * big - few * small) / (many - few)
    noise = (small - big) / (1.0 / few - 1.0 / many)
    return NoiseScale(signal, noise)


def micro_square_norms(gradients: Tree) -> tuple[jax.Array, jax.Array]:
    """The mean of the squared norms of gradients, and the squared norm of their mean.

    Args:
      gradients: stacked along a first axis, of equally large micro-batches, devices or examples.

    Returns:
      ``small_square`` and ``big_square`` of ``gradient_noise_scale``, over all leaves.

    Raises:
      ValueError: the first axes differ, or there are fewer than two gradients.
      TypeError: a gradient is not floating-point.
    """
    number = _number(gradients)
    wide = jax.tree.map(numerics.widen, gradients)
    return square_norm_of_tree(wide) / number, square_norm_of_tree(_mean(wide))


def curvature_noise_scale(
    gradients: Tree, product: Callable[[Tree], Tree], micro_batch: int = 1
) -> CurvatureNoise:
    """Noise as the curvature weighs it, from stacked gradients and Hessian products.

    Args:
      gradients: as for ``micro_square_norms``; the covariance is that of the sample, unbiased.
      product: ``v -> H v`` on trees like one gradient; one product for each gradient and one more.
      micro_batch: examples behind each gradient, > 0.

    Returns:
      Scalars of the default float dtype.

    Raises:
      ValueError: the first axes differ, there are fewer than two gradients, or ``micro_batch`` is
        out of its range.
      TypeError: a gradient is not floating-point.
    """
    number = _number(gradients)
    examples = real_array("micro_batch", micro_batch, above=0)
    gradients = jax.tree.map(numerics.widen, gradients)
    mean = _mean(gradients)

    def along(v: Tree) -> jax.Array:
        return inner(v, product(v))

    deviations = jax.tree.map(lambda g, m: g - m[None], gradients, mean)
    trace = jnp.sum(lax.map(along, deviations)) * examples / (number - 1.0)
    return CurvatureNoise(square_norm_of_tree(mean), along(mean), trace)


def _number(gradients: Tree) -> float:
    check_floating(gradients, "gradient of")
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(gradients)}
    if len(lengths) != 1 or not (length := lengths.pop()) or length[0] < 2:
        shapes = [jnp.shape(x) for x in jax.tree.leaves(gradients)]
        raise ValueError(
            "gradients must be stacked: two or more of them along the first axis of every leaf, "
            f"got the shapes {shapes}."
        )
    return float(length[0])


def _mean(gradients: Tree) -> Tree:
    return jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
