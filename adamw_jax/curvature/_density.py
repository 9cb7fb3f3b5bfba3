"""The spectrum of the curvature of a loss as a density: stochastic Lanczos quadrature.

    nodes, weights of Lanczos' iteration from a random unit vector:  sum_i w_i = 1
    tr f(H) ~ P mean over probes of sum_i w_i f(theta_i)
    density(x) = mean over probes of sum_i w_i N(x; theta_i, variance)

Golub & Welsch 1969; Ubaru, Chen & Saad 2017; for networks Ghorbani, Krishnan & Xiao 2019,
1901.10159. The iteration is that of matfree behind ``lanczos``' guard against breakdown, which
matfree's own quadrature has not.

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
    """A spectrum from Lanczos quadrature; float32 at least.

    Attributes:
      nodes: Ritz values, ascending, shape (num_probes, k).
      weights: theirs, of sum 1 over each probe, shape (num_probes, k).
      grid: eigenvalues where the density is given, shape (points,).
      density: of integral 1, in eigenvalues^-1, shape (points,).
      size: the number P of parameters, a scalar.
    """

    nodes: jax.Array
    weights: jax.Array
    grid: jax.Array
    density: jax.Array
    size: jax.Array

    def per_probe(self, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """``sum_i w_i fn(theta_i)``, which estimates tr fn(H) / P, of every probe.

        Args:
          fn: from an array of eigenvalues to an array of that shape.

        Returns:
          Shape (num_probes,).
        """
        weighs = self.weights > 0  # what stands in after a breakdown may be outside fn's domain
        values = fn(jnp.where(weighs, self.nodes, jnp.max(self.nodes, axis=-1, keepdims=True)))
        return jnp.sum(self.weights * values, axis=-1)

    def trace(self, fn: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        """The estimate of tr fn(H) and its standard error.

        Args:
          fn: as for ``per_probe``. ``jnp.log`` gives log det H of a positive definite H, and NaN
            where a node is negative.

        Returns:
          Two scalars; the error of a single probe is NaN.
        """
        return mean_and_error(self.size * self.per_probe(fn))

    def plot(self, ax: Any = None) -> Any:
        """Draws the density on a logarithmic scale.

        Args:
          ax: matplotlib axes to draw on; None makes a figure.

        Returns:
          The axes.

        Raises:
          ImportError: matplotlib is not installed.
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
    """The density of the Hessian's eigenvalues.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays, P values in all.
      batch: what ``loss_fn`` takes, or ``Batches``.
      k: Lanczos steps a probe; 64. Public tools take 90 to 100.
      num_probes: probes of entries +-1, one after the other; 4.
      key: of the probes.
      kernel_variance: of the Gaussian that a node is spread to; None for 1e-5 times the squared
        range of the nodes. (PyHessian and google/spectral-density have 1e-5 max(1, range), which
        depends on the scale of the loss.)
      grid: eigenvalues where the density is wanted; None for 1000 from five widths of the kernel
        below the least node to as far above the largest.
      product: of which matrix; ``hvp_fn`` for the Hessian.

    Returns:
      A ``SpectralDensity``. Memory: about 2 k vectors.

    Raises:
      ImportError: matfree is not installed.
      ValueError: an argument is out of range.
      TypeError: a parameter is not real floating-point.
    """
    k, num_probes = whole_number("k", k), whole_number("num_probes", num_probes)
    if kernel_variance is not None:
        kernel_variance = number("kernel_variance", kernel_variance, above=0.0)
    nodes, weights = _sampled(loss_fn, params, batch, key, k=k, num=num_probes, product=product)
    size = sum(x.size for x in jax.tree.leaves(real_params(params)))
    return smoothed(nodes, weights, size, kernel_variance=kernel_variance, grid=grid)


def quadrature(matvec: LinearMap, probes: Tree, k: int) -> tuple[jax.Array, jax.Array]:
    """Nodes and weights of a symmetric linear map from given probes.

    Args:
      matvec: the map, on trees like one probe.
      probes: an array or a tree of them, with the axis of the probes in front; not 0.
      k: Lanczos steps a probe, >= 1.

    Returns:
      Nodes, ascending, and weights, both of shape (number of probes, k), k cut to the dimension.

    Raises:
      ImportError: matfree is not installed.
      ValueError: ``probes`` have no axis in front, or not the same, or k is not a whole number from
        1 up.
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
    """The density of quadrature nodes, a sum of Gaussians.

    Args:
      nodes: eigenvalues, shape (num_probes, k), such as those of ``quadrature``.
      weights: theirs, of sum 1 over each probe, the same shape.
      size: P, the number of parameters, which the result carries.
      kernel_variance: of the Gaussian that a node is spread to, > 0, not checked; None for 1e-5
        times the squared range of the nodes.
      grid: eigenvalues where the density is wanted, shape (points,); None for 1000 from five widths
        of the kernel below the least node to as far above the largest.

    Returns:
      A ``SpectralDensity``.

    Raises:
      ValueError: ``grid`` has another number of axes than one.
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
