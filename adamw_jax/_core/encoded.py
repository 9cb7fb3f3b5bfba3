"""An array of a state as it is stored: codes, scales, and the layout that tells what they mean.

The names of its two children in a tree carry the layout, so that every checkpoint records it and
one written with another block size or map is refused where it is restored.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax.storage import eight_bit
>>> stored = eight_bit().signed.encode(jnp.linspace(-1.0, 1.0, 512))
>>> [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(stored)]
['.dynamic8_signed_rows256_v1_codes', '.dynamic8_signed_rows256_v1_scales']
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from adamw_jax._core.blocks import Blocks
from adamw_jax._core.numerics import leaf_name

Tree = Any
Noise = Callable[[int, jax.Array], jax.Array]
"""By the number of an array in the state and itself, uniform numbers that round it by chance."""

VERSION = 1
"""Of the meaning of codes; a change of it makes older checkpoints unreadable, by name."""


class Codec(Protocol):
    """A pure pair of functions between arrays and what is stored of them."""

    @property
    def name(self) -> str:
        """Map and blocks, in a few characters."""
        ...

    @property
    def signed(self) -> bool:
        """Whether values may be negative."""
        ...

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """What is stored of ``x``; uniform ``noise`` in [0, 1) rounds stochastically."""
        ...

    def decode(self, stored: Encoded) -> jax.Array:
        """The array again, in the dtype that it had."""
        ...

    def pieces(self, axes: int) -> tuple[Blocks, int]:
        """What one device holds whole, of an array with so many axes: blocks, codes to a byte."""
        ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the codes of an array mean.

    Attributes:
      codec: the functions that wrote them.
      shape: of the array where it was made: without axes that ``vmap`` adds, and of the whole array
        inside ``shard_map``.
      dtype: of the array.
    """

    codec: Codec
    shape: tuple[int, ...]
    dtype: Any

    @property
    def name(self) -> str:
        """What a checkpoint calls it."""
        return f"{self.codec.name}_v{VERSION}"


class Encoded:
    """An encoded array: a node of the state in the place of the array.

    Each layout has a named tuple of its own, whose two fields it names: what takes named tuples,
    pytrees and serializers alike, takes this, and gives a node of the same layout back.

    Attributes:
      codes: of the array's shape, or with the last axis halved where two codes share a byte.
      scales: what the levels are multiplied by: an array, a tuple of arrays, or None.
      layout: static.
    """

    __slots__ = ()
    layout: ClassVar[Layout]

    @property
    def codes(self) -> jax.Array:
        """The first field."""
        return cast(Any, self)[0]

    @property
    def scales(self) -> Any:
        """The second field."""
        return cast(Any, self)[1]

    def decode(self) -> jax.Array:
        """The array."""
        whole, codes = self.layout.shape, self.codes.shape
        if len(codes) == len(whole) and codes[:-1] != whole[:-1]:
            self._check_shard((*codes[:-1], *whole[-1:]))
        return self.layout.codec.decode(self)

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """Another array in this layout.

        Args:
          x: of the layout's shape.
          noise: uniform numbers in [0, 1) that round it by chance; None for the nearest level.
        """
        self._check_shard(x.shape)
        made = self.layout.codec.encode(lax.convert_element_type(x, self.layout.dtype), noise)
        return encoded(made.codes, made.scales, self.layout)

    def _check_shard(self, shape: tuple[int, ...]) -> None:
        """Raises for a shard inside ``shard_map`` whose scales other devices would have to know."""
        whole = self.layout.shape
        if shape == whole:
            return
        blocks, step = self.layout.codec.pieces(len(whole))
        cut = blocks.size is None and shape[-1:] != whole[-1:]
        cut = cut or blocks.order == "flat" or isinstance(self.scales, tuple)  # scales of rank one
        if cut or not blocks.are_whole(whole, shape, step):
            raise ValueError(
                f"an array of shape {whole} is stored as {self.layout.name}, and a jax.shard_map "
                f"gives a shard of shape {shape} to this update, which would need scales of other "
                "devices: call the update outside, on the sharded arrays, or give blocks by rows "
                "that shards hold whole, such as storage=eight_bit(block_size=64)."
            )

    def __reduce__(self) -> Any:
        return encoded, (self.codes, self.scales, self.layout)


def encoded(codes: Any, scales: Any, layout: Layout) -> Encoded:
    """A node of a layout.

    Args:
      codes: of the array.
      scales: of its blocks or axes.
      layout: what they mean.
    """
    with _ONE_AT_A_TIME:  # two threads must not make two types of one layout
        kind = _kind(layout)
    return kind(codes, scales)


_ONE_AT_A_TIME = threading.Lock()


@functools.cache
def _kind(layout: Layout) -> Any:
    """The named tuple of a layout."""
    fields = collections.namedtuple("Encoded", (f"{layout.name}_codes", f"{layout.name}_scales"))
    return type("Encoded", (Encoded, fields), {"layout": layout, "__slots__": ()})


