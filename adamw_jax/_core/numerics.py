"""Precision rules for all stages, names of leaves, and boxes of Flax.

Accumulators, scalars and the arithmetic between them use the *compute dtype*: at least the
default float dtype of JAX (float32, or float64 under ``jax_enable_x64``), complex for complex
leaves. An update has the wider of the dtypes of the gradient and the parameter.
"""

from __future__ import annotations

import collections
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast as typed

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

Tree = Any
F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Run a function of arrays as one kernel outside of a trace, and as it is inside.

    Outside of a trace JAX starts each operation by itself, which takes longer than its arithmetic
    on a small array. The function must depend on nothing but its arguments; those after ``*`` are
    constants.
    """
    names = inspect.signature(function).parameters.values()
    constant = [x.name for x in names if x.kind is x.KEYWORD_ONLY]
    compiled = jax.jit(function, static_argnames=constant)

    @functools.wraps(function)
    def run(*args: Any, **constants: Any) -> Any:
        for x in args:
            if isinstance(x, Tracer):
                return function(*args, **constants)
        nested = any(isinstance(x, Tracer) for x in jax.tree.leaves(args))
        return (function if nested else compiled)(*args, **constants)

    return typed(F, run)


def default_float() -> jnp.dtype:
    """Return the dtype of scalars and accumulators: float32, or float64 under x64."""
    return jax.dtypes.canonicalize_dtype(float)


def compute_dtype(x: Any) -> jnp.dtype:
    """Return the dtype in which accumulators of the leaf ``x`` are computed."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.dtype(jnp.complex128 if default_float() == jnp.float64 else jnp.complex64)
    return default_float()


def scalar(x: Any) -> jax.Array:
    """Return ``x`` as a strongly typed scalar of the default float dtype."""
    return lax.convert_element_type(jnp.asarray(x), default_float())


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """Convert ``x`` to a dtype, strongly typed; return ``x`` itself if it is so already."""
    if x.dtype == dtype and isinstance(x, jax.Array) and not x.weak_type:
        return x
    return lax.convert_element_type(x, dtype)


def cast_nonnegative(x: jax.Array, dtype: Any) -> jax.Array:
    """Convert a second moment, whose positive values do not become 0 in a dtype of less range."""
    least = jnp.finfo(dtype).tiny
    if least > jnp.finfo(x.dtype).tiny:
        positive = lax.gt(x, lax.full_like(x, 0))
        x = lax.select(positive, lax.max(x, lax.full_like(x, float(least))), x)
    return cast(x, dtype)


def widen(x: jax.Array) -> jax.Array:
    """Convert ``x`` to its compute dtype, without an operation if it has it already."""
    return cast(x, compute_dtype(x))


def placed_like(x: Any, like: Any) -> Any:
    """Reshard ``x`` in a mesh of explicit axes if ``like`` is sharded otherwise, as in ZeRO-1."""
    place = jax.typeof(like).sharding
    return x if jax.typeof(x).sharding.spec == place.spec else jax.sharding.reshard(x, place)


def on_device(tree: Tree) -> Tree:
    """Move the arrays of a tree that lie in the memory of the host to that of their devices."""
    return jax.tree.map(
        lambda x: jax.device_put(x, jax.memory.Space.Device) if _on_host(x) else x, tree
    )


def in_memory_of(tree: Tree, like: Tree) -> Tree:
    """Move the arrays of a tree to the memory of the host if all those of ``like`` lie there."""
    there = [*map(_on_host, jax.tree.leaves(like))]
    if not there or not all(there):
        return tree
    return jax.tree.map(lambda x: jax.device_put(x, jax.memory.Space.Host), tree)


