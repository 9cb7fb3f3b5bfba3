"""Which arrays of a state are stored how.

>>> eight_bit().signed.name, eight_bit().unsigned.name
('dynamic8_signed_rows256', 'dynamic8_unsigned_rows256')
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax import masks, numerics
from adamw_jax.checks import one_of, switch, whole_number
from adamw_jax.storage.block_wise import BlockWise
from adamw_jax.storage.blocks import ORDERS, Blocks
from adamw_jax.storage.encoded import Codec, Encoded
from adamw_jax.storage.floats import SmallFloat
from adamw_jax.storage.levels import dynamic, linear_without_zero
from adamw_jax.storage.rank_one import RankOne

Tree = Any

UNSIGNED = ("second", "maximum", "nu", "nu_max", "sum_of_squares", "e_g", "e_x")
"""Fields of the states of this library and of optax that are never negative."""

MIN_SIZE = 4096
"""Smaller arrays stay as they are (bitsandbytes, torchao)."""


@dataclasses.dataclass(frozen=True)
class Format:
    """How arrays are stored: a codec for those of either sign, and one for those never negative.

    Attributes:
      signed: codec of first moments; None leaves them as they are.
      unsigned: codec of second moments; None leaves them as they are.
    """

    signed: Codec | None
    unsigned: Codec | None


def eight_bit(
    block_size: int | None = 256, *, order: str = "rows", floor: bool = True, root: bool = False
) -> Format:
    """Dynamic 8-bit codes, 1.016 bytes a value: ``storage="8bit"``.

    Args:
      block_size: elements that share a scale; 256 (bitsandbytes since 0.44; the paper has 2048).
        None for one scale a row, which a TPU lays out without copies.
      order: ``"rows"``, or ``"flat"`` for the blocks of bitsandbytes (``Blocks``).
      floor: keep positive second moments from becoming 0; bitsandbytes lets them, and then steps
        are up to 31 times too long.
      root: store the roots of second moments.

    Dettmers et al., ICLR 2022, arXiv 2110.02861.
    """
    blocks = _blocks(block_size, order)
    switch("floor", floor)
    switch("root", root)
    return Format(
        BlockWise(dynamic(8, signed=True), 8, blocks, signed=True),
        BlockWise(dynamic(8, signed=False), 8, blocks, signed=False, floor=floor, root=root),
    )


def four_bit(block_size: int | None = 128, *, order: str = "rows") -> Format:
    """4-bit codes, 0.53 bytes a value: ``storage="4bit"``.

    First moments by the signed dynamic map in blocks; second moments linearly without a zero, under
    scales of rank one (vectors in blocks). Li, Chen & Zhu, NeurIPS 2023, arXiv 2309.01507.

    Args:
      block_size: elements that share a scale; 128 (paper), None for a whole row.
      order: ``"rows"`` or ``"flat"``.
    """
    blocks = _blocks(block_size, order)
    return Format(
        BlockWise(dynamic(4, signed=True), 4, blocks, signed=True),
        RankOne(BlockWise(linear_without_zero(4), 4, blocks, signed=False)),
    )


def float8(block_size: int | None = 256, *, order: str = "rows") -> Format:
    """e4m3 floats under one scale a block, 1.016 bytes a value: ``storage="float8"``.

    Positive second moments do not become 0, as for ``eight_bit``.
    """
    dtype, blocks = jnp.dtype(jnp.float8_e4m3fn), _blocks(block_size, order)
    return Format(SmallFloat(dtype, blocks), SmallFloat(dtype, blocks, floor=True))


def bfloat16() -> Format:
    """bfloat16, 2 bytes a value: ``storage="bfloat16"``."""
    codec = SmallFloat(jnp.dtype(jnp.bfloat16))
    return Format(codec, codec)


def float32() -> Format:
    """Arrays as they are: ``storage="float32"``."""
    return Format(None, None)


FORMATS = {
    "8bit": eight_bit,
    "4bit": four_bit,
    "float8": float8,
    "bfloat16": bfloat16,
    "float32": float32,
}
"""What a word given as ``storage`` means."""

StorageLike = Any
"""A word of ``FORMATS``, a ``Format``, or a mapping from field names of the state to them."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which array of a state gets which codec.

    Attributes:
      formats: one for all, or one for each field of the state that is named.
      unsigned: fields whose arrays are never negative.
      min_size: arrays with fewer elements stay as they are.
      exempt: patterns on names of parameters whose state stays as it is.
    """

    formats: Format | Mapping[str, Format]
    unsigned: tuple[str, ...] = UNSIGNED
    min_size: int = MIN_SIZE
    exempt: tuple[str, ...] = ()

    def codec(self, fields: tuple[str, ...], name: str, leaf: Any) -> Codec | None:
        """The codec of an array under ``fields`` that belongs to the parameter ``name``."""
        if leaf.size < self.min_size or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return None
        if any(masks.matches(name, pattern) for pattern in self.exempt):
            return None
        form = self.formats
        if not isinstance(form, Format):
            named = [form[field] for field in fields if field in form]
            if not named:
                return None
            form = named[-1]
        never_negative = any(field in self.unsigned for field in fields)
        return form.unsigned if never_negative else form.signed


def choose(
    storage: StorageLike,
    *,
    unsigned: tuple[str, ...] = UNSIGNED,
    min_size: int = MIN_SIZE,
    exempt: str | tuple[str, ...] = (),
) -> Choice:
    """``storage`` as a user gives it, checked."""
    if isinstance(storage, Mapping):
        formats: Any = {field: _format(form) for field, form in storage.items()}
    else:
        formats = _format(storage)
    patterns = (exempt,) if isinstance(exempt, str) else tuple(exempt)
    return Choice(formats, tuple(unsigned), whole_number("min_size", min_size), patterns)


def encode_state(state: Tree, params: Tree, choice: Choice) -> Tree:
    """``state`` with the arrays that belong to parameters, and are chosen, encoded.

    An array belongs to the parameter whose path its own path ends with, if it has its shape.
    """
    owners = dict(jax.tree_util.tree_leaves_with_path(params, is_leaf=numerics.is_box))

    def leaf(path: tuple[Any, ...], x: Any) -> Any:
        array = numerics.unboxed(x)
        if isinstance(x, Encoded) or not hasattr(array, "shape"):
            return x
        for start in range(len(path) + 1):
            owner = owners.get(path[start:])
            if owner is not None and jnp.shape(numerics.unboxed(owner)) == array.shape:
                fields = tuple(numerics.leaf_name((key,)) for key in path[:start])
                codec = choice.codec(fields, numerics.parameter_name(path[start:]), array)
                return x if codec is None else codec.encode(array)
        return x

    return jax.tree_util.tree_map_with_path(
        leaf, state, is_leaf=lambda x: isinstance(x, Encoded) or numerics.is_box(x)
    )


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