def is_encoded(node: Any) -> bool:
    """Whether something is an encoded array, for ``is_leaf``.

    Args:
      node: of a state.
    """
    return isinstance(node, Encoded)


def encode_like(stored: Tree, state: Tree, noise: Noise | None = None) -> Tree:
    """``state`` with those arrays encoded that are encoded in ``stored``, a state of its structure.

    Args:
      stored: tells what is encoded, and how.
      state: what is encoded in it already stays as it is.
      noise: what rounds it by chance; None for the nearest level.
    """
    nodes, structure = jax.tree_util.tree_flatten_with_path(stored, is_leaf=is_encoded)
    leaves = structure.flatten_up_to(state)
    for number, (path, node) in enumerate(nodes):
        if is_encoded(node) and not is_encoded(leaves[number]):
            check_sign(jax.tree_util.keystr(path), leaves[number], node.layout.codec)
            leaves[number] = encoded_as(node, leaves[number], number, noise)
    return jax.tree.unflatten(structure, leaves)


def check_sign(name: str, x: Any, codec: Codec) -> None:
    """Raises where an array is seen to be negative and would lose its sign; a traced one is not.

    Args:
      name: of the array, for the error.
      x: what is to be stored.
      codec: by which.
    """
    if codec.signed or isinstance(x, Tracer) or not x.size:
        return
    with jax.ensure_compile_time_eval():  # also of a constant of a traced function
        least, most = float(jnp.nanmin(x)), float(jnp.nanmax(x))
    if least < -1e-6 * abs(most):  # rounding may make a zero a little negative
        raise ValueError(
            f"{name} has the negative value {least:.3g}, and its class says that it never has, so "
            "that it would be stored as 0: name its field in signed=, or correct the class."
        )


def encoded_as(stored: Encoded, x: jax.Array, number: int, noise: Noise | None) -> Encoded:
    """``x``, the array of this number in a state, in the layout of ``stored``."""
    return stored.encode(x, None if noise is None else noise(number, x))


def decode_state(state: Tree) -> Tree:
    """A state with arrays in the place of everything encoded, as it would be in full precision.

    Args:
      state: of any transformation; without anything encoded it stays as it is.
    """
    return jax.tree.map(lambda x: x.decode() if is_encoded(x) else x, state, is_leaf=is_encoded)


def encoded_like_names(plain: Tree, target: Tree) -> Tree:
    """Rebuilds the encoded arrays of a state that was restored without its types.

    Such a state has a mapping in the place of every named tuple, also of an encoded array, whose
    two entries bear the name of its layout. The layout itself comes from ``target``: of the nodes
    with this name and shape there, the one whose path has the most in common.

    Args:
      plain: mappings, lists and arrays, as Orbax restores without a target, or
        ``flax.serialization.to_state_dict`` gives.
      target: a state of the storage that wrote it, such as ``tx.init(params)`` or its shapes.

    Returns:
      ``plain`` with ``Encoded`` nodes; everything else in it stays as it is.

    Raises:
      ValueError: ``target`` has no array of a layout and shape that ``plain`` has.
    """
    leaves = jax.tree_util.tree_leaves_with_path(target, is_leaf=is_encoded)
    known = [([leaf_name((k,)) for k in path], x) for path, x in leaves if is_encoded(x)]

    def rebuilt(node: Any, way: list[str]) -> Any:
        if isinstance(node, Mapping):
            if node and all(re.search(r"_v\d+_(codes|scales)$", str(name)) for name in node):
                return _named(node, way, known)
            return {key: rebuilt(child, [*way, str(key)]) for key, child in node.items()}
        if isinstance(node, list | tuple) and not is_encoded(node):
            children = [rebuilt(child, [*way, str(i)]) for i, child in enumerate(node)]
            return type(node)(*children) if hasattr(node, "_fields") else type(node)(children)
        return node

    return rebuilt(plain, [])


def _named(
    stored: Mapping[str, Any], way: list[str], known: list[tuple[list[str], Any]]
) -> Encoded:
    """The node of arrays by their names, at a place of the state."""
    arrays = {name.rpartition("_")[2]: array for name, array in stored.items()}
    layout = next(iter(stored)).rpartition("_")[0]
    codes, scales = arrays["codes"], arrays.get("scales")
    if isinstance(scales, Mapping):
        scales = [scales[key] for key in sorted(scales, key=int)]
    scales = tuple(scales) if isinstance(scales, list) else scales
    alike = [
        (path, x)
        for path, x in known
        if x.layout.name == layout and jnp.shape(x.codes) == jnp.shape(codes)
    ]
    if not alike:
        names = sorted({f"{x.layout.name} of {jnp.shape(x.codes)}" for _, x in known})
        raise ValueError(
            f"{'/'.join(way)} holds codes {layout} of {jnp.shape(codes)}, and target has {names}: "
            "make it with the storage= that wrote the checkpoint."
        )

    def common(path: list[str]) -> int:
        pairs = zip(reversed(path), reversed(way), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(path), len(way)))

    return encoded(codes, scales, max(alike, key=lambda found: common(found[0]))[1].layout)
