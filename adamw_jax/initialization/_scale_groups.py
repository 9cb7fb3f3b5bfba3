"""Blocks of parameters that share one scale.

    theta = {scale_m W_m}:  every leaf W by itself, or several leaves together, or not at all

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
"""``(name, leaf) -> key``: leaves of one key share a scale, those of the key None have none."""

BIASES = ("bias", "b")


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The parameters as leaves, each with the number of its block.

    Attributes:
      leaves: all leaves, unscaled.
      index: the block of each leaf, or None.
      names: of each block, that of its first leaf.
      is_bias: of each block, whether it holds nothing but biases.
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
        """Groups the leaves of ``params``.

        Args:
          params: any tree of arrays; leaves that are not floating-point take no part.
          block_fn: from a slash-separated name and a leaf, of which it may use shape and dtype, to
            the key of its block, or None for no part; None gives each leaf a block.
          is_bias: which leaves are biases: a tree of bools, a function of the parameters, or a
            pattern on leaf names; None for those called ``bias`` or ``b``.

        Raises:
          ValueError: no leaf takes part, or ``is_bias`` does not fit.
          TypeError: a key is not hashable.
        """
        leaves, structure = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
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
                f"no parameter has a scale, of the leaves {names}: give floating-point parameters "
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
        """The leaves that have a scale, times it: float32 at least, not yet rounded.

        Args:
          scales: one per block, shape (blocks,).
        """
        return [
            numerics.scaled(_at(scales, block), numerics.widen(leaf))
            for leaf, block in zip(self.leaves, self.index, strict=True)
            if block is not None
        ]

    def whole(self, scaled: Sequence[jax.Array]) -> Tree:
        """The tree of parameters from the leaves that have a scale, rounded to their dtypes."""
        values = iter(scaled)
        leaves = [
            leaf if block is None else numerics.cast(next(values), leaf.dtype)
            for leaf, block in zip(self.leaves, self.index, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def rescaled(self, scales: jax.Array) -> Tree:
        """The parameters times their scales, with the dtypes they came with."""
        return self.whole(self.scaled(scales))

    def per_leaf(self, scales: jax.Array) -> Tree:
        """The scale of every leaf, in a tree like the parameters; 1 for those without."""
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
            f"block_fn must give a hashable key, or None, got {key!r} for {name!r}: use a name or "
            "a number."
        ) from None
    return key
