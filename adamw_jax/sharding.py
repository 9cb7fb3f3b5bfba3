"""Where the arrays of an optimizer's state go, from where those of the parameters are.

>>> import jax, optax
>>> from jax.sharding import NamedSharding, PartitionSpec
>>> mesh = jax.make_mesh((1,), ("data",))
>>> rows = NamedSharding(mesh, PartitionSpec("data", None))
>>> kernel = jax.ShapeDtypeStruct((8, 4), "float32")
>>> tuple(state_shardings(optax.adam(1e-3), kernel, rows)[0].mu.spec)
('data', None)
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from adamw_jax.numerics import owner_in, without_boxes
from adamw_jax.storage import is_encoded

Tree = Any


def state_shardings(tx: optax.GradientTransformation, params: Tree, shardings: Tree) -> Tree:
    """The sharding of every array of the state of ``tx``.

    An array that belongs to a parameter, its path ends with the parameter's, is sharded as the
    parameter where it has its shape; the codes of an encoded array too, its scales along the axes
    that they share with it, and the iterates of ``average_iterates(kind="last")`` behind their own
    axis. Scalars, factors and packed buffers are on every device.

    Args:
      tx: any optax transformation.
      params: the parameters, or their shapes and dtypes.
      shardings: a ``NamedSharding`` for each parameter; or a tree that ends earlier, such as one
        for all.

    Returns:
      A tree like the state, for ``jax.jit(tx.init, out_shardings=...)``, for the ``in_shardings``
      of a step or for ``jax.device_put``.

    Raises:
      TypeError: ``tx`` is no transformation, or something in ``shardings`` no ``NamedSharding``.
      ValueError: ``shardings`` does not fit ``params``, or there is none.
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"tx must be an optax transformation such as optax.adam(1e-3), got {tx!r}.")
    whole = jax.tree.leaves(jax.tree.broadcast(shardings, params))
    for each in whole:
        if not isinstance(each, NamedSharding):
            raise TypeError(f"shardings must be NamedSharding, got {each!r}.")
    if not whole:
        raise ValueError("shardings must tell the mesh, and there is none in it.")
    everywhere = NamedSharding(whole[0].mesh, PartitionSpec())
    leaves = jax.tree_util.tree_leaves_with_path(params)
    bare = jax.tree_util.tree_leaves_with_path(without_boxes(params))  # state has boxes or has none
    owners = {
        path: (each, leaf)
        for paths in (leaves, bare)
        for (path, _), (_, leaf), each in zip(paths, leaves, whole, strict=True)
    }

    def place(path: Any, node: Any) -> Any:
        start = owner_in(path, owners)
        if start is None:
            return jax.tree.map(lambda _: everywhere, node)
        sharding, param = owners[path[start:]]
        return jax.tree.map(lambda x: _of(x.shape, param.shape, sharding), node)

    state = jax.eval_shape(tx.init, params)
    return jax.tree_util.tree_map_with_path(place, state, is_leaf=is_encoded)


def _of(shape: tuple[int, ...], like: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
    """That of an array of ``shape`` beside a parameter of the shape ``like``."""
    spec = tuple(sharding.spec) + (None,) * (len(like) - len(sharding.spec))
    more = len(shape) - len(like)
    if like and more == 0 and shape[:-1] == like[:-1]:  # the array, its codes, scales of its rows
        return NamedSharding(sharding.mesh, PartitionSpec(*_whole(spec, shape, sharding)))
    if more == 1 and shape[1:] == like:
        return NamedSharding(sharding.mesh, PartitionSpec(None, *spec))
    return NamedSharding(sharding.mesh, PartitionSpec())


def _whole(spec: tuple[Any, ...], shape: tuple[int, ...], sharding: NamedSharding) -> list[Any]:
    """``spec`` without the axes that do not divide ``shape``, as few scales may not be divided."""
    return [
        names if length % math.prod(sharding.mesh.shape[n] for n in _names(names)) == 0 else None
        for names, length in zip(spec, shape, strict=True)
    ]


def _names(names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    return names if isinstance(names, tuple) else (names,)
