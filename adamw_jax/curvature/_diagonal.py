"""Compute the diagonal of the curvature of a loss: exactly, or from random vectors (probes).

    exact:       H_ii = e_i^T H e_i                           P products
    hutchinson:  sum_k z_k (H z_k) / sum_k z_k^2              (Bekas, Kokiopoulou & Saad 2007)
    xdiag:       the exact diagonal of H on the range that the probes found, hutchinson for the rest

With entries +-1 one Hutchinson probe has the variance sum_{j != i} H_ij^2. XDiag (Epperly, Tropp &
Webber 2024, 2301.07825) is more accurate if the eigenvalues decay; on a flat spectrum it is not.

>>> import jax.numpy as jnp
>>> def loss_fn(params, batch):
...     return jnp.sum(batch * params["w"] ** 2)
>>> hessian_diag(loss_fn, {"w": jnp.ones(2)}, jnp.array([1.0, 3.0]))
{'w': Array([2., 6.], dtype=float32)}
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.checks import one_of, whole_number
from adamw_jax.curvature._lanczos import at_present_precision, matfree
from adamw_jax.curvature._products import LinearMap, LossFn, Product, flat_map, hvp_fn, real_params
from adamw_jax.curvature._trace import given, signs

Tree = Any

METHODS = ("exact", "hutchinson", "xdiag")


def hessian_diag(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    *,
    method: str = "exact",
    num: int | None = None,
    key: jax.Array | None = None,
    chunk: int = 64,
    product: Product = hvp_fn,
) -> Tree:
    """Compute the diagonal of the Hessian.

    Args:
      loss_fn: ``(params, batch) -> scalar``. For the diagonal of one block, pass the block as
        ``params`` and the other parameters with ``batch``.
      params: a tree of real floating-point arrays, P values in all.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      method: ``"exact"`` makes P products, ``"hutchinson"`` ``num``, and ``"xdiag"`` 2 ``num``, all
        at once. If 2 ``num`` >= P, ``"xdiag"`` computes the exact diagonal instead.
      num: number of probes of the random methods, >= 1; for ``"xdiag"`` at most P.
      key: random key of the probes.
      chunk: products computed at once; fewer need less memory.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.

    Returns:
      A tree like ``params``, in float32 or wider.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> aj.curvature.hessian_diag(loss_fn, params, batch).tolist()
      [1.0, 2.0, 3.0]
    """
    one_of("method", method, METHODS)
    params = real_params(params)
    chunk = whole_number("chunk", chunk)
    if method == "exact":
        if num is not None or key is not None:
            raise ValueError(
                f'method="exact" takes no num and key, got num={num!r}, key={key!r}: omit them, or '
                'choose method="hutchinson".'
            )
        return _exact(loss_fn, params, batch, chunk=chunk, product=product)
    if num is None or key is None:
        raise ValueError(
            f"method={method!r} needs num and key for its probes, got num={num!r}, key={key!r}."
        )
    num = whole_number("num", num)
    if method == "hutchinson":
        return _hutchinson(loss_fn, params, batch, key, num=num, chunk=chunk, product=product)
    size = sum(x.size for x in jax.tree.leaves(params))
    if num > size:
        raise ValueError(f"num must be at most {size}, the number of parameters, got {num}.")
    if 2 * num >= size:
        return _exact(loss_fn, params, batch, chunk=chunk, product=product)
    return _xdiag(loss_fn, params, batch, key, num=num, product=product)


def hutchinson_diag(matvec: LinearMap, probes: Tree, *, chunk: int = 64) -> Tree:
    """Estimate the diagonal of a linear map H from given probes z as sum z (H z) / sum z^2.

    For Gaussian probes this ratio has less variance than the mean of z (H z). For probes with
    entries +-1 the two are equal.

    Args:
      matvec: the map, on trees like one probe.
      probes: an array or a tree of arrays whose first axis counts the probes, such as independent
        normal numbers or signs.
      chunk: products computed at once, >= 1; fewer need less memory.

    Returns:
      A tree like one probe, in float32 or wider; NaN where every probe is 0.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> product = aj.curvature.hvp_fn(loss_fn, params, batch)
      >>> probes = jax.random.rademacher(jax.random.key(0), (8, 3), jnp.float32)
      >>> aj.curvature.hutchinson_diag(product, probes).tolist()
      [1.0, 2.0, 3.0]
    """
    probe_of, like, num = given(probes)
    flat, _, tree_of = flat_map(matvec, like)
    return tree_of(_ratio(flat, probe_of, num, whole_number("chunk", chunk)))


@functools.partial(jax.jit, static_argnames=("loss_fn", "chunk", "product"))
def _exact(loss_fn: LossFn, params: Tree, batch: Any, *, chunk: int, product: Product) -> Tree:
    flat, vector, tree_of = flat_map(product(loss_fn, params, batch), params)

    def entry(index: jax.Array) -> jax.Array:
        return flat(jnp.zeros_like(vector).at[index].set(1.0))[index]

    size = vector.size
    return tree_of(lax.map(entry, jnp.arange(size), batch_size=min(chunk, size)))


@functools.partial(jax.jit, static_argnames=("loss_fn", "num", "chunk", "product"))
def _hutchinson(
    loss_fn: LossFn, params: Tree, batch: Any, key: Any, *, num: int, chunk: int, product: Product
) -> Tree:
    flat, vector, tree_of = flat_map(product(loss_fn, params, batch), params)
    return tree_of(_ratio(flat, signs(key, vector), num, chunk))


def _ratio(flat: LinearMap, probe_of: Callable[[Any], Any], num: int, chunk: int) -> jax.Array:
    chunk = min(chunk, num)

    def terms(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = probe_of(index)
        z = jnp.where(index < num, z, jnp.zeros_like(z))  # pads the last chunk
        return z * flat(z), z * z

    def step(sums: Any, indices: jax.Array) -> tuple[Any, None]:
        new = jax.vmap(terms)(indices)
        return jax.tree.map(lambda a, x: a + jnp.sum(x, axis=0), sums, new), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(terms, 0))
    indices = jnp.arange(-(-num // chunk) * chunk).reshape(-1, chunk)
    (top, bottom), _ = lax.scan(step, zero, indices)
    return top / bottom


@functools.partial(jax.jit, static_argnames=("loss_fn", "num", "product"))
def _xdiag(
    loss_fn: LossFn, params: Tree, batch: Any, key: Any, *, num: int, product: Product
) -> Tree:
    stochtrace = matfree("stochtrace")
    flat, vector, tree_of = flat_map(product(loss_fn, params, batch), params)
    sampler = stochtrace.sampler_signs(vector, num=num)
    estimate = stochtrace.estimator_leave_one_out(stochtrace.leave_one_out_xdiag(), sampler)
    product_of = at_present_precision(flat)
    # A GPU's default precision is too low for the projection; matfree needs rank promotion here.
    with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
        return tree_of(estimate(product_of, key))
