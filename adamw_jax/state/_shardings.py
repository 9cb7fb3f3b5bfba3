"""``state_shardings``: derive the shardings of a state from those of the parameters.

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

from adamw_jax._core.encoded import Encoded, encoded, is_encoded
from adamw_jax._core.numerics import as_arrays, leaf_names, owners_in, unbox
from adamw_jax._core.stage import transformation
from adamw_jax.storage._shards import placed

Tree = Any


def state_shardings(tx: optax.GradientTransformation, params: Tree, shardings: Tree) -> Tree:
    """Return the sharding of every array of the state of ``tx``.

    An array belongs to a parameter if its path ends with the path of the parameter. It is sharded
    like the parameter if it has the same shape, and so are codes of encoded arrays. Scales of codes
    and factors of ``factored_squares`` are sharded along the axes that they share with the
    parameter, the iterates of ``average_iterates(kind="last")`` along all axes but their first.
    Scalars and packed buffers are on every device. If all parameters have the same memory kind, so
    has the state.

    Args:
      tx: any optax transformation.
      params: the parameters, or their shapes and dtypes.
      shardings: a ``NamedSharding`` for each parameter, or a prefix of such a tree, such as one for
        all.

    Returns:
      A tree like the state, for ``jax.jit(tx.init, out_shardings=...)``, for the ``in_shardings``
      of a step or for ``jax.device_put``.

    Raises:
      ValueError: ``shardings`` is empty or does not fit ``params``, or it shards a parameter within
        the blocks of its codes, or a leaf that is packed with others.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> mesh = jax.make_mesh((1,), ("data",))
      >>> tx, params = aj.adamw(1e-3), {"w": jnp.ones((8, 4))}
      >>> wanted = aj.state_shardings(tx, params, NamedSharding(mesh, P("data")))
      >>> state = jax.jit(tx.init, out_shardings=wanted)(params)
    """
    tx = transformation(tx, "tx")
    params = as_arrays(params)
    whole = _leaves(params, shardings)
    kinds = {each.memory_kind for each in whole}
    everywhere = NamedSharding(
        whole[0].mesh, PartitionSpec(), memory_kind=kinds.pop() if len(kinds) == 1 else None
    )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    bare = jax.tree_util.tree_leaves_with_path(unbox(params))  # a state may be without boxes
    owners = {
        path: (each, leaf)
        for paths in (leaves, bare)
        for (path, _), (_, leaf), each in zip(paths, leaves, whole, strict=True)
    }

    def place(path: Any, node: Any, start: int | None) -> Any:
        if start is None:
            return jax.tree.map(lambda _: everywhere, node)
        sharding, param = owners[path[start:]]
        if is_encoded(node):
            return _encoded(node, param.shape, sharding)
        return _of(node.shape, param.shape, sharding)

    with placed(dict(zip(leaf_names(params), whole, strict=True))):
        # A new function, because JAX caches ``tx.init`` for these shapes.
        state = jax.eval_shape(lambda params: tx.init(params), params)
    nodes, structure = jax.tree_util.tree_flatten_with_path(state, is_leaf=is_encoded)
    starts = owners_in([path for path, _ in nodes], owners)
    return structure.unflatten(
        place(path, node, start) for (path, node), start in zip(nodes, starts, strict=True)
    )


def _leaves(params: Tree, shardings: Tree) -> list[NamedSharding]:
    """Return a sharding for each parameter."""
    given = jax.tree.leaves(shardings, is_leaf=lambda x: x is None)
    try:
        whole = jax.tree.leaves(jax.tree.broadcast(shardings, params))
    except ValueError as error:
        if None in given:
            raise TypeError(
                "shardings must be NamedSharding, got None: for a parameter that is on every "
                "device, give NamedSharding(mesh, PartitionSpec())."
            ) from error
        raise ValueError(f"shardings does not fit params: {error}") from error
    for each in whole:
        if not isinstance(each, NamedSharding):
            raise TypeError(f"shardings must be NamedSharding, got {each!r}.")
    if not whole:
        raise ValueError("shardings is empty: give a NamedSharding, which has the mesh.")
    return whole


def _encoded(node: Encoded, like: tuple[int, ...], sharding: NamedSharding) -> Encoded:
    """Return the shardings of an encoded array of a parameter of the shape ``like``."""
    codes, spec = _of(node.codes.shape, like, sharding), _axes(sharding, like)
    if isinstance(node.scales, tuple):  # a vector for each axis
        scales: Any = tuple(
            _with(sharding, [names], x.shape) for names, x in zip(spec, node.scales, strict=True)
        )
    elif node.scales is None:
        scales = None
    elif node.scales.ndim == len(like):
        scales = _of(node.scales.shape, like, sharding)
    else:  # in C order, one shard after the other
        names = tuple(name for axis in spec for name in _names(axis))
        scales = _with(sharding, [names or None], node.scales.shape)
    return encoded(codes, scales, node.layout)


def _of(shape: tuple[int, ...], like: tuple[int, ...], sharding: NamedSharding) -> NamedSharding:
    """Return the sharding of an array of ``shape`` of a parameter of the shape ``like``."""
    spec, more = _axes(sharding, like), len(shape) - len(like)
    if like and more == 0 and shape[:-1] == like[:-1]:  # the array, its codes, scales of its rows
        return _with(sharding, spec, shape)
    if more == 1 and shape[1:] == like:
        return _with(sharding, (None, *spec), shape)
    left = {  # a factor, without one axis
        (*spec[:axis], *spec[axis + 1 :])
        for axis in range(len(like))
        if shape == (*like[:axis], *like[axis + 1 :])
    }
    return _with(sharding, left.pop() if len(left) == 1 else (None,) * len(shape), shape)


def _axes(sharding: NamedSharding, like: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the mesh axes of every axis of an array."""
    return tuple(sharding.spec) + (None,) * (len(like) - len(sharding.spec))


def _with(sharding: NamedSharding, spec: Any, shape: tuple[int, ...]) -> NamedSharding:
    """Make a sharding by ``spec``, without mesh axes that do not divide ``shape``."""
    whole = [
        names if length % math.prod(sharding.mesh.shape[n] for n in _names(names)) == 0 else None
        for names, length in zip(spec, shape, strict=True)
    ]
    return NamedSharding(sharding.mesh, PartitionSpec(*whole), memory_kind=sharding.memory_kind)


def _names(names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    return names if isinstance(names, tuple) else (names,)
