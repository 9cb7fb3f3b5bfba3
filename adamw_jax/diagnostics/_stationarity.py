"""Find out whether the loss still falls at a point of training, and why.

    balance = -<grad L, u> / (u^T H u / 2),       u the update;  for SGD
            = |grad L|^2 / (lr / 2  E[g^T H g])

If the loss has settled, training need not be at a stationary point. Gradients can stay large while
each step gains as much along the gradient as it loses to curvature and noise: then the balance is
1. Zhang, Li, Sra & Jadbabaie, ICML 2022, arXiv 2110.06256; their equation 10 lacks the factor 1/2,
which is exact for a quadratic. ``RunningMeasure`` finds out whether the loss has settled.

>>> import jax.numpy as jnp
>>> def loss_fn(w, batch):
...     return 0.5 * jnp.mean((w - batch) ** 2)
>>> found = stationarity_report(loss_fn, jnp.float32(1.0), jnp.array([[0.0], [0.0]]), 0.1)
>>> print(found.grad_norm, found.balance.round(1), found.verdict(settled=False))
1.0 20.0 descending
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from adamw_jax._core import numerics
from adamw_jax._core.checks import number
from adamw_jax._core.gradients import check_floating, square_norm_of_tree
from adamw_jax.curvature import hvp_fn
from adamw_jax.curvature._arrays import examples, inner
from adamw_jax.curvature._products import Product

Tree = Any


class StationarityReport(NamedTuple):
    """The result of ``stationarity_report``, scalars of the default float dtype.

    Attributes:
      loss: mean loss of the batches.
      grad_norm: norm of the mean gradient; the noise of a small sample makes it too large.
      grad_norm_unbiased: the root of |grad|^2 - tr(Cov) / (number of batches), 0 if that is
        negative.
      noise_norm_batch: root of the mean squared distance of a batch gradient from the mean.
      noise_norm_example: the same for one example, sqrt(batch size) times as large.
      rayleigh_g: g^T H g / g.g, with g of one batch and H of another.
      one_step_change: change of the loss of one batch by the update from another.
      descent: -<grad, u>, unbiased: the decrease of the loss to first order.
      bend: u^T H u / 2, the increase of the loss by curvature.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> report = aj.diagnostics.stationarity_report(loss_fn, params, [batch, 2 * batch], 0.1)
      >>> float(report.loss)
      4.5
    """

    loss: jax.Array
    grad_norm: jax.Array
    grad_norm_unbiased: jax.Array
    noise_norm_batch: jax.Array
    noise_norm_example: jax.Array
    rayleigh_g: jax.Array
    one_step_change: jax.Array
    descent: jax.Array
    bend: jax.Array

    @property
    def balance(self) -> jax.Array:
        """Return descent / bend: above 1 the loss falls, at 1 it is constant, below 1 it rises.

        With a bend of 0 or less it is inf if the descent is positive, -inf if it is negative and 0
        if it is 0. It is NaN only if one of both is NaN.
        """
        straight = self.bend <= 0
        ratio = self.descent / jnp.where(straight, 1.0, self.bend)
        endless = jnp.where(ratio > 0, jnp.inf, jnp.where(ratio < 0, -jnp.inf, ratio))
        return jnp.where(straight, endless, ratio)

    def verdict(
        self, settled: bool, *, gradient_tolerance: float = 1e-3, balance_tolerance: float = 0.25
    ) -> str:
        """Name the state of training.

        Args:
          settled: whether the time average of the loss is constant, see ``RunningMeasure.read``.
          gradient_tolerance: largest ``grad_norm_unbiased`` that counts as zero.
          balance_tolerance: largest distance of ``balance`` from 1 that counts as zero.

        Returns:
          ``"stationary point"``, ``"invariant measure"`` (the loss has settled but gradients have
          not vanished), ``"descending"``, or ``"unclear"``, for example if a step climbs to first
          order (``descent`` <= 0).
        """
        if settled and float(self.grad_norm_unbiased) <= gradient_tolerance:
            return "stationary point"
        if not float(self.descent) > 0:  # a balance is defined for a descent only
            return "unclear"
        off = float(self.balance) - 1.0
        if settled and abs(off) <= balance_tolerance:
            return "invariant measure"
        return "descending" if off > balance_tolerance else "unclear"


class _Sums(NamedTuple):
    """Sums over the batches so far, and the gradient and update of the last one."""

    gradient: Tree
    update: Tree
    squares: jax.Array
    products: jax.Array
    loss: jax.Array
    rayleigh: jax.Array
    bend: jax.Array
    change: jax.Array
    last_gradient: Tree
    last_update: Tree


def stationarity_report(
    loss_fn: Callable[[Tree, Any], jax.Array],
    params: Tree,
    batches: Iterable[Any],
    learning_rate: Any = None,
    *,
    update_fn: Callable[[Tree], Tree] | None = None,
    product: Product = hvp_fn,
) -> StationarityReport:
    """Measure gradient, noise, curvature along steps and balance in one pass over batches.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: the point, a tree of real floating-point arrays.
      batches: two or more independently drawn batches of the size used in training, read one by
        one. The first axis of a batch's first array counts its examples. ``Batches`` may be given.
      learning_rate: learning rate of SGD, > 0. Give this or ``update_fn``.
      update_fn: for other optimizers: ``gradient -> update``, a tree like ``params``. To avoid
        compiling again, pass the same ``loss_fn`` and make what changes, such as the state of the
        optimizer, an argument of a ``jax.tree_util.Partial``.
      product: the matrix of ``rayleigh_g`` and ``bend``: ``hvp_fn`` for the Hessian, or
        ``gauss_newton_fn``.

    Returns:
      The report. It costs one gradient, two Hessian products and two losses per batch, and memory
      for five more gradients.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> report = aj.diagnostics.stationarity_report(loss_fn, params, [batch, 2 * batch], 0.1)
    """
    check_floating(params, "parameter")
    if (learning_rate is None) == (update_fn is None):
        raise ValueError(
            "give either learning_rate, for SGD, or update_fn, got "
            f"learning_rate={learning_rate!r} and update_fn={update_fn!r}."
        )
    if update_fn is None:
        rate = number("learning_rate", learning_rate, above=0)
        update_fn = Partial(_descend, numerics.scalar(rate))
    update_fn = update_fn if isinstance(update_fn, Partial) else Partial(update_fn)
    sums, seen, size = None, 0, 0
    for batch in batches:
        sums = (
            _first(loss_fn, update_fn, params, batch)
            if sums is None
            else _next(loss_fn, product, update_fn, params, batch, sums)
        )
        seen, size = seen + 1, size + max(1, examples(batch))
    if sums is None or seen < 2:
        raise ValueError(f"batches must hold two or more, got {seen}: noise is their difference.")
    return _report(sums, numerics.scalar(float(seen)), numerics.scalar(size / seen))


def _descend(learning_rate: jax.Array, gradient: Tree) -> Tree:
    return jax.tree.map(lambda g: numerics.scaled(-learning_rate, numerics.widen(g)), gradient)


def _look(loss_fn: Any, update_fn: Any, params: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
    """Return loss, gradient and update of a batch."""
    loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
    update = numerics.cast_like(update_fn(gradient), params)
    return numerics.scalar(loss), gradient, update


@functools.partial(jax.jit, static_argnums=0)
def _first(loss_fn: Any, update_fn: Any, params: Tree, batch: Any) -> _Sums:
    loss, gradient, update = _look(loss_fn, update_fn, params, batch)
    none = jnp.zeros([], numerics.default_float())
    return _Sums(
        gradient=jax.tree.map(numerics.widen, gradient),
        update=jax.tree.map(numerics.widen, update),
        squares=square_norm_of_tree(gradient),
        products=inner(gradient, update),
        loss=loss,
        rayleigh=none,
        bend=none,
        change=none,
        last_gradient=gradient,
        last_update=update,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _next(
    loss_fn: Any, product: Product, update_fn: Any, params: Tree, batch: Any, sums: _Sums
) -> _Sums:
    loss, gradient, update = _look(loss_fn, update_fn, params, batch)
    g, u = sums.last_gradient, sums.last_update
    moved = jax.tree.map(lambda p, d: p + d, params, u)
    linear = product(loss_fn, params, batch)

    def add(total: jax.Array, x: jax.Array) -> jax.Array:
        return total + numerics.widen(x)

    return _Sums(
        gradient=jax.tree.map(add, sums.gradient, gradient),
        update=jax.tree.map(add, sums.update, update),
        squares=sums.squares + square_norm_of_tree(gradient),
        products=sums.products + inner(gradient, update),
        loss=sums.loss + loss,
        rayleigh=sums.rayleigh + inner(g, linear(g)) / numerics.nonzero(square_norm_of_tree(g)),
        bend=sums.bend + 0.5 * inner(u, linear(u)),
        change=sums.change + numerics.scalar(loss_fn(moved, batch)) - loss,
        last_gradient=gradient,
        last_update=update,
    )


@jax.jit
def _report(sums: _Sums, seen: jax.Array, size: jax.Array) -> StationarityReport:
    square = square_norm_of_tree(sums.gradient)
    pairs = seen * (seen - 1.0)
    noise = jnp.maximum((sums.squares - square / seen) / (seen - 1.0), 0.0)
    return StationarityReport(
        loss=sums.loss / seen,
        grad_norm=jnp.sqrt(square) / seen,
        grad_norm_unbiased=jnp.sqrt(jnp.maximum((square - sums.squares) / pairs, 0.0)),
        noise_norm_batch=jnp.sqrt(noise),
        noise_norm_example=jnp.sqrt(noise * size),
        rayleigh_g=sums.rayleigh / (seen - 1.0),
        one_step_change=sums.change / (seen - 1.0),
        descent=-(inner(sums.gradient, sums.update) - sums.products) / pairs,
        bend=sums.bend / (seen - 1.0),
    )
