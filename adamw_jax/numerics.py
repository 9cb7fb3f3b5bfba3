"""Precision rules that every stage shares.

Accumulators, scalars and the arithmetic between them use the *compute dtype*: at least the
default float dtype of JAX (float32, or float64 under ``jax_enable_x64``), complex for complex
leaves. What leaves an optimizer is cast back to the dtype of the gradient that came in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Tree = Any


def default_float() -> jnp.dtype:
    """The dtype of scalars and accumulators: float32, or float64 under x64."""
    return jax.dtypes.canonicalize_dtype(float)


def compute_dtype(x: Any) -> jnp.dtype:
    """The dtype in which the accumulators of leaf ``x`` live and are computed."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.dtype(jnp.complex128 if default_float() == jnp.float64 else jnp.complex64)
    return default_float()


def scalar(x: Any) -> jax.Array:
    """``x`` as a strongly typed scalar of the default float dtype."""
    return lax.convert_element_type(jnp.asarray(x), default_float())


def cast(x: jax.Array, dtype: Any) -> jax.Array:
    """``x`` in a dtype, strongly typed; ``x`` itself where it is that already."""
    if x.dtype == dtype and isinstance(x, jax.Array) and not x.weak_type:
        return x
    return lax.convert_element_type(x, dtype)


def widen(x: jax.Array) -> jax.Array:
    """``x`` in its compute dtype (no operation where it already has it)."""
    return cast(x, compute_dtype(x))


def like(scale: jax.Array, x: jax.Array) -> jax.Array:
    """A real scalar in the dtype of ``x`` (complex where ``x`` is)."""
    return scale if scale.dtype == x.dtype else lax.convert_element_type(scale, x.dtype)


def scaled(scale: jax.Array, x: jax.Array) -> jax.Array:
    """``scale x`` for a real scalar and a leaf.

    Formulas that run once a leaf use this and ``lax.add``: JAX traces them three times as fast as
    the operators, of which each is a jitted function.
    """
    return lax.mul(like(scale, x), x)


def abs_square(x: jax.Array) -> jax.Array:
    """|x|^2, real for complex ``x``."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        real, imag = lax.real(x), lax.imag(x)
        return lax.add(lax.mul(real, real), lax.mul(imag, imag))
    return lax.mul(x, x)


def root(x: jax.Array, power: float = 0.5, offset: jax.Array | None = None) -> jax.Array:
    """``(x + offset)**power`` of x >= 0: never 0, and with a finite derivative.

    The smallest normal number is added, which changes no x above 1e-30 and makes both the division
    by the root and the derivative at 0 finite. Its root, 1e-19 in float32, is the |g| below which
    g^2 underflows, so a direction divided by it is at most 1.
    """
    tiny = jnp.asarray(jnp.finfo(x.dtype).tiny, x.dtype)
    x = lax.add(x, tiny if offset is None else offset + tiny)
    return lax.sqrt(x) if power == 0.5 else power_of(x, lax.full_like(x, power))


def power_of(x: jax.Array, power: jax.Array) -> jax.Array:
    """``x**power`` of x > 0, which XLA vectorises on CPU where it does not its own power."""
    return lax.exp(lax.mul(power, lax.log(x)))


def nonzero(x: jax.Array) -> jax.Array:
    """``x``, with 1 in place of exactly 0: a denominator that is safe to differentiate."""
    return lax.select(lax.eq(x, lax.full_like(x, 0)), lax.full_like(x, 1), x)


def cast_like(tree: Tree, like: Tree) -> Tree:
    """``tree`` with the dtypes of ``like``, leaf by leaf."""
    # A NumPy float64 leaf is float32 to JAX unless x64 is on.
    return jax.tree.map(lambda x, y: cast(x, jax.dtypes.canonicalize_dtype(y.dtype)), tree, like)


def leaf_names(tree: Tree) -> list[str]:
    """Names of the parameters in a tree, in the order of ``jax.tree.leaves``."""
    return [parameter_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def parameter_name(path: tuple[Any, ...]) -> str:
    """A parameter's slash-separated name; the box that Flax NNX puts around an array is no part.

    The box stands in a mapping; an attribute called ``value`` of a module is a name like any other.
    """
    boxed = bool(path) and getattr(path[-1], "name", None) == "value"
    boxed = boxed and (len(path) == 1 or isinstance(path[-2], jax.tree_util.DictKey))
    return leaf_name(path[:-1] if boxed else path)


def is_box(node: Any) -> bool:
    """Whether a node is the box that Flax NNX puts around an array; its optimizer takes it off."""
    return hasattr(node, "get_value") and hasattr(node, "get_metadata")


def unboxed(node: Any) -> Any:
    """The array in a box, or the node itself."""
    return node.get_value() if is_box(node) else node


def without_boxes(tree: Tree) -> Tree:
    """A tree of the arrays themselves.

    For state of another shape than its parameter's, which a box would give the parameter's axis
    names: those of Flax NNX (``out_sharding``) and of Linen (``nn.with_partitioning``).
    """

    def boxed(node: Any) -> bool:
        return is_box(node) or hasattr(node, "replace_boxed")

    def one(node: Any) -> Any:
        return node.unbox(False) if hasattr(node, "replace_boxed") else unboxed(node)

    return jax.tree.map(one, tree, is_leaf=boxed)


def owner_in(path: tuple[Any, ...], owners: Mapping[tuple[Any, ...], Any]) -> int | None:
    """Where in the path of a state's array that of its parameter begins; None if it has none.

    Its parameter is the one with the longest path that the array's path ends with.
    """
    return next((start for start in range(len(path) + 1) if path[start:] in owners), None)


def leaf_name(path: tuple[Any, ...]) -> str:
    """One key path as a slash-separated name, ``dense/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
