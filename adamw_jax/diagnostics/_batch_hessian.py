"""Predict the largest eigenvalue of a mini-batch Hessian, whose spectrum noise widens.

    H_batch = H + E,    E symmetric with independent entries of variance sigma^2 / b
    1/b = 1/B - 1/N                                  (B of N examples, drawn without replacement)
    edge = sigma sqrt(P / b)                                                      (P parameters)
    lambda_batch = lambda + edge^2 / lambda  if lambda > edge,    else 2 edge

The largest stable step of SGD, 2 / lambda_batch, grows with the batch until it reaches 2 / lambda.
If a preconditioner has flattened the spectrum, the edge decides and the step grows as sqrt(B).
Granziol, Zohren & Roberts, JMLR 2022, arXiv 2006.09092.

>>> batch_hessian_extreme([0.5, 10.0], sigma=0.1, num_params=800, batch_size=4).round(1)
Array([ 2.8, 10.2], dtype=float32)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from adamw_jax._core.checks import number
from adamw_jax.curvature._arrays import broadcast, real_array


def batch_hessian_extreme(
    eigenvalue: Any, sigma: Any, num_params: Any, batch_size: Any, dataset_size: Any = None
) -> jax.Array:
    """Predict the largest eigenvalue of the Hessian of a batch.

    Args:
      eigenvalue: lambda, the largest of the full Hessian, or several outlying ones. For the lower
        end of a spectrum negate it, and negate the result.
      sigma: standard deviation of an entry of the Hessian of one example, >= 0;
        ``hessian_noise`` measures it.
      num_params: P, >= 1.
      batch_size: B, > 0.
      dataset_size: N, >= B, for batches without replacement; None for infinitely many examples.

    Returns:
      An array of the default float dtype, of the shape that the arguments broadcast to.

    Example:
      >>> import adamw_jax as aj
      >>> found = aj.diagnostics.batch_hessian_extreme(10.0, 0.1, num_params=10_000, batch_size=128)
    """
    examples = real_array("batch_size", batch_size, above=0)
    total = real_array("dataset_size", math.inf if dataset_size is None else dataset_size, above=0)
    eigenvalue, sigma, params, examples, total = broadcast(
        eigenvalue=real_array("eigenvalue", eigenvalue),
        sigma=real_array("sigma", sigma, least=0),
        num_params=real_array("num_params", num_params, least=1),
        batch_size=examples,
        dataset_size=total,
    )
    share = 1.0 / examples - 1.0 / total
    if not isinstance(share, jax.core.Tracer) and bool((share < 0).any()):
        raise ValueError(
            f"batch_size must be at most dataset_size, got {batch_size} and {dataset_size}."
        )
    noise = params * sigma * sigma * share
    edge = jnp.sqrt(noise)
    outlier = eigenvalue > edge
    return jnp.where(outlier, eigenvalue + noise / jnp.where(outlier, eigenvalue, 1.0), 2.0 * edge)


def minimal_damping(learning_rate: float, batch_size: float, scale: float = 256.0) -> float:
    """Estimate the smallest damping for second-order and adaptive methods by a heuristic.

        damping = scale learning_rate / batch_size

    Args:
      learning_rate: >= 0.
      batch_size: examples, > 0.
      scale: damping times batch size at a learning rate of 1, > 0; 256 is the value of the authors
        for KFAC on VGG-16. It has the units of the curvature: tune it once and keep it.

    Example:
      >>> import adamw_jax as aj
      >>> damping = aj.diagnostics.minimal_damping(0.1, batch_size=128)
    """
    rate = number("learning_rate", learning_rate, least=0)
    return number("scale", scale, above=0) * rate / number("batch_size", batch_size, above=0)
