"""Run Lanczos' iteration with a guard against breakdown.

    H Q = Q T + beta_k q_{k+1} e_k^T,     T = tridiag(beta, alpha, beta),   Q orthonormal

The eigenvalues theta_i of T (Ritz values) approach the extreme eigenvalues of H first. Let w_i be
the squared first components of the eigenvectors of T. Then sum_i w_i f(theta_i) = q_1^T f(H) q_1
for polynomials f up to degree 2 k - 1 (Gauss quadrature; Golub & Meurant 1994).

If the start vector lies in m < k eigenspaces, beta_m is 0 up to rounding and all later steps are
noise: a breakdown. From there on beta is set to 0 and alpha to alpha_1. So shapes stay static, the
surplus Ritz values lie inside the spectrum with weight 0, and ``krylov_dim`` is m. The iteration
with reorthogonalization comes from matfree (extra ``curvature``).

>>> import jax.numpy as jnp
>>> found = lanczos(lambda v: jnp.array([1.0, 1.0, 3.0]) * v, jnp.ones(3), k=3)
>>> found.krylov_dim, found.ritz_values[found.ritz_weights > 0].round(5)
(Array(2, dtype=int32), Array([1., 3.], dtype=float32))
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch, whole_number
from adamw_jax.curvature._products import LinearMap, flat_map

Tree = Any


class LanczosResult(NamedTuple):
    """The result of k steps of Lanczos' iteration, in float32 or wider.

    Attributes:
      alpha: diagonal of T, shape (k,).
      beta: off-diagonal of T, shape (k - 1,); 0 from a breakdown on.
      residual_norm: beta_k, the norm of the residual H Q - Q T; 0 after a breakdown.
      basis: Lanczos vectors, a tree like the start vector with an axis of length k in front; 0 from
        a breakdown on.
      ritz_values: eigenvalues of T, ascending, shape (k,).
      ritz_weights: squared first components of the eigenvectors of T; they sum to 1; shape (k,).
      ritz_coefficients: eigenvectors of T as columns, shape (k, k).
      residuals: |H u - theta u| of every Ritz pair, beta_k times the last component of its
        eigenvector of T, shape (k,).
      krylov_dim: steps before a breakdown, at most k, int32.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> product = aj.curvature.hvp_fn(loss_fn, params, batch)
      >>> found = aj.curvature.lanczos(product, jnp.ones(3), 3)
      >>> [round(float(value), 3) for value in found.ritz_values]
      [1.0, 2.0, 3.0]
    """

    alpha: jax.Array
    beta: jax.Array
    residual_norm: jax.Array
    basis: Tree
    ritz_values: jax.Array
    ritz_weights: jax.Array
    ritz_coefficients: jax.Array
    residuals: jax.Array
    krylov_dim: jax.Array


def lanczos(matvec: LinearMap, v0: Tree, k: int, *, reorthogonalize: bool = True) -> LanczosResult:
    """Run k steps of Lanczos' iteration on a symmetric linear map.

    Args:
      matvec: the map, on trees like ``v0`` in the default float dtype, such as ``hvp_fn(...)``.
      v0: start vector, an array or a tree of arrays; it is normalised. It must not be 0. Under
        ``jax.jit`` this is not checked and 0 gives NaN.
      k: number of steps, one product each. More than the number of values in ``v0`` are not made.
      reorthogonalize: keep the basis orthogonal to rounding (twice Gram-Schmidt, k^2 dot products).
        Without it converged Ritz values appear again as copies.

    Returns:
      A ``LanczosResult``. The computation needs memory for about 2 k vectors; the result holds k.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> product = aj.curvature.hvp_fn(loss_fn, params, batch)
      >>> found = aj.curvature.lanczos(product, jnp.ones(3), 3)
    """
    k = whole_number("k", k)
    switch("reorthogonalize", reorthogonalize)
    flat, start, tree_of = flat_map(matvec, v0)
    anything = jnp.any(start)
    if not isinstance(anything, jax.core.Tracer) and not bool(anything):
        raise ValueError("v0 must not be 0, got a vector of zeros: give another start vector.")
    k = min(k, start.size)
    product = at_present_precision(flat)
    with jax.default_matmul_precision("highest"):  # a GPU's default is too low to keep q orthogonal
        if reorthogonalize:
            run = matfree("decomp").hessenberg(k, reortho="full", custom_vjp=False)
            found = run(product, start)
            alpha, beta = jnp.diagonal(found.J_small), jnp.diagonal(found.J_small, -1)
            basis, residual_norm = found.Q_tall, jnp.linalg.norm(found.residual)
        else:
            basis, alpha, sizes = _three_terms(product, start, k)
            beta, residual_norm = sizes[:-1], sizes[-1]
    sound = jnp.append(beta, residual_norm) > _rounding(alpha, beta)
    sound = jnp.cumprod(sound, dtype=jnp.int32).astype(bool)
    alive = jnp.append(jnp.ones([1], bool), sound[:-1])
    alpha = jnp.where(alive, alpha, alpha[0])
    beta = jnp.where(sound[:-1], beta, jnp.zeros_like(beta))
    residual_norm = jnp.where(sound[-1], residual_norm, jnp.zeros_like(residual_norm))
    values, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1))
    basis = jnp.where(alive[:, None], basis, jnp.zeros_like(basis))
    return LanczosResult(
        alpha=alpha,
        beta=beta,
        residual_norm=residual_norm,
        basis=jax.vmap(tree_of)(basis),
        ritz_values=values,
        ritz_weights=vectors[0] ** 2,
        ritz_coefficients=vectors,
        residuals=residual_norm * jnp.abs(vectors[-1]),
        krylov_dim=jnp.sum(alive, dtype=jnp.int32),
    )


def _three_terms(
    product: LinearMap, start: jax.Array, k: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run the recurrence alone; return the basis, alpha, and beta_1 to beta_k."""

    # matfree's own version computes the same product twice per step.
    def step(carry: Any, _: None) -> Any:
        before, q, beta = carry
        rest = product(q)
        alpha = jnp.vdot(q, rest)
        rest = rest - alpha * q - beta * before
        size = jnp.linalg.norm(rest)
        return (q, rest / numerics.nonzero(size), size), (q, alpha, size)

    first = start / jnp.linalg.norm(start)
    none = jnp.zeros([], start.dtype)
    return lax.scan(step, (jnp.zeros_like(start), first, none), length=k)[1]


def _rounding(alpha: jax.Array, beta: jax.Array) -> jax.Array:
    """Bound a beta that is only rounding; measured: 0 to 42 eps of the largest entry of T."""
    entries = jnp.append(jnp.abs(alpha), beta)
    largest = jnp.max(jnp.where(jnp.isnan(entries), jnp.zeros_like(entries), entries))
    return largest * numerics.scalar(100 * jnp.finfo(entries.dtype).eps)


def at_present_precision(linear: LinearMap) -> LinearMap:
    """Wrap ``linear`` so that it always runs at the matmul precision that is set now."""
    own = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]

    def product(v: Tree) -> Tree:
        with jax.default_matmul_precision(own):
            return linear(v)

    return product


def matfree(module: str) -> Any:
    """Import a module of matfree, an optional dependency."""
    try:
        return importlib.import_module(f"matfree.{module}")
    except ImportError as error:
        raise ImportError(
            "Lanczos' iteration, the trace and XDiag need matfree, which is not installed: "
            "pip install adamw-jax[curvature]"
        ) from error
