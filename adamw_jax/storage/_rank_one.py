"""Codes with scales of rank one: each element has the smallest of the maxima over its axes.

    scale_ij = min(max_j |x_ij|, max_i |x_ij|);    an array with one axis is cut into blocks

This is for the second moment of 4-bit AdamW (Li, Chen & Zhu, NeurIPS 2023, arXiv 2309.01507). A
single outlier hardly changes the scales of other elements in its row and column, and the scales of
a matrix are two vectors.

>>> import jax.numpy as jnp
>>> from adamw_jax._core.blocks import Blocks
>>> from adamw_jax.storage._levels import linear_without_zero
>>> codec = RankOne(BlockWise(linear_without_zero(4), 4, Blocks(128), signed=False))
>>> codec.decode(codec.encode(jnp.array([[1.0, 8.0], [0.5, 2.0]])))
Array([[1. , 8. ],
       [0.5, 2. ]], dtype=float32)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core.blocks import Blocks
from adamw_jax._core.encoded import Encoded, Layout, encoded
from adamw_jax.storage._block_wise import BlockWise, finite, nonnegative
from adamw_jax.storage._nibbles import pack, unpack


@dataclasses.dataclass(frozen=True)
class RankOne:
    """Codes of a block-wise codec under scales of rank one.

    Attributes:
      flat: the codec of arrays with one axis; its levels are those of all arrays.
    """

    flat: BlockWise

    @property
    def name(self) -> str:
        """Map and scales."""
        return f"{self.flat.name}_rank1"

    @property
    def signed(self) -> bool:
        """Whether values may be negative."""
        return self.flat.signed

    def encode(self, x: jax.Array, noise: jax.Array | None = None) -> Encoded:
        """Encode a real array with one vector of scales per axis."""
        if x.ndim < 2:
            made = self.flat.encode(x, noise)
            return encoded(made.codes, made.scales, Layout(self, x.shape, x.dtype))
        values = finite(x) if self.flat.signed else nonnegative(x)
        maxima = tuple(
            jnp.max(lax.abs(values), axis=[a for a in range(x.ndim) if a != axis], initial=0)
            for axis in range(x.ndim)
        )
        codes = self.flat.codes(values, _least(maxima), noise)
        return encoded(
            codes if self.flat.bits == 8 else pack(codes), maxima, Layout(self, x.shape, x.dtype)
        )

    def decode(self, stored: Encoded) -> jax.Array:
        """Return the array in its original dtype."""
        if len(stored.layout.shape) < 2:
            return self.flat.decode(stored)
        scales = _least(stored.scales)
        codes = stored.codes if self.flat.bits == 8 else unpack(stored.codes, scales.shape)
        values = self.flat.values(codes, scales)
        return lax.convert_element_type(values, stored.layout.dtype)

    def peaks(self, stored: Encoded) -> list[jax.Array]:
        """Return the scales of all axes."""
        return self.flat.peaks(stored)

    def pieces(self, axes: int) -> tuple[Blocks, int]:
        """Do as ``Codec.pieces``; arrays with two or more axes have no blocks."""
        blocks, codes_per_byte = self.flat.pieces(axes)
        return (blocks if axes < 2 else Blocks(1)), codes_per_byte


def _least(maxima: tuple[jax.Array, ...]) -> jax.Array:
    """Return the scale of every element."""
    shape = tuple(m.shape[0] for m in maxima)
    spread: list[Any] = [lax.broadcast_in_dim(m, shape, (a,)) for a, m in enumerate(maxima)]
    return functools.reduce(lax.min, spread)
