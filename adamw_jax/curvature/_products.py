"""Multiply vectors by the Hessian of a loss, or by its Gauss-Newton matrix.

    hvp:            H v,             H = d^2 L / d theta^2         (Pearlmutter 1994)
    Gauss-Newton:   J^T (B (J v)),   J = d z / d theta,  B = d^2 l / d z^2,  L = l(z(theta))

Here z(theta) are the outputs of the model and l is the loss of the outputs. Neither matrix is
formed: a product costs a few gradients (for Gauss-Newton: Schraudolph 2002). The Gauss-Newton
matrix omits the curvature of the model itself. It is positive semi-definite if the loss is convex
in the outputs. For cross-entropy it is the Fisher matrix.

>>> import jax.numpy as jnp
>>> def loss_fn(w, batch):
...     return jnp.sum(batch * w**2)
>>> hvp(loss_fn, jnp.ones(2), jnp.array([1.0, 3.0]), jnp.array([1.0, 1.0]))
Array([2., 6.], dtype=float32)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec, reshard

from adamw_jax._core import numerics
from adamw_jax.curvature._batches import Batches

Tree = Any
LossFn = Callable[[Tree, Any], jax.Array]
"""``(params, batch) -> scalar``. Compiled programs are cached per function, as by ``jax.jit``:
arrays that it closes over are constants. Pass data that changes between calls in ``batch``."""
LinearMap = Callable[[Tree], Tree]
Product = Callable[[Any, Tree, Any], LinearMap]
"""``(loss_fn, params, batch) -> linear map``: ``hvp_fn``, ``gauss_newton_fn``, or your own."""


@dataclasses.dataclass(frozen=True)
class CompositeLoss:
    """A loss in two parts, as the Gauss-Newton matrix needs it; callable like any loss.

    Attributes:
      model_fn: ``(params, batch) -> outputs``, a tree of arrays.
      output_loss: ``(outputs, batch) -> scalar``, the mean over the batch.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = aj.curvature.CompositeLoss(
      ...     lambda params, batch: batch[0] @ params,
      ...     lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2),
      ... )
      >>> float(loss_fn(jnp.ones(2), (jnp.eye(2), jnp.zeros(2))))
      1.0
    """

    model_fn: Callable[[Tree, Any], Tree]
    output_loss: Callable[[Tree, Any], jax.Array]

    def __call__(self, params: Tree, batch: Any) -> jax.Array:
        """Return the loss of a batch."""
        return self.output_loss(self.model_fn(params, batch), batch)


def hvp(loss_fn: LossFn, params: Tree, batch: Any, v: Tree) -> Tree:
    """Multiply ``v`` by the Hessian; use ``hvp_fn`` for several products at one point.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      v: a tree like ``params``, in any floating dtypes.

    Returns:
      H v, a tree with the shapes and dtypes of ``params``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> aj.curvature.hvp(loss_fn, params, batch, jnp.ones(3)).tolist()
      [1.0, 2.0, 3.0]
    """
    return hvp_fn(loss_fn, params, batch)(v)


def hvp_fn(loss_fn: LossFn, params: Tree, batch: Any) -> LinearMap:
    """Return the Hessian of ``loss_fn`` at ``params`` as a linear map.

    Args:
      loss_fn: ``(params, batch) -> scalar``, the mean over the batch, twice differentiable.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.

    Returns:
      ``v -> H v``. v is a tree like ``params`` in any floating dtypes; H v has the dtypes of
      ``params``. The gradient is linearized once, and a product repeats only the linear part. With
      ``Batches`` every product also repeats the linearization.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> product = aj.curvature.hvp_fn(loss_fn, params, batch)
      >>> product(jnp.ones(3)).tolist()
      [1.0, 2.0, 3.0]
    """
    gradient = jax.grad(loss_fn)

    def at(params: Tree, batch: Any) -> LinearMap:
        return jax.linearize(lambda p: gradient(p, batch), params)[1]

    return _averaged(at, params, batch)


def gauss_newton_product(loss_fn: CompositeLoss, params: Tree, batch: Any, v: Tree) -> Tree:
    """Multiply ``v`` by the Gauss-Newton matrix; use ``gauss_newton_fn`` for several products.

    Args:
      loss_fn: the loss in two parts, each differentiable, the outer one twice.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.
      v: a tree like ``params``, in any floating dtypes.

    Returns:
      J^T (B (J v)), a tree with the shapes and dtypes of ``params``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = aj.curvature.CompositeLoss(
      ...     lambda params, batch: batch[0] @ params,
      ...     lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2),
      ... )
      >>> params, batch = jnp.ones(2), (jnp.eye(2), jnp.zeros(2))
      >>> aj.curvature.gauss_newton_product(loss_fn, params, batch, jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    return gauss_newton_fn(loss_fn, params, batch)(v)


def gauss_newton_fn(loss_fn: CompositeLoss, params: Tree, batch: Any) -> LinearMap:
    """Return the Gauss-Newton matrix of a composite loss as a linear map.

    Give it as ``product`` to other functions: ``top_eigenvalues(..., product=gauss_newton_fn)``.

    Args:
      loss_fn: the loss in two parts, each differentiable, the outer one twice.
      params: a tree of real floating-point arrays.
      batch: the second argument of ``loss_fn``, or ``Batches``.

    Returns:
      ``v -> J^T (B (J v))`` on trees like ``params``, as the map of ``hvp_fn``.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = aj.curvature.CompositeLoss(
      ...     lambda params, batch: batch[0] @ params,
      ...     lambda outputs, batch: jnp.mean((outputs - batch[1]) ** 2),
      ... )
      >>> params, batch = jnp.ones(2), (jnp.eye(2), jnp.zeros(2))
      >>> product = aj.curvature.gauss_newton_fn(loss_fn, params, batch)
      >>> product(jnp.ones(2)).tolist()
      [1.0, 1.0]
    """
    if not isinstance(loss_fn, CompositeLoss):
        raise TypeError(
            "gauss_newton_fn needs the loss in two parts, CompositeLoss(model_fn, output_loss), "
            f"got {loss_fn!r}."
        )

    def at(params: Tree, batch: Any) -> LinearMap:
        outputs, push = jax.linearize(lambda p: loss_fn.model_fn(p, batch), params)
        bend = jax.linearize(jax.grad(lambda z: loss_fn.output_loss(z, batch)), outputs)[1]
        pull = jax.linear_transpose(push, params)
        return lambda v: pull(bend(push(v)))[0]

    return _averaged(at, params, batch)


def _averaged(at: Callable[[Tree, Any], LinearMap], params: Tree, batch: Any) -> LinearMap:
    """Return the linear map of one batch, or the mean over ``Batches``."""
    params = real_params(params)
    whole = None if isinstance(batch, Batches) else at(params, batch)

    def product(v: Tree) -> Tree:
        _check_fits(v, params)
        v = numerics.cast_like(jax.tree.map(jnp.asarray, v), params)
        v = jax.tree.map(lambda x, p: _reshard(x, jax.typeof(p).sharding), v, params)
        if whole is not None:
            return whole(v)
        return numerics.cast_like(batch.mean(lambda one: at(params, one)(v)), params)

    return product


def flat_map(linear: LinearMap, like: Tree) -> tuple[LinearMap, jax.Array, LinearMap]:
    """Turn a linear map on trees into one on vectors of the default float dtype.

    Returns:
      The map, ``like`` as a vector, and the function from a vector to a tree in that dtype.
    """
    placed = jax.tree.map(lambda x: jax.typeof(x).sharding, like)
    vector, whole_of = ravel_pytree(_whole(_wide(like)))

    def tree_of(v: jax.Array) -> Tree:
        return jax.tree.map(_reshard, whole_of(v), placed)

    def flat(v: jax.Array) -> jax.Array:
        return ravel_pytree(_whole(_wide(linear(tree_of(v)))))[0]

    return flat, vector, tree_of


def _whole(tree: Tree) -> Tree:
    """Copy every leaf to all devices of its explicit mesh, so that it can become a vector."""

    def leaf(x: jax.Array) -> jax.Array:
        sharding: Any = jax.typeof(x).sharding
        return _reshard(x, NamedSharding(sharding.mesh, PartitionSpec()))

    return jax.tree.map(leaf, tree)


def _reshard(x: jax.Array, sharding: Any) -> jax.Array:
    explicit = AxisType.Explicit in sharding.mesh.axis_types  # in others XLA gathers by itself
    return reshard(x, sharding) if explicit else x


def real_params(params: Tree) -> Tree:
    """Return ``params`` as arrays, checked to be real floating-point and at least one."""
    params = jax.tree.map(jnp.asarray, numerics.as_arrays(params))
    for name, leaf in numerics.named_leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"the parameter {name!r} has dtype {leaf.dtype}; "
                "curvature needs real floating-point leaves: give the others with the batch."
            )
    if not jax.tree.leaves(params):
        raise ValueError("params has no leaves: give the parameters that loss_fn differentiates.")
    return params


def _wide(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: numerics.widen(jnp.asarray(x)), tree)


def _check_fits(v: Tree, params: Tree) -> None:
    have, expected = (
        (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        for tree in (v, params)
    )
    if have != expected:
        raise ValueError(
            f"v must be a tree like params, which has leaves {numerics.leaf_names(params)} of "
            f"shapes {expected[1]}; got leaves {numerics.leaf_names(v)} of shapes {have[1]}."
        )
