"""Estimate the trace of the curvature of a loss from random vectors, called probes.

    tr H = E[z^T H z],      E[z z^T] = I

Girard 1989; Hutchinson 1990. With entries +-1 the variance of one probe is
2 (|H|_F^2 - sum_i H_ii^2), with Gaussian entries 2 |H|_F^2. The estimator comes from matfree (extra
``curvature``). It computes the products of all its probes at once, so it gets one probe at a
time.

>>> import jax, jax.numpy as jnp
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.sum(batch * w**2)
>>> hessian_trace(loss_fn, jnp.ones(2), jnp.array([1.0, 3.0]), num=4, key=jax.random.key(0))
(Array(4., dtype=float32), Array(0., dtype=float32))
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.checks import whole_number
from adamw_jax.curvature._lanczos import at_present_precision, matfree
from adamw_jax.curvature._products import LinearMap, LossFn, Product, flat_map, hvp_fn, real_params

Tree = Any
Estimate = tuple[jax.Array, jax.Array]


def hessian_trace(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    *,
    num: int = 64,
    key: jax.Array,
    chunk: int = 64,
    product: Product = hvp_fn,
) -> Estimate:
    """Estimate the trace of the Hessian from ``num`` probes with entries +-1.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      num: number of probes, one product each, >= 2; the error falls as 1 / sqrt(num).
      key: random key of the probes.
      chunk: products computed at once; fewer need less memory.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.

    Returns:
      The estimate and its standard error, scalars in float32 or wider.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> found = aj.curvature.hessian_trace(loss_fn, params, batch, key=jax.random.key(0))
    """
    num, chunk = whole_number("num", num, least=2), whole_number("chunk", chunk)
    return _trace(loss_fn, real_params(params), batch, key, num=num, chunk=chunk, product=product)


@functools.partial(jax.jit, static_argnames=("loss_fn", "num", "chunk", "product"))
def _trace(
    loss_fn: LossFn, params: Tree, batch: Any, key: jax.Array, *, num: int, chunk: int, product: Any
) -> Estimate:
    flat, vector, _ = flat_map(product(loss_fn, params, batch), params)
    return _mean(flat, signs(key, vector), num, chunk)


def hutchinson_trace(matvec: LinearMap, probes: Tree, *, chunk: int = 64) -> Estimate:
    """Estimate the trace of a linear map H from given probes.

    Args:
      matvec: the map, on trees like one probe.
      probes: an array or a tree of arrays whose first axis counts the probes, such as independent
        normal numbers or signs.
      chunk: products computed at once, >= 1; fewer need less memory.

    Returns:
      The mean of z^T H z over the probes z and its standard error (NaN for a single probe), scalars
      in float32 or wider.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> product = aj.curvature.hvp_fn(loss_fn, params, batch)
      >>> probes = jax.random.rademacher(jax.random.key(0), (8, 3), jnp.float32)
      >>> found = aj.curvature.hutchinson_trace(product, probes)
    """
    probe_of, like, num = given(probes)
    flat, _, _ = flat_map(matvec, like)
    return _mean(flat, probe_of, num, whole_number("chunk", chunk))


def _mean(flat: LinearMap, probe_of: Callable[[Any], Any], num: int, chunk: int) -> Estimate:
    stochtrace = matfree("stochtrace")
    form = stochtrace.estimator_monte_carlo(
        stochtrace.monte_carlo_trace(), lambda index: probe_of(index)[None]
    )
    product = at_present_precision(flat)
    with jax.default_matmul_precision("highest"):  # a GPU's default is too low here
        samples = lax.map(lambda i: form(product, i), jnp.arange(num), batch_size=min(chunk, num))
    return mean_and_error(samples)


def mean_and_error(samples: jax.Array) -> Estimate:
    """Return the mean of independent samples and its standard error, NaN for a single one."""
    mean = jnp.mean(samples)
    count = samples.size
    return mean, jnp.sqrt(jnp.sum((samples - mean) ** 2) / ((count - 1) * count or jnp.nan))


def signs(key: jax.Array, like: jax.Array) -> Callable[[Any], jax.Array]:
    """Return a function from a number to a probe with entries +-1."""
    return lambda index: jax.random.rademacher(
        jax.random.fold_in(key, index), like.shape, like.dtype
    )


def given(probes: Tree) -> tuple[Callable[[Any], jax.Array], Tree, int]:
    """Return a function from a number to a given probe, a tree like one probe, and their count."""
    probes = jax.tree.map(jnp.asarray, probes)
    counts = {x.shape[:1] for x in jax.tree.leaves(probes)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            "probes must be a tree with an axis in front, of the same length in "
            f"every leaf, got shapes {[x.shape for x in jax.tree.leaves(probes)]}."
        )
    rows = jax.vmap(lambda tree: flat_map(lambda x: x, tree)[1])(probes)
    return lambda index: rows[index], jax.tree.map(lambda x: x[0], probes), rows.shape[0]
