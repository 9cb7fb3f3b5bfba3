"""Blocks: the parts of an array that share one scale.

By ``"rows"`` a block is a piece of the last axis, so that an array sharded over other axes, or over
the last in whole blocks, is encoded without a word between devices. By ``"flat"`` it is a piece of
the array in C order, as in bitsandbytes; the two agree where the last axis is a multiple of the
block. The last block of a row may be short.

>>> import jax.numpy as jnp
>>> Blocks(2).split(jnp.arange(3.0))
Array([[0., 1.],
       [2., 0.]], dtype=float32)
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

ORDERS = ("rows", "flat")


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How an array is cut into blocks.

    Attributes:
      size: elements of a block; None for a whole row.
      order: ``"rows"`` or ``"flat"``.
    """

    size: int | None
    order: str = "rows"

    @property
    def name(self) -> str:
        """What a stored state calls it."""
        return f"{self.order}{'' if self.size is None else self.size}"

    def split(self, x: jax.Array) -> jax.Array:
        """``(..., elements) -> (..., blocks, elements of a block)``, short blocks filled with 0."""
        rows = x.reshape(self._rows(x.shape))
        size = self._length(rows.shape[-1])
        if short := -rows.shape[-1] % size:
            rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, short)])
        return rows.reshape(*rows.shape[:-1], rows.shape[-1] // size, size)

    def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The array of ``shape`` that was split."""
        *leading, length = self._rows(shape)
        rows = blocks.reshape(*leading, blocks.shape[-2] * blocks.shape[-1])
        return rows[..., :length].reshape(shape)

    def are_whole(self, shape: tuple[int, ...], shard: tuple[int, ...], step: int) -> bool:
        """Whether pieces of ``shard`` of an array hold whole blocks, and whole runs of ``step``."""
        if self.order == "flat":
            cut = next(axis for axis, size in enumerate(shard) if size != shape[axis])
            in_order = math.prod(shard[:cut]) == 1 and shard[cut + 1 :] == shape[cut + 1 :]
            held, size = math.prod(shard), self._length(math.prod(shape))
            return in_order and held % math.lcm(size if self.size else 1, step) == 0
        held, row = shard[-1], shape[-1]  # a row that is one block may be cut: codes stay
        return held == row or held % math.lcm(self._length(row) if self.size else 1, step) == 0

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.order == "rows" and shape else (math.prod(shape),)

    def _length(self, row: int) -> int:
        return max(min(self.size or row, row), 1)