def _on_host(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.typeof(x).memory_space == jax.memory.Space.Host


def copied(params: Tree) -> Tree:
    """Copy parameters in their compute dtype, for a state; the caller's buffers may be donated."""

    def copy(p: Any) -> jax.Array:
        if isinstance(p, jax.ShapeDtypeStruct):
            return jnp.zeros_like(p, dtype=compute_dtype(p))
        return jnp.array(p, dtype=compute_dtype(p), copy=True)

    return jax.tree.map(copy, params)


def like(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Convert a real scalar to the dtype of ``x``, which may be complex."""
    return scale if scale.dtype == x.dtype else lax.convert_element_type(scale, x.dtype)


@kernel
def mixed(rate: jax.Array, old: jax.Array, rest: jax.Array, new: jax.Array) -> jax.Array:
    """Return ``rate * old + rest * new``, one step of a moving average, in the compute dtype."""
    return lax.add(scaled(rate, widen(old)), scaled(rest, widen(new)))


def broadcastable(scalar: Any, leaf: jax.Array) -> jax.Array:
    """Reshape a scalar of the state so that it broadcasts against a leaf.

    In a state under ``vmap`` scalar and leaf begin with the mapped axes. A box of Flax NNX around
    the scalar is removed.
    """
    (array,) = jax.tree.leaves(scalar)
    return array.reshape(array.shape + (1,) * (leaf.ndim - array.ndim))


@kernel
def scaled(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Multiply a leaf by a real scalar, or its slices along the first axis by one scalar each.

    Formulas for each leaf use this and ``lax.add``. JAX traces them three times as fast as the
    operators ``*`` and ``+``, each of which is a jitted function.
    """
    if 0 < scale.ndim < x.ndim:
        scale = broadcastable(scale, x)
    return lax.mul(like(scale, x), x)


@kernel
def abs_square(x: jax.Array) -> jax.Array:
    """Return |x|^2, real for complex ``x``."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        real, imag = lax.real(x), lax.imag(x)
        return lax.add(lax.mul(real, real), lax.mul(imag, imag))
    return lax.mul(x, x)


def agreement(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return 1 where two leaves have the same sign, -1 where they differ in sign, 0 where one is 0.

    For complex leaves it is the cosine of the angle between the elements.
    """
    x, y = lax.sign(widen(x)), lax.sign(widen(y))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return lax.real(lax.mul(lax.conj(x), y))
    return lax.mul(x, y)


def root(x: jax.Array, power: float = 0.5, offset: jax.Array | None = None) -> jax.Array:
    """Return ``(x + offset)**power`` for x >= 0: never 0, and with a finite derivative.

    The smallest normal number is added. It does not change an x above 1e-30, and it makes both the
    division by the root and the derivative at 0 finite. Its root, 1e-19 in float32, is the |g|
    below which g^2 underflows, so a direction divided by it is at most 1.
    """
    tiny = jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype)
    x = lax.add(x, tiny if offset is None else offset + tiny)
    return lax.sqrt(x) if power == 0.5 else power_of(x, lax.full_like(x, power))


def power_of(x: jax.Array, power: jax.Array) -> jax.Array:
    """Return ``x**power`` for x > 0; XLA on CPU vectorises this, but not its own power."""
    return lax.exp(lax.mul(power, lax.log(x)))


def branch(
    taken: jax.Array, yes: Callable[..., Tree], no: Callable[..., Tree], *args: Tree
) -> Tree:
    """``lax.cond``, but outside of a trace it is the branch itself.

    JAX would compile a conditional of new functions at every call.
    """
    if isinstance(taken, Tracer):
        return lax.cond(taken, yes, no, *args)
    return yes(*args) if taken else no(*args)


def nonzero(x: jax.Array) -> jax.Array:
    """Replace 0 by 1, for a denominator that is safe to differentiate."""
    return lax.select(lax.eq(x, lax.full_like(x, 0)), lax.full_like(x, 1), x)


def cast_like(tree: Tree, like: Tree) -> Tree:
    """Convert every leaf of ``tree`` to the dtype of that of ``like``."""
    # JAX takes a NumPy float64 leaf as float32 unless x64 is on.
    return jax.tree.map(lambda x, y: cast(x, jax.dtypes.canonicalize_dtype(y.dtype)), tree, like)


def leaving(tree: Tree, gradient: Tree, params: Tree | None) -> Tree:
    """Convert an update to its final dtype: the wider of those of gradient and parameter."""
    if params is None:
        return cast_like(tree, gradient)

    def wider(g: Any, p: Any) -> Any:
        return p if jnp.finfo(p.dtype).bits > jnp.finfo(g.dtype).bits else g

    return cast_like(tree, jax.tree.map(wider, gradient, params))


def as_arrays(tree: Tree, what: str = "parameter") -> Tree:
    """Replace Python numbers in ``tree`` by arrays; raise if a leaf is neither.

    ``what`` precedes the name of the leaf in the error.
    """
    if all(hasattr(x, "dtype") for x in jax.tree.leaves(tree)):
        return tree
    for name, leaf in named_leaves(tree):
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise not_floating(what, name, leaf)
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else jnp.asarray(x), tree)


def not_floating(what: str, name: str, leaf: Any) -> TypeError:
    """Make the error for a leaf that is not a floating-point array."""
    dtype = getattr(leaf, "dtype", None)
    kind = f"is a {type(leaf).__name__}" if dtype is None else f"has dtype {dtype}"
    return TypeError(
        f"the {what} {name!r} {kind}; only floating-point arrays can be optimized: keep it "
        "out of the tree (in Equinox, eqx.filter(model, eqx.is_inexact_array)) or wrap the "
        "optimizer in optax.masked."
    )


