"""A point of training looked at closely: does the loss stand still, and why?

    balance = -<grad L, u> / (u^T H u / 2),       u the update;  for SGD
            = |grad L|^2 / (lr / 2  E[g^T H g])

Training whose loss has settled need not be at a stationary point: gradients stay large, and what a
step descends along the gradient it loses to curvature under noise, a balance of 1. Zhang, Li, Sra &
Jadbabaie, ICML 2022, arXiv 2110.06256; their equation 10 lacks the factor 1/2, which is exact for a
quadratic. Whether the loss has settled, ``RunningMeasure`` tells.

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
    """What ``stationarity_report`` found, scalars of the default float dtype.

    Attributes:
      loss: the mean of the batches' losses.
      grad_norm: norm of the mean gradient; too large by the noise of a small sample.
      grad_norm_unbiased: the root of |grad|^2 - tr(Cov) / batches, 0 where that is negative.
      noise_norm_batch: root of the mean squared distance of a batch's gradient from the mean.
      noise_norm_example: the same for one example, sqrt(batch size) times as large.
      rayleigh_g: g^T H g / g.g, with g of one batch and H of another.
      one_step_change: what one update from one batch does to the loss of another.
      descent: -<grad, u>, without bias: the fall of the loss to first order.
      bend: u^T H u / 2, what curvature takes back.
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
        """Descent over bend: above 1 the loss falls, at 1 it stands still, below 1 it rises.

        Where curvature takes nothing back, with a bend of 0 or less, there is no such number: inf
        with a descent above 0, -inf with one below, and 0 without one. NaN comes of a NaN only.
        """
        straight = self.bend <= 0
        ratio = self.descent / jnp.where(straight, 1.0, self.bend)
        endless = jnp.where(ratio > 0, jnp.inf, jnp.where(ratio < 0, -jnp.inf, ratio))
        return jnp.where(straight, endless, ratio)

    def verdict(
        self, settled: bool, *, gradient_tolerance: float = 1e-3, balance_tolerance: float = 0.25
    ) -> str:
        """The state of training in a word.

        Args:
          settled: whether the time average of the loss stands still, ``RunningMeasure.read``.
          gradient_tolerance: ``grad_norm_unbiased`` that counts as none, in units of the gradient.
          balance_tolerance: distance of ``balance`` from 1 that counts as none.

        Returns:
          ``"stationary point"``, ``"invariant measure"``: the loss has settled where gradients have
          not vanished, ``"descending"``, or ``"unclear"``, as where a step climbs to first order
          (``descent`` not above 0).
        """
        if settled and float(self.grad_norm_unbiased) <= gradient_tolerance:
            return "stationary point"
        if not float(self.descent) > 0:  # the balance is one of a descent
            return "unclear"
        off = float(self.balance) - 1.0
        if settled and abs(off) <= balance_tolerance:
            return "invariant measure"
        return "descending" if off > balance_tolerance else "unclear"


class _Sums(NamedTuple):
    """Sums over the batches so far, and what the next one needs of the last."""

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
    """One pass over independent batches: gradient, noise, curvature along the steps, and balance.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: the point, a tree of real floating arrays.
      batches: two or more, of the size that training has, independently drawn; they stream. The
        first axis of a batch's first array counts its examples. ``Batches`` will do.
      learning_rate: of SGD, > 0, whose update is minus the gradient times it.
      update_fn: for other optimizers, instead: a gradient's update, like ``params``. Nothing
        recompiles from call to call where ``loss_fn`` is the same function and what changes is an
        argument of a ``jax.tree_util.Partial``, such as the optimizer's state.
      product: of which matrix ``rayleigh_g`` and ``bend`` are; ``hvp_fn`` for the Hessian.

    Returns:
      The report. Per batch it costs a gradient, two Hessian products and two losses; memory is
      that of five more gradients.

    Raises:
      ValueError: fewer than two batches, or not one of ``learning_rate`` and ``update_fn``.
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
        raise ValueError(
            f"batches must hold two or more, got {seen}: the noise is what they differ by."
        )
    return _report(sums, numerics.scalar(float(seen)), numerics.scalar(size / seen))


def _descend(learning_rate: jax.Array, gradient: Tree) -> Tree:
    return jax.tree.map(lambda g: numerics.scaled(-learning_rate, numerics.widen(g)), gradient)


def _look(loss_fn: Any, update_fn: Any, params: Tree, batch: Any) -> tuple[jax.Array, Tree, Tree]:
    """Loss, gradient and update of a batch."""
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
