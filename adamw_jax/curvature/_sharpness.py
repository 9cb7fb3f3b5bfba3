"""Sharpness: the largest eigenvalue of the Hessian, and where training becomes unstable.

    sharpness = lambda_max(H),        preconditioned sharpness = lambda_max(P^-1 H)

On a quadratic an optimizer diverges along an eigenvector whose eigenvalue exceeds a threshold:

    sgd        m <- b1 m + g                          (2 + 2 b1) / lr               (b1 = 0: 2 / lr)
    nesterov   m <- b1 m + g, step by g + b1 m        (2 + 2 b1) / ((1 + 2 b1) lr)
    adam       m <- b1 m + (1 - b1) g, step by m / P  (2 + 2 b1) / ((1 - b1) lr),  of P^-1 H

Full-batch training raises its sharpness up to there and then hovers: the edge of stability. Cohen
et al., ICLR 2021, 2103.00065; for adaptive methods Cohen et al. 2022, 2207.14484 (Adam at b1 = 0.9:
38 / lr).

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
    """The largest eigenvalue of the Hessian, by sign.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays.
      batch: what ``loss_fn`` takes, or ``Batches``.
      key: of the random start vector.
      steps: Lanczos steps, >= 1; 32.
      product: of which matrix; ``hvp_fn`` for the Hessian.

    Returns:
      A scalar of float32 at least, from below: up to rounding, more ``steps`` only raise it.

    Raises:
      ImportError: matfree is not installed.
      TypeError: a parameter is not real floating-point.
      ValueError: ``steps`` is out of range.
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
    """The largest eigenvalue of P^-1 H, P the diagonal by which the optimizer divides.

    P is read from the state of any recipe of this library. KOALA's depends on loss and gradient,
    too, which are computed from ``loss_fn`` and ``batch``.

    Args:
      loss_fn: ``(params, batch) -> scalar``.
      params: a tree of real floating-point arrays.
      batch: what ``loss_fn`` takes, or ``Batches``.
      tx: the recipe; for a state of optax the one of this library with the same numbers.
      opt_state: the state after its last update, under any wrapper; see ``preconditioner``.
      key: of the random start vector.
      steps: Lanczos steps; 32.
      product: of which matrix; ``hvp_fn`` for the Hessian.
      value_sq_mean: what KOALA's ``update`` gets beside the loss, if anything.

    Returns:
      A scalar of float32 at least. It is computed from P^(-1/2) H P^(-1/2), which has the same
      eigenvalues; NaN where KOALA's P is negative. Compare it with
      ``stability_threshold("adam", learning_rate, b1)`` where the first moment is an average, with
      ``"sgd"`` after heavy-ball momentum, and b1 = 0 for none (KOALA-V, ``norm_adaptive_sgd``).
      KOALA-M and what comes behind the direction (trust ratios, clipping) have other thresholds.

    Raises:
      ImportError: matfree is not installed.
      TypeError, ValueError: as ``preconditioner``, or ``steps`` is out of range.
    """
    steps = whole_number("steps", steps)
    value = gradient = None
    if measures_loss(tx):
        value, gradient = _loss_and_gradient(loss_fn, params, batch)
    loss = {"value": value, "value_sq_mean": value_sq_mean}
    slopes = inverse_preconditioner(tx, opt_state, params, gradient, loss)
    return _scaled_sharpness(loss_fn, params, batch, slopes, key, steps=steps, product=product)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _loss_and_gradient(loss_fn: LossFn, params: Tree, batch: Any) -> tuple[jax.Array, Tree]:
    gradient_of = functools.partial(jax.value_and_grad(loss_fn), real_params(params))
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

    pairs = extreme_pairs(
        lambda v: scaled(linear(scaled(v))), real_params(params), key, 1, "largest", steps
    )
    return pairs[0][0]


def stability_threshold(optimizer: str, learning_rate: Any, b1: Any) -> jax.Array:
    """The sharpness above which an optimizer diverges on a quadratic, full batch, long run.

    Args:
      optimizer: ``"sgd"`` with heavy-ball momentum, ``"nesterov"`` (``sgdw(nesterov=True)``), or
        ``"adam"`` for all whose first moment is an average with rate b1 and no look-ahead.
      learning_rate: a number > 0, an array or tracer.
      b1: momentum or decay rate of the first moment, in [0, 1); 0 for none.

    Returns:
      The threshold, a scalar of the default float dtype: of ``sharpness`` for the first two, of
      ``preconditioned_sharpness`` for ``"adam"``.

    Raises:
      TypeError, ValueError: an argument is out of its range or a schedule.
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
