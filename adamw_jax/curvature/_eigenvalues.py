"""The largest or smallest eigenvalues of the curvature of a loss, with their vectors.

    H u_i = theta_i u_i + r_i,      theta_1 >= theta_2 >= ...,      |theta_i - lambda| <= |r_i|

for some eigenvalue lambda of H: the residual |r_i| bounds the error. "Largest" is by sign, not by
magnitude: a strongly negative eigenvalue is among the smallest.

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
    """The k largest (or smallest) eigenvalues of the Hessian, algebraically.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays, P values in all.
      batch: what ``loss_fn`` takes, or ``Batches``.
      k: how many eigenvalues, at most P.
      key: of the random start vector.
      which: ``"largest"`` or ``"smallest"``, by sign.
      backend: ``"lanczos"`` makes ``steps`` products and works under ``jax.jit``. ``"scipy"``
        restarts on the host until the eigenvalues have converged, and finds multiple ones.
      steps: Lanczos steps; None for max(32, 2 k + 20). More where the residuals are too large.
      product: whose eigenvalues; ``hvp_fn`` for the Hessian, ``gauss_newton_fn`` for that matrix.

    Returns:
      values: shape (k,), descending for the largest and ascending for the smallest.
      vectors: of norm 1, a tree like ``params`` with an axis of length k in front.
      residuals: |H u - theta u|, shape (k,).
      All are float32 at least. Of an eigenvalue that is repeated, Lanczos' iteration sees one copy;
      where it finds fewer than k in all, the rest is NaN.

    Raises:
      ValueError: a word or number is out of range.
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
    """The k extreme Ritz pairs of a symmetric linear map after ``steps`` Lanczos steps."""
    found = lanczos(matvec, random_direction(key, like), steps)
    # A pair that stands in after a breakdown has no part in the Krylov space.
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
    """ARPACK's implicitly restarted iteration, which keeps ``steps`` vectors."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    _, vector, tree_of = flat_map(lambda v: v, random_direction(key, params))
    size = vector.size
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((params, batch, vector))):
        raise ValueError('backend="scipy" runs on the host: call it outside jax.jit.')

    def matvec(v: np.ndarray) -> np.ndarray:
        flat = jnp.asarray(v.reshape(-1), vector.dtype)
        return np.asarray(_flat_product(loss_fn, params, batch, flat, product=product))

    start = np.asarray(vector)
    if k == size:  # ARPACK takes neither all eigenvalues nor H = 0
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
    """One product, as a function of the module, which is compiled once for all points."""
    return flat_map(product(loss_fn, params, batch), params)[0](v)
