"""Group parameters into blocks that share one scale.

    theta = {scale_m W_m}:  a block m is one leaf or several leaves; some leaves have no scale

>>> import jax.numpy as jnp
>>> params = {"dense": {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 2))}, "step": jnp.array(3)}
>>> blocks = Blocks.of(params)
>>> blocks.names, blocks.is_bias
(('dense/bias', 'dense/kernel'), (True, False))
>>> blocks.rescaled(jnp.array([1.0, 0.5]))["dense"]["kernel"][0]
Array([0.5, 0.5], dtype=float32)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics

Tree = Any
BlockFn = Callable[[str, Any], Hashable | None]
"""``(name, leaf) -> key``: leaves with the same key share a scale; leaves with None have none."""

BIASES = ("bias", "b")


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The parameters as leaves, each with the number of its block.

    Attributes:
      leaves: all leaves, unscaled.
      index: the number of the block of each leaf, or None.
      names: the names of the blocks: the name of the first leaf of each.
      is_bias: whether each block contains only biases.
    """

    leaves: tuple[Any, ...]
    structure: Any
    index: tuple[int | None, ...]
    names: tuple[str, ...]
    is_bias: tuple[bool, ...]

    @classmethod
    def of(
        cls, params: Tree, block_fn: BlockFn | None = None, is_bias: masks.Mask = None
    ) -> Blocks:
        """Group the leaves of ``params``.

        Args:
          params: any tree of arrays; leaves that are not floating-point have no scale.
          block_fn: maps a slash-separated name and a leaf (its shape and dtype) to the key of a
            block, or to None for no scale; None makes every leaf a block.
          is_bias: which leaves are biases: a tree of bools, a function of the parameters, or a
            pattern for names of leaves; None for leaves named ``bias`` or ``b``.
        """
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, numerics.as_arrays(params)))
        names = numerics.leaf_names(params)
        biases = jax.tree.leaves(_biases(is_bias, params))
        numbers: dict[Hashable, int] = {}
        index: list[int | None] = []
        for name, leaf in zip(names, leaves, strict=True):
            taken = jnp.issubdtype(leaf.dtype, jnp.inexact)
            key = _key(name, leaf, block_fn) if taken else None
            index.append(None if key is None else numbers.setdefault(key, len(numbers)))
        if not numbers:
            raise ValueError(
                f"no parameter has a scale, got the leaves {names}: give floating-point parameters "
                "and a block_fn that does not map all of them to None."
            )
        members = [[i for i, block in enumerate(index) if block == m] for m in range(len(numbers))]
        return cls(
            tuple(leaves),
            structure,
            tuple(index),
            tuple(names[member[0]] for member in members),
            tuple(all(biases[i] for i in member) for member in members),
        )

    def scaled(self, scales: jax.Array) -> list[jax.Array]:
        """Return the leaves that have a scale times the scale, in float32 or wider.

        Args:
          scales: one per block, shape (blocks,).
        """
        return [
            numerics.scaled(_at(scales, block), numerics.widen(leaf))
            for leaf, block in zip(self.leaves, self.index, strict=True)
            if block is not None
        ]

    def whole(self, scaled: Sequence[jax.Array]) -> Tree:
        """Return the parameters with these scaled leaves, rounded to their own dtypes."""
        values = iter(scaled)
        leaves = [
            leaf if block is None else numerics.cast(next(values), leaf.dtype)
            for leaf, block in zip(self.leaves, self.index, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def rescaled(self, scales: jax.Array) -> Tree:
        """Return the parameters times their scales, in their own dtypes."""
        return self.whole(self.scaled(scales))

    def per_leaf(self, scales: jax.Array) -> Tree:
        """Return a tree like the parameters with the scale of every leaf; 1 for those without."""
        one = jnp.ones([], scales.dtype)
        each = [one if block is None else _at(scales, block) for block in self.index]
        return jax.tree.unflatten(self.structure, each)


def _at(scales: jax.Array, block: int) -> jax.Array:
    return lax.index_in_dim(scales, block, keepdims=False)


def _biases(is_bias: masks.Mask, params: Tree) -> Tree:
    if is_bias is None:
        return jax.tree.map(lambda weight: not weight, masks.except_named(*BIASES)(params))
    return masks.resolve(is_bias, params, "is_bias")


def _key(name: str, leaf: Any, block_fn: BlockFn | None) -> Hashable | None:
    key = name if block_fn is None else block_fn(name, leaf)
    try:
        hash(key)
    except TypeError:
        raise TypeError(
            f"block_fn must return a hashable key or None, got {key!r} for {name!r}: return a name "
            "or a number."
        ) from None
    return key
