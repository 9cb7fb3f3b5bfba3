"""An encoded array of a state: codes, scales, and the layout that gives them their meaning.

The names of its two children in a tree contain the layout. So every checkpoint records it, and a
checkpoint with another block size or map is refused on restore.

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
from adamw_jax._core.sequential import on_cpu

Tree = Any
Noise = Callable[[int, jax.Array], jax.Array]
"""``(number of an array in the state, array) -> uniform numbers`` for stochastic rounding."""

VERSION = 1
"""Version of the codes, part of the name; a new one makes older checkpoints unreadable."""


class Codec(Protocol):
    """A pair of pure functions that encode and decode arrays."""

    @property
    def name(self) -> str:
        """Map and blocks, in a few characters."""
        ...

    @property
    def signed(self) -> bool:
        """Whether values may be negative."""
        ...

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """Encode ``x``; uniform ``noise`` in [0, 1) rounds stochastically."""
        ...

    def decode(self, stored: Encoded) -> jax.Array:
        """Return the array in its original dtype."""
        ...

    def peaks(self, stored: Encoded) -> list[jax.Array]:
        """Return arrays whose elements bound the magnitudes of all elements."""
        ...

    def pieces(self, axes: int) -> tuple[Blocks, int]:
        """Return blocks and codes per byte, which devices cannot split, for so many axes."""
        ...


@dataclasses.dataclass(frozen=True)
class Layout:
    """The meaning of the codes of an array.

    Attributes:
      codec: the functions that wrote them.
      shape: the shape of the array, without axes that ``vmap`` adds; inside ``shard_map`` that of
        the whole array.
      dtype: the dtype of the array.
    """

    codec: Codec
    shape: tuple[int, ...]
    dtype: Any

    @property
    def name(self) -> str:
        """The name in checkpoints."""
        return f"{self.codec.name}_v{VERSION}"


class Encoded:
    """An encoded array: a node of the state in place of the array.

    Each layout has its own named tuple type, with the layout in the names of its two fields. So all
    functions and serializers that accept named tuples accept it, and keep the layout.

    Attributes:
      codes: the codes, in the shape of the array; if two share a byte, the last axis is halved.
      scales: factors on the levels: an array, a tuple of arrays, or None.
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
        """Return the array."""
        whole, codes = self.layout.shape, self.codes.shape
        if len(codes) == len(whole) and codes[:-1] != whole[:-1]:
            self._check_shard((*codes[:-1], *whole[-1:]))
        if self.layout.dtype != jnp.float64 or jax.config.read("jax_enable_x64"):
            return self.layout.codec.decode(self)
        with jax.enable_x64(True):  # its scales may be out of the range of float32
            return self.layout.codec.decode(self)

    def peaks(self) -> list[jax.Array]:
        """Return the largest magnitudes of its parts, infinite where infinity may be stored.

        Codecs store an infinite second moment as (nearly) the largest number of the dtype.
        """

        def marked(x: jax.Array) -> jax.Array:
            limit = lax.full_like(x, 0.99 * float(jnp.finfo(x.dtype).max))
            return lax.select(lax.ge(x, limit), lax.full_like(x, jnp.inf), x)

        return list(map(marked, self.layout.codec.peaks(self)))

    def encode(self, x: jax.Array, noise: jax.Array | None = None, scales: Any = None) -> Encoded:
        """Encode another array in this layout.

        Args:
          x: an array of the shape of the layout.
          noise: uniform numbers in [0, 1) for stochastic rounding; None for the nearest level.
          scales: the result of ``scales_of``, or None.
        """
        self._check_shard(x.shape)
        codec, x = self.layout.codec, lax.convert_element_type(x, self.layout.dtype)
        by = None if scales is None else cast(Any, codec).encode_by
        made = codec.encode(x, noise) if by is None else by(x, scales, noise)
        return encoded(made.codes, made.scales, self.layout)

    def scales_of(self, x: jax.Array) -> Any:
        """Return the scales of another array, or None if its codec does not give them apart.

        Args:
          x: an array of the shape of the layout.
        """
        if not hasattr(self.layout.codec, "scales_of"):
            return None
        self._check_shard(x.shape)
        return cast(Any, self.layout.codec).scales_of(
            lax.convert_element_type(x, self.layout.dtype)
        )

    def _check_shard(self, shape: tuple[int, ...]) -> None:
        """Raise for a shard inside ``shard_map`` if its scales depend on other devices."""
        whole = self.layout.shape
        if shape == whole:
            return
        blocks, step = self.layout.codec.pieces(len(whole))
        cut = blocks.size is None and shape[-1:] != whole[-1:]
        cut = cut or blocks.order == "flat" or isinstance(self.scales, tuple)  # scales of rank one
        if cut or not blocks.are_whole(whole, shape, step):
            raise ValueError(
                f"an array of shape {whole} is stored as {self.layout.name}, and this update got a "
                f"shard of shape {shape} inside jax.shard_map, which would need scales of other "
                "devices: call the update outside, on the sharded arrays, or choose blocks by rows "
                "so that each shard holds whole blocks, as in storage=eight_bit(block_size=64)."
            )

    def __reduce__(self) -> Any:
        return encoded, (self.codes, self.scales, self.layout)


