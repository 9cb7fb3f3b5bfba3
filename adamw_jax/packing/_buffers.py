"""Group leaves into buffers, and pack and unpack them.

>>> import jax.numpy as jnp
>>> tree = {"a": jnp.ones((2, 2)), "b": jnp.zeros(3), "c": jnp.ones(100)}
>>> packer = Packer(limit=50, group=32)
>>> packed = packer.pack(tree)
>>> packed["a"].shape, packed["b"], packed["c"].shape
((7,), None, (100,))
>>> packer.unpack(packed, tree)["b"]
Array([0., 0., 0.], dtype=float32)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax.storage._shards import sharding_of

Tree = Any


class Run(NamedTuple):
    """Leaves that share a buffer: their indices and sizes."""

    leaves: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Packer:
    """The rule for shared buffers; leaves are widened, but not with ``by_dtype``."""

    limit: int
    group: int
    by_dtype: bool = False

    def runs(self, leaves: list[Any]) -> list[Run]:
        """Return the groups of two leaves or more, in the order of the tree."""
        groups: list[list[int]] = []
        for index, x in enumerate(leaves):
            if not self.takes(x):
                continue
            open_ = bool(groups) and len(groups[-1]) < self.group
            if open_ and not (self.by_dtype and x.dtype != leaves[groups[-1][0]].dtype):
                groups[-1].append(index)
            else:
                groups.append([index])
        return [Run(tuple(g), tuple(leaves[i].size for i in g)) for g in groups if len(g) > 1]

    def takes(self, x: Any) -> bool:
        """Return whether a leaf is small enough and real, and so is packed."""
        return 0 < math.prod(x.shape) < self.limit and jnp.issubdtype(x.dtype, jnp.floating)

    def check_placement(self, params: Tree) -> None:
        """Raise if a leaf that would be packed is sharded."""
        leaves, names = jax.tree.leaves(params), numerics.leaf_names(params)
        for i in (i for run in self.runs(leaves) for i in run.leaves):
            sharding = sharding_of(names[i], leaves[i])
            if sharding is not None and not sharding.is_fully_replicated:
                raise ValueError(
                    f"the leaf {names[i]!r} of {leaves[i].size} elements is sharded ({sharding}), "
                    "but leaves in one buffer must be replicated: give "
                    f"limit={leaves[i].size} or less, or replicate it."
                )

    def pack(self, tree: Tree, like: Tree | None = None) -> Tree:
        """Put the leaves of each group into its first leaf; ``like`` determines the groups."""
        leaves, structure = jax.tree.flatten(tree)
        runs = self.runs(leaves if like is None else jax.tree.leaves(like))
        for run in runs:
            buffer = self.joined([leaves[i] for i in run.leaves])
            for i in run.leaves:
                leaves[i] = None  # a MaskedNode would cost Python time at every call of a step
            leaves[run.leaves[0]] = buffer
        return jax.tree.unflatten(structure, leaves)

    def unpack(self, packed: Tree, like: Tree) -> Tree:
        """Restore the structure and shapes of ``like``; a scalar is repeated for its group."""
        shapes, structure = jax.tree.flatten(like)
        leaves = structure.flatten_up_to(packed)
        for run in self.runs(shapes):
            buffer, at = leaves[run.leaves[0]], 0
            for i, size in zip(run.leaves, run.sizes, strict=True):
                if buffer.ndim == 0:
                    leaves[i] = buffer
                    continue
                part = lax.slice(buffer, (at,), (at + size,))
                leaves[i] = part if shapes[i].ndim == 1 else lax.reshape(part, shapes[i].shape)
                at += size
        return jax.tree.unflatten(structure, leaves)

    def joined(self, leaves: list[Any]) -> Any:
        """Join leaves end to end."""
        dtype = leaves[0].dtype if self.by_dtype else numerics.default_float()
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
            return jax.ShapeDtypeStruct((sum(x.size for x in leaves),), dtype)
        leaves = [jnp.asarray(x) for x in leaves]
        if self.by_dtype and len(dtypes := {str(x.dtype) for x in leaves}) > 1:
            raise ValueError(
                f"leaves of one buffer have the dtypes {sorted(dtypes)}: cast the gradients to the "
                "dtypes of the parameters."
            )
        flat = [x if x.ndim == 1 else lax.reshape(x, (x.size,)) for x in leaves]
        return lax.concatenate([numerics.cast(x, dtype) for x in flat], 0)
