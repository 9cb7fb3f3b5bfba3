"""Measure sharpness, the largest eigenvalue of the Hessian, and when training becomes unstable.

    sharpness = lambda_max(H),        preconditioned sharpness = lambda_max(P^-1 H)

On a quadratic an optimizer diverges along an eigenvector whose eigenvalue exceeds a threshold:

    sgd        m <- b1 m + g                          (2 + 2 b1) / lr               (b1 = 0: 2 / lr)
    nesterov   m <- b1 m + g, step by g + b1 m        (2 + 2 b1) / ((1 + 2 b1) lr)
    adam       m <- b1 m + (1 - b1) g, step by m / P  (2 + 2 b1) / ((1 - b1) lr),  of P^-1 H

In full-batch training the sharpness rises to this threshold and then hovers around it, at the edge
of stability. Cohen et al., ICLR 2021, 2103.00065; for adaptive methods Cohen et al. 2022,
2207.14484 (Adam at b1 = 0.9: 38 / lr).

>>> import jax, jax.numpy as jnp
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.sum(batch * w**2)
>>> value = sharpness(loss_fn, jnp.ones(2), jnp.array([1.0, 3.0]), key=jax.random.key(0))
>>> print(f"{value:.3f} of {stability_threshold('sgd', 0.5, b1=0.0):.1f}")
3.000 of 4.0
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of, whole_number
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import Domain, decay_rate, in_domain, positive, real_number
from adamw_jax.curvature._batches import Batches
from adamw_jax.curvature._eigenvalues import extreme_pairs, top_eigenvalues
from adamw_jax.curvature._preconditioner import inverse_preconditioner, measures_loss
from adamw_jax.curvature._products import LossFn, Product, hvp_fn, real_params

Tree = Any

OPTIMIZERS = ("sgd", "nesterov", "adam")


def sharpness(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    *,
    key: jax.Array,
    steps: int = 32,
    product: Product = hvp_fn,
) -> jax.Array:
    """Compute the largest eigenvalue of the Hessian.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      key: random key of the start vector.
      steps: number of Lanczos steps, >= 1.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.

    Returns:
      A scalar in float32 or wider. It is a lower bound: more ``steps`` only raise it, up to
      rounding.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> round(float(aj.curvature.sharpness(loss_fn, params, batch, key=jax.random.key(0))), 3)
      3.0
    """
    found = top_eigenvalues(loss_fn, params, batch, key=key, steps=steps, product=product)
    return found[0][0]


def preconditioned_sharpness(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    tx: Composed,
    opt_state: Any,
    *,
    key: jax.Array,
    steps: int = 32,
    product: Product = hvp_fn,
    value_sq_mean: Any = None,
) -> jax.Array:
    """Compute the largest eigenvalue of P^-1 H, where P is the diagonal of ``preconditioner``.

    KOALA's P also depends on the loss and the gradient, which are computed from ``loss_fn`` and
    ``batch``.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      tx: the recipe; for a state of optax, the recipe of this library with the same numbers.
      opt_state: the state after the last update, under any wrapper; see ``preconditioner``.
      key: random key of the start vector.
      steps: number of Lanczos steps, >= 1.
      product: the matrix: ``hvp_fn`` for the Hessian, or ``gauss_newton_fn``.
      value_sq_mean: the argument of this name that KOALA's ``update`` gets, if any.

    Returns:
      A scalar in float32 or wider. It is computed from P^(-1/2) H P^(-1/2), which has the same
      eigenvalues; NaN if KOALA's P is negative. Compare it with ``stability_threshold``: ``"adam"``
      if the first moment is an average, ``"sgd"`` for heavy-ball momentum, b1 = 0 without momentum
      (KOALA-V, ``norm_adaptive_sgd``). KOALA-M and recipes that scale the direction later (trust
      ratios, clipping) have other thresholds.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> tx = aj.adam(1e-3)
      >>> _, state = tx.update(batch, tx.init(params), params)
      >>> found = aj.curvature.preconditioned_sharpness(
      ...     loss_fn, params, batch, tx, state, key=jax.random.key(0)
      ... )
    """
    steps, params = whole_number("steps", steps), real_params(params)
    value = gradient = None
    if measures_loss(tx):
        value, gradient = _loss_and_gradient(loss_fn, params, batch)
    loss = {"value": value, "value_sq_mean": value_sq_mean}
    slopes = inverse_preconditioner(tx, opt_state, params, gradient, loss)
    return _scaled_sharpness(loss_fn, params, batch, slopes, key, steps=steps, product=product)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _loss_and_gradient(loss_fn: LossFn, params: Tree, batch: Any) -> tuple[jax.Array, Tree]:
    gradient_of = functools.partial(jax.value_and_grad(loss_fn), params)
    return batch.mean(gradient_of) if isinstance(batch, Batches) else gradient_of(batch)


@functools.partial(jax.jit, static_argnames=("loss_fn", "steps", "product"))
def _scaled_sharpness(
    loss_fn: LossFn,
    params: Tree,
    batch: Any,
    slopes: Tree,
    key: jax.Array,
    *,
    steps: int,
    product: Product,
) -> jax.Array:
    linear = product(loss_fn, params, batch)
    roots = jax.tree.map(jnp.sqrt, slopes)

    def scaled(v: Tree) -> Tree:
        return jax.tree.map(lambda r, x: r * numerics.widen(x), roots, v)

    pairs = extreme_pairs(lambda v: scaled(linear(scaled(v))), params, key, 1, "largest", steps)
    return pairs[0][0]


def stability_threshold(optimizer: str, learning_rate: Any, b1: Any) -> jax.Array:
    """Return the sharpness above which a long full-batch run diverges on a quadratic.

    Args:
      optimizer: ``"sgd"`` with heavy-ball momentum, ``"nesterov"`` (``sgdw(nesterov=True)``), or
        ``"adam"`` for every optimizer whose first moment is an average with rate b1 and no
        look-ahead.
      learning_rate: a number > 0, an array or tracer, not a schedule.
      b1: momentum or decay rate of the first moment, in [0, 1); 0 for none.

    Returns:
      A scalar of the default float dtype, to compare with ``sharpness`` for the first two and with
      ``preconditioned_sharpness`` for ``"adam"``.

    Example:
      >>> import adamw_jax as aj
      >>> round(float(aj.curvature.stability_threshold("sgd", 0.1, 0.0)), 1)
      20.0
    """
    one_of("optimizer", optimizer, OPTIMIZERS)
    lr = _concrete("learning_rate", learning_rate, positive)
    b = _concrete("b1", b1, decay_rate)
    share = {"sgd": 1.0, "nesterov": 1.0 + 2.0 * b, "adam": 1.0 - b}[optimizer]
    return (2.0 + 2.0 * b) / (share * lr)


def _concrete(name: str, value: Any, domain: Domain) -> jax.Array:
    found = real_number(value, f"{name} must be {domain.words}, got")
    if not isinstance(found, jax.core.Tracer):
        in_domain(found, domain, f"{name} must be {domain.words}")
    return numerics.scalar(found)
