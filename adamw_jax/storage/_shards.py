"""Blocks do not cross devices: a shard whose last axis holds no whole blocks is refused.

Such an array would be encoded all the same, but its codes would end on every device, silently.

>>> fitting_size(columns=384, size=256, codes_to_a_byte=1)
128
>>> fitting_size(columns=195, size=256, codes_to_a_byte=1)
195
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
from jax.core import Tracer

from adamw_jax._core.encoded import Codec

_PLACED: ContextVar[Mapping[str, Any]] = ContextVar("_PLACED", default={})  # noqa: B039

SMALL = 16
"""A common divisor under this would spend more on scales than a divisor of the columns alone."""


def check_shards(name: str, x: Any, codec: Codec) -> None:
    """Raises where the array of the parameter ``name`` is known to be cut within blocks."""
    shape, sharding = x.shape, sharding_of(name, x)
    if sharding is None or not any(getattr(sharding, "spec", (True,))):  # as inside shard_map
        return
    shard = tuple(sharding.shard_shape(shape))
    blocks, codes_to_a_byte = codec.pieces(len(shape))
    if shard == shape or blocks.are_whole(shape, shard, codes_to_a_byte):
        return
    other = f"shard another axis, or leave the parameter as it is with exempt={name!r}."
    if blocks.order == "flat":
        raise ValueError(
            f"{name!r} of shape {shape} is sharded into pieces of {shard}, which are no whole "
            "blocks in C order (order='flat'), so that blocks would cross devices: give "
            f"order='rows', {other}"
        )
    size = blocks.size or 1
    fitting = fitting_size(shard[-1], size, codes_to_a_byte)
    if size == 1 or fitting is None:
        raise ValueError(
            f"{name!r} of shape {shape} is sharded into pieces of {shard[-1]} columns, and two "
            f"codes of 4 bits that share a byte would be on two devices: give it 8 bits, {other}"
        )
    made_by = "float8" if codec.name.startswith("float8") else "eight_bit"
    made_by = "four_bit" if codes_to_a_byte == 2 else made_by
    raise ValueError(
        f"{name!r} of shape {shape} is sharded into pieces of {shard[-1]} columns, which are no "
        f"whole blocks of {size}, so that blocks would cross devices: give block_size={fitting}, "
        f"as in storage={made_by}(block_size={fitting}), {other}"
    )


def fitting_size(columns: int, size: int, codes_to_a_byte: int) -> int | None:
    """The size of blocks, at most ``size``, that a shard of so many columns holds whole."""
    common = math.gcd(columns, size)  # a divisor of ``size`` fits other parameters, too
    if common >= SMALL and common % codes_to_a_byte == 0:
        return common
    sizes = range(codes_to_a_byte, size + 1, codes_to_a_byte)
    return max((n for n in sizes if columns % n == 0), default=None)


@contextlib.contextmanager
def placed(shardings: Mapping[str, Any]) -> Iterator[None]:
    """Makes the shardings of parameters known to an ``init`` that is traced inside.

    Args:
      shardings: by the name of the parameter.
    """
    token = _PLACED.set(shardings)
    try:
        yield
    finally:
        _PLACED.reset(token)


def sharding_of(name: str, x: Any) -> Any:
    """How the array of a parameter lies, as far as anybody knows, or None.

    The sharding of an array is known, that of a traced one inside ``placed`` and along axes of
    explicit meshes.

    Args:
      name: of the parameter.
      x: its array.
    """
    if name in (known := _PLACED.get()):
        return known[name]
    return jax.typeof(x).sharding if isinstance(x, Tracer) else getattr(x, "sharding", None)
