"""Estimate the gradient noise scale: the batch size at which noise and signal are equally large.

Let G be the true gradient, Sigma the covariance of the gradient of one example, H the Hessian.

    |G|^2     = (B |g_B|^2 - b |g_b|^2) / (B - b)         g_b, g_B: mean gradients of b, B examples
    tr Sigma  = (|g_b|^2 - |g_B|^2) / (1 / b - 1 / B)     both estimates are unbiased
    B_simple  = tr Sigma / |G|^2,        B_noise = tr(H Sigma) / (G^T H G)

Below the noise scale twice the batch needs half the steps; above it, a larger batch saves little.
The number of steps S and of examples E are related by (S / S_min - 1) (E / E_min - 1) = 1. The
learning rate that lowers the loss most, to second order, is
(|G|^2 / G^T H G) / (1 + B_noise / B). McCandlish, Kaplan, Amodei et al. 2018, arXiv 1812.06162.
During training ``measure_noise_scale`` averages |G|^2 and tr Sigma.

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
      gradient_square: |G|^2, without noise; the estimate can be negative.
      noise_trace: tr Sigma, the variance of one example's gradient summed over the parameters.

    Example:
      >>> import adamw_jax as aj
      >>> found = aj.diagnostics.gradient_noise_scale(2.0, 1.5, small_batch=32, big_batch=256)
      >>> round(float(found.noise_trace / found.gradient_square), 1)  # the simple noise scale
      12.8
    """

    gradient_square: jax.Array
    noise_trace: jax.Array

    @property
    def scale(self) -> jax.Array:
        """Return B_simple in examples; infinite where ``gradient_square`` is not above 0."""
        seen = self.gradient_square > 0
        signal = jnp.where(seen, self.gradient_square, 1.0)
        return jnp.where(seen, self.noise_trace / signal, jnp.inf)


class CurvatureNoise(NamedTuple):
    """Signal, curvature and noise of a step, scalars.

    Attributes:
      gradient_square: |G|^2 of the mean gradient.
      curvature: G^T H G.
      noise_curvature: tr(H Sigma), with the covariance of one example.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # one row a micro-batch
      >>> found = aj.diagnostics.curvature_noise_scale(gradients, lambda v: 2 * v)
      >>> round(float(found.noise_curvature / found.curvature), 2)
      0.75
    """

    gradient_square: jax.Array
    curvature: jax.Array
    noise_curvature: jax.Array

    @property
    def scale(self) -> jax.Array:
        """Return B_noise in examples."""
        return self.noise_curvature / self.curvature

    @property
    def max_learning_rate(self) -> jax.Array:
        """Return the best learning rate of gradient descent without noise, |G|^2 / G^T H G."""
        return self.gradient_square / self.curvature

    def learning_rate(self, batch_size: Any) -> jax.Array:
        """Return the best learning rate with noise, |G|^2 / (G^T H G + tr(H Sigma) / B).

        Args:
          batch_size: B, examples in a batch, > 0, a number or an array of any shape.
        """
        noise = self.noise_curvature / real_array("batch_size", batch_size, above=0)
        return self.gradient_square / (self.curvature + noise)


def gradient_noise_scale(
    small_square: Any, big_square: Any, small_batch: Any, big_batch: Any
) -> NoiseScale:
    """Estimate signal and noise from the squared norms of gradients of two batch sizes.

    One measurement is noisy: average ``gradient_square`` and ``noise_trace`` over many measurements
    *separately*, and divide last.

    Args:
      small_square: |g_b|^2 of a small batch, or the mean over several, any shape.
      big_square: |g_B|^2 of a big batch, the same shape. The small batches may be parts of it.
      small_batch: b, number of examples in a small batch, > 0.
      big_batch: B, number of examples in the big batch, > b.

    Returns:
      A ``NoiseScale`` of arrays of the default float dtype.

    Example:
      >>> import adamw_jax as aj
      >>> found = aj.diagnostics.gradient_noise_scale(2.0, 1.5, small_batch=32, big_batch=256)
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
    """Return the mean of the squared norms of gradients, and the squared norm of their mean.

    Args:
      gradients: two or more gradients of micro-batches of one size, of devices or of examples,
        stacked along the first axis of every leaf.

    Returns:
      ``small_square`` and ``big_square`` of ``gradient_noise_scale``, over all leaves.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> gradients = {"w": jnp.array([[3.0, 4.0], [0.0, 0.0]])}
      >>> small, big = aj.diagnostics.micro_square_norms(gradients)
      >>> float(small), float(big)
      (12.5, 6.25)
    """
    number = _number(gradients)
    wide = jax.tree.map(numerics.widen, gradients)
    return square_norm_of_tree(wide) / number, square_norm_of_tree(_mean(wide))


def curvature_noise_scale(
    gradients: Tree, product: Callable[[Tree], Tree], micro_batch: int = 1
) -> CurvatureNoise:
    """Estimate the noise weighted by the curvature, from stacked gradients and Hessian products.

    Args:
      gradients: as for ``micro_square_norms``. Sigma is their unbiased sample covariance.
      product: ``v -> H v`` on trees like one gradient; it is called once per gradient and once
        more.
      micro_batch: number of examples of each gradient, > 0.

    Returns:
      A ``CurvatureNoise`` of scalars of the default float dtype.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> gradients = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # one row a micro-batch
      >>> found = aj.diagnostics.curvature_noise_scale(gradients, lambda v: 2 * v)
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
