"""Compute the best learning rate and momentum for a quadratic from its eigenvalues.

    L = the largest, mu = the smallest absolute eigenvalue that counts
    q = (sqrt L - sqrt mu) / (sqrt L + sqrt mu)
    sgd          lr = 2 / (L + mu)
    heavy ball   lr = (2 / (sqrt L + sqrt mu))^2,    momentum = q^2
    nesterov     lr = 1 / L,                         momentum = q

Polyak 1964; Nesterov 1983. Granziol, Zohren & Roberts, JMLR 2022, arXiv 2006.09092, propose to
estimate L and mu by a few Lanczos steps during training. Their scripts have mu instead of its root
in the denominator of the momentum.

>>> print(*lr_momentum_from_spectrum([1.0, 4.0, 9.0], method="heavy_ball", mu="non_bulk_min"))
0.25 0.25
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core.checks import one_of
from adamw_jax.curvature._arrays import broadcast, real_array

METHODS = ("sgd", "heavy_ball", "nesterov")
SMALLEST = ("median", "non_bulk_min")
_BULK = 0.5


class Rates(NamedTuple):
    """The result of ``lr_momentum_from_spectrum``, scalars of the default float dtype.

    Attributes:
      learning_rate: the learning rate of the chosen method.
      momentum: the momentum of the chosen method, in [0, 1]; 0 for SGD.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> rates = aj.curvature.lr_momentum_from_spectrum(jnp.array([0.1, 1.0, 10.0]))
      >>> tx = aj.sgdw(rates.learning_rate, momentum=rates.momentum)
    """

    learning_rate: jax.Array
    momentum: jax.Array


def lr_momentum_from_spectrum(
    ritz_values: Any, ritz_weights: Any = None, *, method: str = "sgd", mu: str = "median"
) -> Rates:
    """Compute learning rate and momentum from estimated eigenvalues.

    Args:
      ritz_values: shape (k,), in any order, such as those of ``lanczos``; signs are ignored.
      ritz_weights: their weights, shape (k,); None for equal ones. Values of weight 0, such as
        those after a breakdown of the iteration, are left out.
      method: ``"sgd"``, momentum 0; ``"heavy_ball"``, m <- momentum m + g; ``"nesterov"``.
      mu: ``"median"`` of the values, or ``"non_bulk_min"``, the smallest value without the bulk
        near zero: a value with more than half of the weight.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> rates = aj.curvature.lr_momentum_from_spectrum(jnp.array([0.1, 1.0, 10.0]))
    """
    one_of("method", method, METHODS)
    one_of("mu", mu, SMALLEST)
    values = jnp.abs(real_array("ritz_values", ritz_values))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"ritz_values must have shape (k,), k >= 1, got {values.shape}.")
    even = 1.0 / values.size
    weights = real_array("ritz_weights", even if ritz_weights is None else ritz_weights, least=0)
    values, weights = broadcast(ritz_values=values, ritz_weights=weights)
    counts = weights > 0
    largest = jnp.max(jnp.where(counts, values, 0.0))
    smallest = _median(values, counts) if mu == "median" else _least(values, weights, counts)
    high, low = jnp.sqrt(largest), jnp.sqrt(smallest)
    momentum = (high - low) / (high + low)
    if method == "sgd":
        return Rates(2.0 / (largest + smallest), jnp.zeros_like(largest))
    if method == "heavy_ball":
        return Rates((2.0 / (high + low)) ** 2, momentum**2)
    return Rates(1.0 / largest, momentum)


def _median(values: jax.Array, counts: jax.Array) -> jax.Array:
    ordered = jnp.sort(jnp.where(counts, values, jnp.inf))
    number = jnp.sum(counts, dtype=jnp.int32)
    return 0.5 * (ordered[(number - 1) // 2] + ordered[number // 2])


def _least(values: jax.Array, weights: jax.Array, counts: jax.Array) -> jax.Array:
    """Return the smallest value that is not the bulk, or the bulk if there is no other value."""
    others = counts & (weights <= _BULK)
    chosen = jnp.where(jnp.any(others), others, counts)
    return jnp.min(jnp.where(chosen, values, jnp.inf))
