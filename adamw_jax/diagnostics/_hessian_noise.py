"""Measure how much the Hessians of batches differ, along one random direction.

    z random, |z| = 1;   mu = z^T H z,   delta = |H z - mu z|^2,   variance = mean_b |H_b z - H z|^2
    sigma^2 = variance b / P,    1/b = 1/B - 1/N       noise of an entry, for one example
    shrinkage a = 1 - variance / (n delta)             the share of delta that is not noise

H is the mean over n batches b of B examples each, of N in all; P is the number of parameters. After
the damping script of Granziol, Zohren & Roberts, JMLR 2022, arXiv 2006.09092. Mean and sum of
squared deviations are updated batch by batch (Welford 1962), without differences of large numbers,
so float32 is precise enough.

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
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number
from adamw_jax._core.gradients import square_norm_of_tree
from adamw_jax.curvature import hvp_fn
from adamw_jax.curvature._arrays import examples, inner, random_direction
from adamw_jax.curvature._products import LossFn, Product, real_params

Tree = Any


class HessianNoise(NamedTuple):
    """The result of ``hessian_noise``, scalars of the default float dtype.

    Attributes:
      mean: mu, an estimate of the mean eigenvalue.
      dispersion: delta, an estimate of the variance of the eigenvalues, including the noise.
      variance: the variance of H_b z over the batches, summed over the parameters.
      sigma: standard deviation of an entry of the Hessian of one example, for
        ``batch_hessian_extreme``.
      shrinkage: a, the factor by which to shrink the spectrum towards its mean. It is 1 without
        noise, and 0 or less if noise explains all of the dispersion or more.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> found = aj.diagnostics.hessian_noise(
      ...     loss_fn, params, [batch, 2 * batch], jax.random.key(0)
      ... )
      >>> bool(found.sigma > 0)
      True
    """

    mean: jax.Array
    dispersion: jax.Array
    variance: jax.Array
    sigma: jax.Array
    shrinkage: jax.Array

    def damping(self, learning_rate: float) -> jax.Array:
        """Return a heuristic damping, (1 - a) / a + lr; infinite if all the dispersion is noise.

        Args:
          learning_rate: lr, a number >= 0.
        """
        rate = number("learning_rate", learning_rate, least=0)
        real = self.shrinkage > 0
        share = jnp.where(real, self.shrinkage, 1.0)
        return jnp.where(real, (1.0 - share) / share + rate, jnp.inf)


class _Seen(NamedTuple):
    """Sums over the batches so far: their number, mean of H_b z, sum of |H_b z - mean|^2."""

    number: jax.Array
    mean: Tree
    squares: jax.Array


def hessian_noise(
    loss_fn: LossFn,
    params: Tree,
    batches: Iterable[Any],
    key: jax.Array,
    *,
    product: Product = hvp_fn,
) -> HessianNoise:
    """Measure the noise of batch Hessians in one pass, with one product per batch.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: a tree of real floating-point arrays.
      batches: two or more batches of the same size, read one by one: all the data in pieces, or
        independent draws. The first axis of a batch's first array counts its examples. ``Batches``
        may be given.
      key: random key of the direction.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.

    Returns:
      The estimates from one direction. With few parameters, average over several keys.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> batches = [batch, 2 * batch]
      >>> found = aj.diagnostics.hessian_noise(loss_fn, params, batches, jax.random.key(0))
    """
    params = real_params(params)
    direction = random_direction(key, params)
    none = jnp.zeros([], numerics.default_float())
    seen, count, size = _Seen(none, jax.tree.map(jnp.zeros_like, direction), none), 0, 0
    for batch in batches:
        now = max(1, examples(batch))
        if count and now != size:
            raise ValueError(
                f"batches must be of one size, got {now} examples after batches of {size}: leave "
                "out a shorter last batch, or fill it."
            )
        seen, count, size = _enter(loss_fn, product, params, batch, direction, seen), count + 1, now
    if count < 2:
        raise ValueError(f"batches must hold two or more, got {count}: noise is their difference.")
    dimension = sum(x.size for x in jax.tree.leaves(params))
    return _report(seen, direction, numerics.scalar(size / dimension))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _enter(
    loss_fn: LossFn, product: Product, params: Tree, batch: Any, direction: Tree, seen: _Seen
) -> _Seen:
    found = jax.tree.map(numerics.widen, product(loss_fn, params, batch)(direction))
    count = seen.number + 1.0
    off = jax.tree.map(lax.sub, found, seen.mean)
    return _Seen(
        number=count,
        mean=jax.tree.map(lambda m, d: m + d / count, seen.mean, off),
        squares=seen.squares + square_norm_of_tree(off) * (seen.number / count),
    )


@jax.jit
def _report(seen: _Seen, direction: Tree, size: jax.Array) -> HessianNoise:
    mu = inner(direction, seen.mean)
    rest = jax.tree.map(lambda h, z: h - mu * z, seen.mean, direction)
    dispersion, variance = square_norm_of_tree(rest), seen.squares / seen.number
    spread = dispersion > 0
    noise = variance / (seen.number * jnp.where(spread, dispersion, 1.0))
    all_noise = jnp.where(variance > 0, -jnp.inf, 1.0)
    return HessianNoise(
        mean=mu,
        dispersion=dispersion,
        variance=variance,
        sigma=jnp.sqrt(seen.squares / (seen.number - 1.0) * size),
        shrinkage=jnp.where(spread, 1.0 - noise, all_noise),
    )
