"""``hessian_noise``: how far the Hessians of batches lie apart, along one random direction.

    z random, |z| = 1;   mu = z^T H z,   delta = |H z - mu z|^2,   variance = mean_b |H_b z - H z|^2
    sigma^2 = variance b / P,    1/b = 1/B - 1/N       noise of an entry, for one example
    shrinkage a = 1 - variance / (n delta)             of n batches: the share of delta that is real

After the damping script that goes with Granziol, Zohren & Roberts, JMLR 2022, arXiv 2006.09092.

>>> import jax, jax.numpy as jnp, numpy as np
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.mean((batch @ w) ** 2)
>>> batches = np.random.default_rng(0).normal(size=(200, 4, 20))
>>> found = hessian_noise(loss_fn, jnp.zeros(20), batches.astype("f"), jax.random.key(1))
>>> print(found.mean.round(1), found.sigma.round(1))
1.0 1.0
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax import numerics
from adamw_jax.checks import number
from adamw_jax.curvature.arrays import examples, inner
from adamw_jax.curvature.products import LossFn, hvp, real_params
from adamw_jax.gradients import square_norm_of_tree

Tree = Any


class HessianNoise(NamedTuple):
    """What ``hessian_noise`` found, scalars of the default float dtype.

    Attributes:
      mean: mu, the mean of the eigenvalues as the direction sees it.
      dispersion: delta, their variance as the direction sees it, the noise included.
      variance: of H_b z over the batches, summed over the parameters and divided by their number.
      sigma: noise of an entry of the Hessian for one example, for ``batch_hessian_extreme``.
      shrinkage: a, by which the Hessian's spectrum is to be drawn to its mean.
    """

    mean: jax.Array
    dispersion: jax.Array
    variance: jax.Array
    sigma: jax.Array
    shrinkage: jax.Array

    def damping(self, learning_rate: float) -> jax.Array:
        """A heuristic damping, (1 - a) / a + lr; infinite where all the dispersion is noise."""
        rate = number("learning_rate", learning_rate, least=0)
        real = self.shrinkage > 0
        share = jnp.where(real, self.shrinkage, 1.0)
        return jnp.where(real, (1.0 - share) / share + rate, jnp.inf)


def hessian_noise(
    loss_fn: LossFn, params: Tree, batches: Iterable[Any], key: jax.Array
) -> HessianNoise:
    """Measures the noise of batch Hessians in one pass, with one product for each batch.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: a tree of real floating arrays.
      batches: two or more of one size, which together are all the data, or independent draws; they
        stream. The first axis of a batch's first array counts its examples.
      key: of the random direction.

    Returns:
      The estimates of one direction: average several keys where there are few parameters.

    Raises:
      ValueError: fewer than two batches.
    """
    params = real_params(params)
    direction = random_direction(key, params)
    total, squares, seen, size = None, jnp.zeros([], numerics.default_float()), 0, 0
    for batch in batches:
        found, square = _product(loss_fn, params, batch, direction)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        squares, seen, size = squares + square, seen + 1, size + examples(batch)
    if total is None or seen < 2:
        raise ValueError(
            f"batches must hold two or more, got {seen}: the noise is what they differ by."
        )
    mean = jax.tree.map(lambda x: x / seen, total)
    mu, square = inner(direction, mean), square_norm_of_tree(mean)
    dispersion = square - mu * mu
    variance = jnp.maximum(squares / seen - square, 0.0)
    unbiased = variance * (seen / (seen - 1))
    dimension = sum(x.size for x in jax.tree.leaves(params))
    return HessianNoise(
        mean=mu,
        dispersion=dispersion,
        variance=variance,
        sigma=jnp.sqrt(unbiased * (size / seen) / dimension),
        shrinkage=1.0 - variance / (seen * numerics.nonzero(dispersion)),
    )


def random_direction(key: jax.Array, like: Tree) -> Tree:
    """A random tree of length 1, uniform over directions, in the default float dtype."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(k, x.shape, numerics.default_float())
        for k, x in zip(keys, leaves, strict=True)
    ]
    length = jnp.sqrt(square_norm_of_tree(draws))
    return jax.tree.unflatten(structure, [x / length for x in draws])


@functools.partial(jax.jit, static_argnums=0)
def _product(loss_fn: LossFn, params: Tree, batch: Any, direction: Tree) -> tuple[Tree, jax.Array]:
    found = jax.tree.map(numerics.widen, hvp(loss_fn, params, batch, direction))
    return found, square_norm_of_tree(found)
