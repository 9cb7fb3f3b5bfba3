"""The formats for the arrays of a state, and the choice of a format for each array.

>>> eight_bit().signed.name, eight_bit().unsigned.name
('dynamic8_signed_rows256', 'dynamic8_unsigned_rows256')
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core import masks, numerics
from adamw_jax._core.blocks import ORDERS, Blocks
from adamw_jax._core.checks import one_of, switch, whole_number
from adamw_jax._core.encoded import Codec, Encoded, check_sign
from adamw_jax.storage._block_wise import BlockWise
from adamw_jax.storage._floats import SmallFloat
from adamw_jax.storage._levels import dynamic, linear_without_zero
from adamw_jax.storage._rank_one import RankOne
from adamw_jax.storage._roles import EXACT, NONNEGATIVE, fields_of, role_of
from adamw_jax.storage._roots import Roots
from adamw_jax.storage._shards import check_shards

Tree = Any

MIN_SIZE = 4096
"""Smaller arrays are not encoded (as in bitsandbytes and torchao)."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A storage format: a codec for arrays with a sign, and one for arrays that are never negative.

    Attributes:
      signed: codec of first moments; None for no encoding.
      unsigned: codec of second moments; None for no encoding.
    """

    signed: Codec | None
    unsigned: Codec | None


def eight_bit(
    block_size: int | None = 256, *, order: str = "rows", floor: bool = True, root: bool = False
) -> Format:
    """Store arrays as dynamic 8-bit codes, 1.016 bytes per value; ``storage="8bit"``.

    Args:
      block_size: elements that share a scale; 256 (bitsandbytes since 0.44; the paper has 2048).
        None for one scale per row, which a TPU lays out without copies.
      order: ``"rows"`` for blocks along the last axis, or ``"flat"`` for blocks in C order, as in
        bitsandbytes.
      floor: never round a positive second moment to 0. In bitsandbytes this happens, and single
        steps are then tens to hundreds of learning rates long.
      root: store the roots of second moments.

    Dettmers et al., ICLR 2022, arXiv 2110.02861.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.eight_bit(block_size=128))
    """
    blocks = _blocks(block_size, order)
    switch("floor", floor)
    switch("root", root)
    return Format(
        BlockWise(dynamic(8, signed=True), 8, blocks, signed=True),
        BlockWise(dynamic(8, signed=False), 8, blocks, signed=False, floor=floor, root=root),
    )


def roots(block_size: int | None = 128, *, order: str = "rows") -> Format:
    """Store 8-bit codes of roots, 1.016 bytes per value; ``storage="roots"``.

    First moments by the square root of their magnitude, second moments by the fourth root. Errors
    are smaller than those of ``eight_bit``, and a step is faster. A positive second moment is never
    rounded to 0.

    Args:
      block_size: elements that share a scale of 16 bits; None for a whole row.
      order: as for ``eight_bit``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.roots(block_size=64))
    """
    blocks = _blocks(block_size, order)
    return Format(Roots(blocks, signed=True), Roots(blocks, signed=False))


def four_bit(block_size: int | None = 128, *, order: str = "rows") -> Format:
    """Store arrays as 4-bit codes, 0.53 bytes per value; ``storage="4bit"``.

    First moments have the signed dynamic map in blocks. Second moments have linear levels without a
    zero and scales of rank one (vectors: blocks). Li, Chen & Zhu, NeurIPS 2023, arXiv 2309.01507.

    Args:
      block_size: elements that share a scale; 128 as in the paper, None for a whole row.
      order: as for ``eight_bit``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.four_bit())
    """
    blocks = _blocks(block_size, order)
    return Format(
        BlockWise(dynamic(4, signed=True), 4, blocks, signed=True),
        RankOne(BlockWise(linear_without_zero(4), 4, blocks, signed=False)),
    )


def float8(block_size: int | None = 256, *, order: str = "rows") -> Format:
    """Store e4m3 floats with a scale per block, 1.016 bytes per value; ``storage="float8"``.

    A positive second moment is never rounded to 0.

    Args:
      block_size: elements that share a scale; 256 as for ``eight_bit``, None for a whole row.
      order: as for ``eight_bit``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.float8())
    """
    dtype, blocks = jnp.dtype(jnp.float8_e4m3fn), _blocks(block_size, order)
    return Format(SmallFloat(dtype, blocks), SmallFloat(dtype, blocks, signed=False))


def bfloat16() -> Format:
    """Store arrays in bfloat16, 2 bytes per value; ``storage="bfloat16"``.

    float64 arrays, whose range is wider, have one scale for 256 values.

    It suits first moments. A second moment with a decay rate above 1 - 2^-8 stops changing once
    gradients have become small, because 0.999 v is rounded back to v. Use another format for it, or
    ``quantize_state(..., rounding="stochastic")``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.bfloat16())
    """
    dtype = jnp.dtype(jnp.bfloat16)
    return Format(SmallFloat(dtype), SmallFloat(dtype, signed=False))


def float32() -> Format:
    """Store arrays as they are; ``storage="float32"``.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.float32())
    """
    return Format(None, None)


FORMATS = {
    "8bit": eight_bit,
    "roots": roots,
    "4bit": four_bit,
    "float8": float8,
    "bfloat16": bfloat16,
    "float32": float32,
}
"""The formats by name, as given in ``storage=``."""

StorageLike = Any
"""A name in ``FORMATS``, a ``Format``, a mapping from fields to them, or a ``Choice``."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The choice of a codec for each array of a state.

    Attributes:
      formats: one format for all, or pairs of a field of the state and its format.
      unsigned: fields that are never negative, although their class does not declare it.
      signed: fields that may be negative, although their class declares otherwise.
      min_size: arrays with fewer elements are not encoded.
      exempt: patterns of names of parameters whose state is not encoded.
      sequential: whether a step runs one parameter after the other; None: on CPU.
    """

    formats: Format | tuple[tuple[str, Format], ...]
    unsigned: tuple[str, ...] = ()
    signed: tuple[str, ...] = ()
    min_size: int = MIN_SIZE
    exempt: tuple[str, ...] = ()
    sequential: bool | None = None

    def codec(self, owned: Owned, leaf: Any) -> Codec | None:
        """Return the codec of an array, or None if it is not encoded.

        Args:
          owned: place and role of the array.
          leaf: the array, or its shape and dtype.
        """
        if leaf.size < self.min_size or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return None
        if any(masks.matches(owned.name, pattern) for pattern in self.exempt):
            return None
        if isinstance(form := self.formats, Format):
            if owned.role == EXACT:
                return None
        else:
            named = [form for field in owned.fields for name, form in self.formats if name == field]
            if not named:
                return None
            form = named[-1]
        known = owned.role == NONNEGATIVE or not set(owned.fields).isdisjoint(self.unsigned)
        unsigned = known and set(owned.fields).isdisjoint(self.signed)
        codec = form.unsigned if unsigned else form.signed
        codec = codec.of(leaf.dtype) if isinstance(codec, SmallFloat) else codec
        return codec if codec and _is_smaller(codec, leaf.shape, leaf.dtype) else None

    def check_names(self, state: Tree, params: Tree) -> None:
        """Raise if a name is not a field of ``state``, or a pattern matches no parameter.

        Args:
          state: the state that is to be stored.
          params: its parameters.
        """
        fields = {field for owned in _owned(state, params) for field in owned.fields}
        named = [] if isinstance(self.formats, Format) else [name for name, _ in self.formats]
        own: dict[str, Sequence[str]] = {
            "storage": named,
            "unsigned": self.unsigned,
            "signed": self.signed,
        }
        for argument, name in ((argument, x) for argument, names in own.items() for x in names):
            if name not in fields and fields:  # no fields without parameters
                raise ValueError(
                    f"{argument} names the field {name!r}, which the state does not have; it has "
                    f"{sorted(fields)}."
                )
        names = numerics.leaf_names(params)
        for pattern in self.exempt:
            if not any(masks.matches(name, pattern) for name in names):
                raise ValueError(f"exempt has {pattern!r}, which matches none of {names}.")


def choose(
    storage: StorageLike,
    *,
    unsigned: str | tuple[str, ...] = (),
    signed: str | tuple[str, ...] = (),
    min_size: int = MIN_SIZE,
    exempt: str | tuple[str, ...] = (),
    sequential: bool | None = None,
) -> Choice:
    """Make a storage with options, for ``storage=`` of an optimizer or a part.

    Args:
      storage: the name of a format, a format, or a mapping from fields of the state to them.
      unsigned: fields that are never negative, although their class does not declare it.
      signed: fields that may be negative, although their class declares otherwise.
      min_size: arrays with fewer elements are not encoded.
      exempt: patterns of names of parameters whose state is not encoded.
      sequential: whether a step runs one parameter after the other, which limits its scratch to
        that of the largest. None: on CPU (XLA for a GPU does so by itself), except in meshes with
        explicit axes that shard an array.

    Raises:
      ValueError: ``storage`` is the result of ``choose``, and further options are given.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adamw(1e-3, storage=aj.storage.choose("8bit", exempt="embedding"))
    """
    if isinstance(storage, Choice):
        if (unsigned, signed, min_size, exempt, sequential) != ((), (), MIN_SIZE, (), None):
            raise ValueError(
                "storage is a result of choose(), with its own options: give unsigned, signed, "
                f"min_size, exempt and sequential to choose(), got {unsigned!r}, {signed!r}, "
                f"{min_size!r}, {exempt!r} and {sequential!r} in addition to it."
            )
        return storage
    if sequential is not None:
        switch("sequential", sequential)
    if both := set(_words(unsigned)) & set(_words(signed)):
        raise ValueError(f"unsigned and signed both name {sorted(both)}: leave it out of one.")
    if isinstance(storage, Mapping):
        formats: Any = tuple((field, _format(form)) for field, form in storage.items())
    else:
        formats = _format(storage)
    return Choice(
        formats,
        _words(unsigned),
        _words(signed),
        whole_number("min_size", min_size),
        _words(exempt),
        sequential,
    )


def encode_state(state: Tree, params: Tree, choice: Choice) -> Tree:
    """Encode the chosen arrays of a state.

    Only arrays that belong to a parameter are encoded: the path of the array ends with the path of
    the parameter, and both have the same shape.

    Args:
      state: a state of any transformation.
      params: the parameters of the state.
      choice: a result of ``choose``.

    Raises:
      ValueError: an array is known to be sharded within blocks, or has an unexpected sign.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((128, 64))}
      >>> plain = aj.adamw(1e-3).init(params)
      >>> small = aj.storage.encode_state(plain, params, aj.storage.choose("8bit"))
    """
    leaves, structure = jax.tree.flatten(state, is_leaf=_is_whole)
    for owned in _owned(state, params):
        array = numerics.unboxed(leaves[owned.place])
        if getattr(array, "shape", None) != jnp.shape(numerics.unboxed(owned.param)):
            continue  # factors, scalars, and arrays that are encoded already
        codec = choice.codec(owned, array)
        if codec is not None:
            check_shards(owned.name, array, codec)
            field = owned.fields[-1] if owned.fields else "the state"
            check_sign(f"{field} of {owned.name!r}", array, codec)
            leaves[owned.place] = codec.encode(array)
    return jax.tree.unflatten(structure, leaves)


class Owned(NamedTuple):
    """A leaf of a state that belongs to a parameter.

    Attributes:
      place: its index among the leaves of the state.
      param: the parameter.
      name: the name of the parameter.
      fields: the fields on its path (``_roles.fields_of``).
      role: its role (``_roles.role_of``).
    """

    place: int
    param: Any
    name: str
    fields: tuple[str, ...]
    role: str


def _owned(state: Tree, params: Tree) -> Iterator[Owned]:
    owners = dict(jax.tree_util.tree_leaves_with_path(params, is_leaf=numerics.is_box))
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=_is_whole)
    starts = numerics.owners_in([path for path, _ in leaves], owners)
    for place, ((path, _), start) in enumerate(zip(leaves, starts, strict=True)):
        if start is not None:
            rest = path[start:]
            name = numerics.leaf_name(rest)
            way = path[:start]
            yield Owned(place, owners[rest], name, fields_of(state, way), role_of(state, way))


def _is_whole(node: Any) -> bool:
    return isinstance(node, Encoded) or numerics.is_box(node)


@functools.cache
def _is_smaller(codec: Codec, shape: tuple[int, ...], dtype: Any) -> bool:
    """Return whether codes are smaller than the array; not if the last axis is very short."""
    stored = jax.tree.leaves(jax.eval_shape(codec.encode, jax.ShapeDtypeStruct(shape, dtype)))
    size = sum(x.size * x.dtype.itemsize for x in stored)
    return size < math.prod(shape) * dtype.itemsize


def _words(words: str | tuple[str, ...]) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)


def _format(form: Any) -> Format:
    if isinstance(form, Format):
        return form
    if isinstance(form, str):
        one_of("storage", form, tuple(FORMATS))
        return FORMATS[form]()
    raise TypeError(
        f"storage must be one of {tuple(FORMATS)}, a format such as eight_bit(block_size=128), or "
        f"a mapping from field names of the state to them, got {form!r}."
    )


def _blocks(size: int | None, order: str) -> Blocks:
    one_of("order", order, ORDERS)
    return Blocks(None if size is None else whole_number("block_size", size), order)
