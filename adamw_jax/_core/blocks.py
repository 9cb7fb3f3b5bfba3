"""Blocks: the parts of an array that share one scale.

With ``order="rows"`` a block is a piece of the last axis. An array that is sharded over other axes,
or over the last in whole blocks, is then encoded without communication. With ``"flat"`` a block is
a piece of the array in C order, as in bitsandbytes. The two agree if the last axis is a multiple of
the block size. The last block of a row may be short.

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
    """The rule that cuts an array into blocks.

    Attributes:
      size: elements per block; None for a whole row.
      order: ``"rows"`` or ``"flat"``.
    """

    size: int | None
    order: str = "rows"

    @property
    def name(self) -> str:
        """The name in checkpoints."""
        return f"{self.order}{'' if self.size is None else self.size}"

    def split(self, x: jax.Array) -> jax.Array:
        """Reshape ``(..., elements)`` to ``(..., blocks, size)``; pad short blocks with 0."""
        rows = x.reshape(self._rows(x.shape))
        size = self._length(rows.shape[-1])
        if short := -rows.shape[-1] % size:
            rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, short)])
        return rows.reshape(*rows.shape[:-1], rows.shape[-1] // size, size)

    def join(self, blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Undo ``split`` and return the array of ``shape``."""
        *leading, length = self._rows(shape)
        rows = blocks.reshape(*leading, blocks.shape[-2] * blocks.shape[-1])
        return rows[..., :length].reshape(shape)

    def are_whole(self, shape: tuple[int, ...], shard: tuple[int, ...], step: int) -> bool:
        """Return whether shards hold whole blocks, and elements in multiples of ``step``."""
        if self.order == "flat":
            cut = next(axis for axis, size in enumerate(shard) if size != shape[axis])
            in_order = math.prod(shard[:cut]) == 1 and shard[cut + 1 :] == shape[cut + 1 :]
            held, size = math.prod(shard), self._length(math.prod(shape))
            return in_order and held % math.lcm(size if self.size else 1, step) == 0
        held, row = shard[-1], shape[-1]  # one block per row may be cut: codes do not change
        return held == row or held % math.lcm(self._length(row) if self.size else 1, step) == 0

    def _rows(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape if self.order == "rows" and shape else (math.prod(shape),)

    def _length(self, row: int) -> int:
        return max(min(self.size or row, row), 1)
