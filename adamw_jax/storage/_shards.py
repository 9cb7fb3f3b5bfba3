"""Refuse arrays with shards that do not hold whole blocks.

Otherwise the codes of such an array would end on every device, without an error.

>>> fitting_size(columns=384, size=256, codes_per_byte=1)
128
>>> fitting_size(columns=195, size=256, codes_per_byte=1)
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
"""Below this a common divisor needs more scales than a divisor of the columns alone."""


def check_shards(name: str, x: Any, codec: Codec) -> None:
    """Raise if the array of the parameter ``name`` is known to be sharded within blocks."""
    shape, sharding = x.shape, sharding_of(name, x)
    if sharding is None or not any(getattr(sharding, "spec", (True,))):  # as inside shard_map
        return
    shard = tuple(sharding.shard_shape(shape))
    blocks, codes_per_byte = codec.pieces(len(shape))
    if shard == shape or blocks.are_whole(shape, shard, codes_per_byte):
        return
    other = f"shard another axis, or do not encode it, with exempt={name!r}."
    if blocks.order == "flat":
        raise ValueError(
            f"{name!r} of shape {shape} is sharded into pieces of {shard}, which are not whole "
            "blocks in C order (order='flat'), so blocks would cross devices: give order='rows', "
            f"{other}"
        )
    size = blocks.size or 1
    fitting = fitting_size(shard[-1], size, codes_per_byte)
    if size == 1 or fitting is None:
        raise ValueError(
            f"{name!r} of shape {shape} is sharded into pieces of {shard[-1]} columns, and two "
            f"4-bit codes that share a byte would be on two devices: give it 8 bits, {other}"
        )
    made_by = "four_bit" if codes_per_byte == 2 else "eight_bit"
    made_by = next((word for word in ("float8", "roots") if word in codec.name), made_by)
    raise ValueError(
        f"{name!r} of shape {shape} is sharded into pieces of {shard[-1]} columns, which are not "
        f"whole blocks of {size}, so blocks would cross devices: give block_size={fitting}, as in "
        f"storage={made_by}(block_size={fitting}), {other}"
    )


def fitting_size(columns: int, size: int, codes_per_byte: int) -> int | None:
    """Choose a block size up to ``size`` that divides ``columns``, or return None."""
    common = math.gcd(columns, size)  # a divisor of ``size`` suits other parameters, too
    if common >= SMALL and common % codes_per_byte == 0:
        return common
    sizes = range(codes_per_byte, size + 1, codes_per_byte)
    return max((n for n in sizes if columns % n == 0), default=None)


@contextlib.contextmanager
def placed(shardings: Mapping[str, Any]) -> Iterator[None]:
    """Make the shardings of parameters known to an ``init`` that is traced inside.

    Args:
      shardings: the shardings by name of the parameter.
    """
    token = _PLACED.set(shardings)
    try:
        yield
    finally:
        _PLACED.reset(token)


def sharding_of(name: str, x: Any) -> Any:
    """Return the sharding of the array of a parameter, or None if it is not known.

    That of a traced array is known inside ``placed`` and along axes of explicit meshes.

    Args:
      name: the name of the parameter.
      x: its array.
    """
    if name in (known := _PLACED.get()):
        return known[name]
    return jax.typeof(x).sharding if isinstance(x, Tracer) else getattr(x, "sharding", None)