def encoded(codes: Any, scales: Any, layout: Layout) -> Encoded:
    """Make a node of a layout.

    Args:
      codes: the codes of the array.
      scales: the scales of its blocks or axes.
      layout: their meaning.
    """
    with _ONE_AT_A_TIME:  # two threads must not make two types for one layout
        kind = _kind(layout)
    return kind(codes, scales)


_ONE_AT_A_TIME = threading.Lock()


@functools.cache
def _kind(layout: Layout) -> Any:
    """Make the named tuple type of a layout."""
    fields = collections.namedtuple("Encoded", (f"{layout.name}_codes", f"{layout.name}_scales"))
    return type("Encoded", (Encoded, fields), {"layout": layout, "__slots__": ()})


def is_encoded(node: Any) -> bool:
    """Return whether a node is an encoded array, for ``is_leaf``.

    Args:
      node: a node of a state.

    Example:
      >>> import jax, jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((128, 64))}
      >>> small = aj.adamw(1e-3, storage="8bit").init(params)
      >>> any(map(aj.storage.is_encoded, jax.tree.leaves(small, is_leaf=aj.storage.is_encoded)))
      True
    """
    return isinstance(node, Encoded)


def encode_like(stored: Tree, state: Tree, noise: Noise | None = None) -> Tree:
    """Encode those arrays of ``state`` that are encoded in ``stored``, in the same layouts.

    Args:
      stored: a state of the same structure.
      state: the state to encode; nodes that are encoded already do not change.
      noise: the noise for stochastic rounding; None for the nearest level.
    """
    nodes, structure = jax.tree_util.tree_flatten_with_path(stored, is_leaf=is_encoded)
    leaves = structure.flatten_up_to(state)
    made = {
        number: (path, node)
        for number, (path, node) in enumerate(nodes)
        if is_encoded(node) and not is_encoded(leaves[number])
    }
    for number, (path, node) in made.items():
        check_sign(jax.tree_util.keystr(path), leaves[number], node.layout.codec)
    scales = dict.fromkeys(made)
    if not on_cpu():  # all scales, then all codes: a GPU then reads the gradients only twice
        scales = {number: node.scales_of(leaves[number]) for number, (_, node) in made.items()}
        scales = lax.optimization_barrier(scales)
    for number, (_, node) in made.items():
        leaves[number] = encoded_as(node, leaves[number], number, noise, scales[number])
    return jax.tree.unflatten(structure, leaves)


def check_sign(name: str, x: Any, codec: Codec) -> None:
    """Raise if an array has negative values that its codec cannot store; ignore traced arrays.

    Args:
      name: name of the array, for the error.
      x: the array to be encoded.
      codec: its codec.
    """
    if codec.signed or isinstance(x, Tracer) or not x.size:
        return
    with jax.ensure_compile_time_eval():  # also of a constant of a traced function
        least, most = float(jnp.nanmin(x)), float(jnp.nanmax(x))
    if least < -1e-6 * abs(most):  # rounding may make a zero a little negative
        raise ValueError(
            f"{name} has the negative value {least:.3g}, but is declared nonnegative, so it would "
            "be stored as 0: name its field in signed=, or correct the class of its state."
        )


def encoded_as(
    stored: Encoded, x: jax.Array, number: int, noise: Noise | None, scales: Any = None
) -> Encoded:
    """Encode ``x``, the array of this number in a state, in the layout of ``stored``."""
    return stored.encode(x, None if noise is None else noise(number, x), scales)


def decode_state(state: Tree) -> Tree:
    """Decode all encoded arrays of a state.

    Args:
      state: a state of any transformation; arrays that are not encoded do not change.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((128, 64))}
      >>> small = aj.adamw(1e-3, storage="8bit").init(params)
      >>> plain = aj.storage.decode_state(small)
    """
    return jax.tree.map(lambda x: x.decode() if is_encoded(x) else x, state, is_leaf=is_encoded)


def encoded_like_names(plain: Tree, target: Tree) -> Tree:
    """Rebuild the encoded arrays of a state that was restored without its types.

    In such a state every named tuple has become a mapping. The keys of an encoded array contain the
    name of its layout. The layout is taken from the node of ``target`` with this name and shape; if
    there are several, from the one with the most similar path.

    Args:
      plain: mappings, lists and arrays, such as the result of Orbax without a target or of
        ``flax.serialization.to_state_dict``.
      target: a state with the same ``storage``, such as ``tx.init(params)``, or its shapes.

    Returns:
      ``plain`` with ``Encoded`` nodes; everything else in it stays as it is.

    Raises:
      ValueError: ``target`` has no array with a layout and shape that ``plain`` has.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((128, 64))}
      >>> plain = aj.adamw(1e-3).init(params)
      >>> small = aj.storage.encoded_like_names(plain, aj.adamw(1e-3, storage="8bit").init(params))
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
    """Make the node from a mapping of its arrays, for one place of the state."""
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
            f"{'/'.join(way)} holds codes {layout} of {jnp.shape(codes)}, but target has {names}: "
            "make target with the storage= that wrote the checkpoint."
        )

    def common(path: list[str]) -> int:
        pairs = zip(reversed(path), reversed(way), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(path), len(way)))

    return encoded(codes, scales, max(alike, key=lambda found: common(found[0]))[1].layout)
