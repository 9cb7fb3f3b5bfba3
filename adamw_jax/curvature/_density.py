"""Estimate the eigenvalue density of the curvature by stochastic Lanczos quadrature.

    tr f(H) ~ P mean over probes of sum_i w_i f(theta_i)
    density(x) = mean over probes of sum_i w_i N(x; theta_i, variance)

Lanczos' iteration from a random unit vector (a probe) gives the nodes theta_i and the weights w_i,
which sum to 1. P is the number of parameters. Golub & Welsch 1969; Ubaru, Chen & Saad 2017; for
networks Ghorbani, Krishnan & Xiao 2019, 1901.10159. ``lanczos`` runs matfree's iteration and guards
it against breakdown; matfree's own quadrature does not.

>>> import jax, jax.numpy as jnp
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.sum(batch * w**2)
>>> scales = jnp.array([1.0, 1.0, 4.0])
>>> found = spectral_density(loss_fn, jnp.ones(3), scales, k=2, key=jax.random.key(0))
>>> print(f"{found.trace(lambda x: x)[0]:.3f}")
6.000
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, whole_number
from adamw_jax.curvature._lanczos import lanczos
from adamw_jax.curvature._products import LinearMap, LossFn, Product, flat_map, hvp_fn, real_params
from adamw_jax.curvature._trace import given, mean_and_error, signs

Tree = Any

POINTS = 1000
WIDTHS = 5.0


class SpectralDensity(NamedTuple):
    """A spectrum from Lanczos quadrature, in float32 or wider.

    Attributes:
      nodes: Ritz values, ascending, shape (num_probes, k).
      weights: weights of the nodes, which sum to 1 in each probe, shape (num_probes, k).
      grid: eigenvalues at which the density is computed, shape (points,).
      density: the density, whose integral is 1, shape (points,).
      size: the number P of parameters, a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> found = aj.curvature.spectral_density(
      ...     loss_fn, params, batch, k=3, key=jax.random.key(0)
      ... )
      >>> round(float(jnp.trapezoid(found.density, found.grid)), 2)  # its integral
      1.0
    """

    nodes: jax.Array
    weights: jax.Array
    grid: jax.Array
    density: jax.Array
    size: jax.Array

    def per_probe(self, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Return ``sum_i w_i fn(theta_i)`` of every probe; each estimates tr fn(H) / P.

        Args:
          fn: maps an array of eigenvalues to an array of the same shape.

        Returns:
          Shape (num_probes,).
        """
        # After a breakdown, nodes of weight 0 fill the array; they may be outside the domain of fn.
        weighs = self.weights > 0
        values = fn(jnp.where(weighs, self.nodes, jnp.max(self.nodes, axis=-1, keepdims=True)))
        return jnp.sum(self.weights * values, axis=-1)

    def trace(self, fn: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Estimate tr fn(H) and its standard error.

        Args:
          fn: as for ``per_probe``. ``jnp.log`` gives log det H if H is positive definite, and NaN
            if a node is negative.

        Returns:
          Two scalars. With a single probe the error is NaN.
        """
        return mean_and_error(self.size * self.per_probe(fn))

    def plot(self, ax: Any = None) -> Any:
        """Plot the density on a logarithmic scale and return the axes.

        Args:
          ax: matplotlib axes to draw on; None makes a figure.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot() needs matplotlib: pip install matplotlib") from error
        ax = plt.subplots()[1] if ax is None else ax
        ax.semilogy(self.grid, self.density)
        ax.set_ylim(bottom=float(jnp.max(self.density)) * 1e-7)
        ax.set_xlabel("eigenvalue")
        ax.set_ylabel("density")
        return ax


def spectral_density(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    *,
    k: int = 64,
    num_probes: int = 4,
    key: jax.Array,
    kernel_variance: float | None = None,
    grid: Any = None,
    product: Product = hvp_fn,
) -> SpectralDensity:
    """Estimate the density of the Hessian's eigenvalues.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays, P values in all.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      k: Lanczos steps per probe. Public tools use 90 to 100.
      num_probes: number of random vectors with entries +-1. They run one after the other.
      key: random key of the probes.
      kernel_variance: variance of the Gaussian around each node; None for 1e-5 times the squared
        range of the nodes. (PyHessian and google/spectral-density use 1e-5 max(1, range), which
        depends on the scale of the loss.)
      grid: eigenvalues at which to compute the density; None for 1000 values, from five standard
        deviations of the Gaussian below the smallest node to five above the largest.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.

    Returns:
      A ``SpectralDensity``. The computation needs memory for about 2 k vectors.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> found = aj.curvature.spectral_density(loss_fn, params, batch, k=3, key=jax.random.key(0))
    """
    k, num_probes = whole_number("k", k), whole_number("num_probes", num_probes)
    if kernel_variance is not None:
        kernel_variance = number("kernel_variance", kernel_variance, above=0.0)
    params = real_params(params)
    nodes, weights = _sampled(loss_fn, params, batch, key, k=k, num=num_probes, product=product)
    size = sum(x.size for x in jax.tree.leaves(params))
    return smoothed(nodes, weights, size, kernel_variance=kernel_variance, grid=grid)


def quadrature(matvec: LinearMap, probes: Tree, k: int) -> tuple[jax.Array, jax.Array]:
    """Compute the quadrature nodes and weights of a symmetric linear map from given probes.

    Args:
      matvec: the map, on trees like one probe.
      probes: an array or a tree of arrays whose first axis counts the probes. No probe may be 0.
      k: Lanczos steps per probe, >= 1. More than the dimension are not made.

    Returns:
      Nodes, ascending, and weights, both of shape (number of probes, k).

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> product = aj.curvature.hvp_fn(loss_fn, params, batch)
      >>> probes = jax.random.normal(jax.random.key(0), (2, 3))
      >>> nodes, weights = aj.curvature.quadrature(product, probes, 3)
    """
    probe_of, like, num = given(probes)
    flat, _, _ = flat_map(matvec, like)
    return _nodes(flat, probe_of, num, k)


@functools.partial(jax.jit, static_argnames="size")
def smoothed(
    nodes: jax.Array,
    weights: jax.Array,
    size: int,
    *,
    kernel_variance: Any = None,
    grid: Any = None,
) -> SpectralDensity:
    """Smooth quadrature nodes to a density, a sum of Gaussians.

    Args:
      nodes: eigenvalues, shape (num_probes, k), such as those of ``quadrature``.
      weights: weights of the nodes, which sum to 1 in each probe, the same shape.
      size: P, the number of parameters; it is copied to the result.
      kernel_variance: variance of the Gaussian around each node, > 0, not checked; None for 1e-5
        times the squared range of the nodes.
      grid: as for ``spectral_density``, shape (points,).

    Returns:
      A ``SpectralDensity``.
    """
    low, high = jnp.min(nodes), jnp.max(nodes)
    if kernel_variance is None:
        reach = high - low
        reach = jnp.where(reach > 0, reach, numerics.nonzero(jnp.abs(high)))
        variance = numerics.scalar(1e-5) * reach**2
    else:
        variance = numerics.scalar(kernel_variance)
    if grid is None:
        margin = WIDTHS * jnp.sqrt(variance)
        grid = jnp.linspace(low - margin, high + margin, POINTS, dtype=variance.dtype)
    grid = jnp.asarray(grid, variance.dtype)
    if grid.ndim != 1:
        raise ValueError(f"grid must have one axis, got shape {grid.shape}.")

    def at(x: jax.Array) -> jax.Array:
        return jnp.sum(weights * jnp.exp(-((x - nodes) ** 2) / (2.0 * variance)))

    density = lax.map(at, grid, batch_size=64) / (nodes.shape[0] * jnp.sqrt(2 * jnp.pi * variance))
    return SpectralDensity(nodes, weights, grid, density, numerics.scalar(size))


@functools.partial(jax.jit, static_argnames=("loss_fn", "k", "num", "product"))
def _sampled(
    loss_fn: LossFn, params: Tree, batch: Any, key: Any, *, k: int, num: int, product: Product
) -> tuple[jax.Array, jax.Array]:
    flat, vector, _ = flat_map(product(loss_fn, params, batch), params)
    return _nodes(flat, signs(key, vector), num, k)


def _nodes(
    flat: LinearMap, probe_of: Callable[[Any], jax.Array], num: int, k: int
) -> tuple[jax.Array, jax.Array]:
    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = lanczos(flat, probe_of(index), k)
        return found.ritz_values, found.ritz_weights

    return lax.map(one, jnp.arange(num))