def named_leaves(
    tree: Tree, is_leaf: Callable[[Any], bool] = lambda _: False
) -> list[tuple[str, Any]]:
    """Return the leaves of a tree with the slash-separated names of their parameters.

    A box that Flax puts around an array does not appear in the name.
    """
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: is_box(x) or is_leaf(x))
    return [
        (leaf_name(path), leaf)
        for path, node in nodes
        for leaf in (jax.tree.leaves(node, is_leaf=is_leaf) if is_box(node) else [node])
    ]


def key_of(key: jax.Array, path: tuple[Any, ...], x: jax.Array) -> jax.Array:
    """Make the random key of one leaf, the same in every process.

    Leaves with different paths get different keys, also in parts of a partition with a common seed.
    So do the shards of a leaf inside ``shard_map``, if its type shows that it is sharded
    (``check_vma=True``).

    Args:
      key: the key of this step.
      path: the path of the leaf.
      x: the leaf.
    """
    key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
    for axis in sorted(varying_axes(x)):
        key = jax.random.fold_in(key, lax.axis_index(axis))
    return key


def varying_axes(x: jax.Array) -> frozenset[str]:
    """Return the mesh axes along which an array differs inside ``shard_map``, by its type."""
    kind = jax.typeof(x)
    varying = getattr(getattr(kind, "manual_axis_type", None), "varying", frozenset())
    return getattr(kind, "vma", varying)  # the attribute before and after jax 0.10


def leaf_names(tree: Tree) -> list[str]:
    """Return the names of the parameters in a tree, in the order of ``jax.tree.leaves``."""
    return [name for name, _ in named_leaves(tree)]


def map_named(change: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Apply ``change(name, leaf, *others)`` to every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    others = [structure.flatten_up_to(other) for other in rest]
    return structure.unflatten(map(change, leaf_names(tree), leaves, *others))


def is_box(node: Any) -> bool:
    """Return whether a node is a box that Flax (NNX or Linen) puts around an array."""
    kind = type(node)
    return (hasattr(kind, "get_value") and hasattr(kind, "get_metadata")) or (
        hasattr(kind, "unbox") and hasattr(kind, "replace_boxed")
    )


def unboxed(node: Any) -> Any:
    """Return the array in a box, or the node itself."""
    if not is_box(node):
        return node
    return node.get_value() if hasattr(node, "get_value") else node.unbox(False)


def unbox(tree: Tree) -> Tree:
    """Replace boxes by the arrays in them.

    State of another shape than its parameter must not be in the box of the parameter, whose axis
    names (NNX's ``out_sharding``, Linen's ``nn.with_partitioning``) do not fit it.
    """
    return jax.tree.map(unboxed, tree, is_leaf=is_box)


def boxed_as(tree: Tree, plain: Tree) -> Tree:
    """Put the leaves of ``plain`` into the boxes of ``tree``."""
    places = jax.tree.structure(unbox(tree))
    return jax.tree.structure(tree).unflatten(places.flatten_up_to(plain))


def owners_in(
    paths: Sequence[tuple[Any, ...]], owners: Mapping[tuple[Any, ...], Any]
) -> list[int | None]:
    """Return, for each array of a state, where in its path the path of its parameter begins.

    None means that the array belongs to no parameter. If several ends of a path are parameters,
    because a parameter has the name of a field, the place at which most parameters are found
    counts; if two are equal, the longer end.
    """
    starts = [[n for n in range(len(path) + 1) if path[n:] in owners] for path in paths]
    found = collections.Counter(
        path[:n] for path, ends in zip(paths, starts, strict=True) for n in ends
    )
    return [
        max(ends, key=lambda n: (found[path[:n]], -n), default=None)
        for path, ends in zip(paths, starts, strict=True)
    ]


def leaf_name(path: tuple[Any, ...]) -> str:
    """Return a key path as a slash-separated name, ``dense/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def owned(state: Tree, *given: Tree) -> Tree:
    """Return ``state`` with copies of the arrays that are also in ``given``.

    An eager step may store an array of the caller as it is. If the caller then donates the state,
    the array would be deleted. A traced step has no such arrays.
    """
    arrays = [x for x in jax.tree.leaves(given) if isinstance(x, jax.Array)]
    theirs = {id(x) for x in arrays if not isinstance(x, Tracer)}
    if not theirs:
        return state
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if id(x) in theirs else x, state)


@kernel
def increment(count: jax.Array) -> jax.Array:
    """Return ``count + 1``, or the largest int32 if the sum would overflow."""
    most = jnp.iinfo(count.dtype).max
    return lax.add(lax.min(count, lax.full_like(count, most - 1)), lax.full_like(count, 1))


@kernel
def counted(count: jax.Array, leading: jax.Array) -> jax.Array:
    """Return ``count + 1``, or ``count`` if ``leading`` has stopped at the largest int32."""
    return lax.add(count, lax.sub(increment(leading), leading))
