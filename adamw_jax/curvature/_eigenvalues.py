"""Compute the largest or smallest eigenvalues of the curvature of a loss, with eigenvectors.

    H u_i = theta_i u_i + r_i,      theta_1 >= theta_2 >= ...,      |theta_i - lambda| <= |r_i|

The last holds for some eigenvalue lambda of H, so the residual |r_i| bounds the error. "Largest"
takes the sign into account: a large negative eigenvalue is among the smallest.

>>> import jax, jax.numpy as jnp
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.sum(batch * w**2)
>>> scales = jnp.array([1.0, -5.0, 3.0])
>>> top_eigenvalues(loss_fn, jnp.ones(3), scales, k=2, key=jax.random.key(0))[0].round(4)
Array([3., 1.], dtype=float32)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adamw_jax._core.checks import one_of, whole_number
from adamw_jax.curvature._arrays import random_direction
from adamw_jax.curvature._lanczos import lanczos
from adamw_jax.curvature._products import LinearMap, LossFn, Product, flat_map, hvp_fn, real_params

Tree = Any
Pairs = tuple[jax.Array, Tree, jax.Array]

BACKENDS = ("lanczos", "scipy")
ENDS = ("largest", "smallest")


def top_eigenvalues(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    k: int = 1,
    *,
    key: jax.Array,
    which: str = "largest",
    backend: str = "lanczos",
    steps: int | None = None,
    product: Product = hvp_fn,
) -> Pairs:
    """Compute the k largest or smallest eigenvalues of the Hessian.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays, P values in all.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      k: number of eigenvalues, at most P.
      key: random key of the start vector.
      which: ``"largest"`` or ``"smallest"``; -5 is smaller than 1.
      backend: ``"lanczos"`` makes ``steps`` products and works under ``jax.jit``. ``"scipy"``
        restarts on the host until the eigenvalues have converged, and finds repeated ones.
      steps: Lanczos steps; None for max(32, 2 k + 20). Use more if the residuals are too large.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.

    Returns:
      values: shape (k,), descending for the largest and ascending for the smallest.
      vectors: unit vectors, a tree like ``params`` with an axis of length k in front.
      residuals: |H u - theta u|, shape (k,).
      All are in float32 or wider. Lanczos' iteration finds one copy of a repeated eigenvalue. If it
      finds fewer than k eigenvalues, the others are NaN.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> found = aj.curvature.top_eigenvalues(loss_fn, params, batch, 1, key=jax.random.key(0))
    """
    one_of("which", which, ENDS)
    one_of("backend", backend, BACKENDS)
    size = sum(x.size for x in jax.tree.leaves(real_params(params)))
    if whole_number("k", k) > size:
        raise ValueError(f"k must be at most {size}, the number of parameters, got {k}.")
    steps = whole_number("steps", max(32, 2 * k + 20) if steps is None else steps)
    if min(steps, size) < k:
        raise ValueError(f"steps must be at least k = {k}, got {steps}.")
    find = _by_lanczos if backend == "lanczos" else _by_scipy
    return find(loss_fn, params, batch, key, product=product, k=k, which=which, steps=steps)


@functools.partial(jax.jit, static_argnames=("loss_fn", "product", "k", "which", "steps"))
def _by_lanczos(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    key: jax.Array,
    *,
    product: Product,
    k: int,
    which: str,
    steps: int,
) -> Pairs:
    return extreme_pairs(product(loss_fn, params, batch), params, key, k, which, steps)


def extreme_pairs(
    matvec: LinearMap, like: Tree, key: jax.Array, k: int, which: str, steps: int
) -> Pairs:
    """Return the k extreme Ritz pairs of a symmetric linear map after ``steps`` Lanczos steps."""
    found = lanczos(matvec, random_direction(key, like), steps)
    # Pairs that fill the place after a breakdown have no part in the Krylov space.
    inside = jnp.arange(found.alpha.size, dtype=jnp.int32) < found.krylov_dim
    squares = found.ritz_coefficients**2 * inside[:, None].astype(found.alpha.dtype)
    genuine = jnp.sum(squares, axis=0) > 0.5
    sign = -1.0 if which == "smallest" else 1.0
    order = jnp.where(genuine, sign * found.ritz_values, jnp.full_like(found.ritz_values, -jnp.inf))
    chosen = jnp.argsort(-order)[:k]
    values, residuals = (
        jnp.where(genuine, x, jnp.full_like(x, jnp.nan))[chosen]
        for x in (found.ritz_values, found.residuals)
    )
    present = jnp.where(genuine, found.ritz_coefficients, jnp.full_like(squares, jnp.nan))
    coefficients = present[:, chosen]
    with jax.default_matmul_precision("highest"):
        vectors = jax.tree.map(lambda q: jnp.tensordot(coefficients, q, axes=(0, 0)), found.basis)
    return values, vectors, residuals


def _by_scipy(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    key: jax.Array,
    *,
    product: Product,
    k: int,
    which: str,
    steps: int,
) -> Pairs:
    """Run ARPACK's implicitly restarted iteration, which keeps ``steps`` vectors."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    _, vector, tree_of = flat_map(lambda v: v, random_direction(key, params))
    size = vector.size
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, batch, vector))):
        raise ValueError('backend="scipy" runs on the host: call it outside jax.jit.')

    def matvec(v: np.ndarray) -> np.ndarray:
        flat = jnp.asarray(v.reshape(-1), vector.dtype)
        return np.asarray(_flat_product(loss_fn, params, batch, flat, product=product))

    start = np.asarray(vector)
    if k == size:  # ARPACK cannot compute all eigenvalues, nor those of H = 0
        rows = np.stack([matvec(row) for row in np.eye(size)])
        values, vectors = np.linalg.eigh((rows + rows.T) / 2)
    elif not matvec(start).any():
        values, vectors = np.zeros(k), np.eye(size, k)
    else:
        operator = LinearOperator((size, size), matvec, dtype=vector.dtype)  # pyright: ignore[reportCallIssue]
        end = {"largest": "LA", "smallest": "SA"}[which]
        values, vectors = eigsh(operator, k, which=end, v0=start, ncv=min(size, max(steps, k + 1)))
    order = np.argsort(values if which == "smallest" else -values)[:k]
    values, vectors = values[order], vectors.T[order]
    residuals = [
        np.linalg.norm(matvec(u) - theta * u) for theta, u in zip(values, vectors, strict=True)
    ]
    return (
        jnp.asarray(values, vector.dtype),
        jax.vmap(tree_of)(jnp.asarray(vectors, vector.dtype)),
        jnp.asarray(residuals, vector.dtype),
    )


@functools.partial(jax.jit, static_argnames=("loss_fn", "product"))
def _flat_product(
    loss_fn: LossFn, params: Tree, batch: Any, v: jax.Array, *, product: Product
) -> jax.Array:
    """Compute one product; a module function, so that it is compiled once for all points."""
    return flat_map(product(loss_fn, params, batch), params)[0](v)
