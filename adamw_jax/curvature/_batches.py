"""Data in pieces: a loss over more examples than fit on the device at once.

    L = sum_i n_i L_i / sum_i n_i           n_i examples in batch i, L_i the mean loss over them

Gradients and curvature products are linear in the loss, so theirs are averaged in the same way.
The batches stay on the host; a computation, jitted or not, fetches one after the other.

>>> import numpy as np
>>> batches = Batches([np.ones(3, np.float32), np.full(1, 5, np.float32)])
>>> batches.mean(lambda batch: batch.mean())
Array(2., dtype=float32)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax.curvature._arrays import examples

Tree = Any

WEIGHTS = ("examples", "equal")


class _Group(NamedTuple):
    """Batches of one structure: where they are, their weights, their shapes."""

    indices: list[int]
    weights: list[float]
    like: Tree


@jax.tree_util.register_static
class Batches:
    """Batches whose mean loss is meant, in the place of one batch.

    Args:
      batches: a sequence, which is read anew, batch by batch, at every pass over the data (a list
        of host arrays, or an object with ``len`` and ``[i]`` that loads from disk); any other
        iterable is read once into a list on the host. Each batch is a tree of arrays.
      weights: ``"examples"`` weighs a batch by the length of the first axis of its first array, as
        is right for a loss that is a mean over examples; ``"equal"`` weighs all alike.

    Make it once and keep it: a compiled program belongs to its ``Batches``, so that another one, of
    the same data too, compiles everything anew. Iterated over, it gives its batches.

    Batches of different shapes are computed by one compiled program a shape: pad, drop or bucket
    odd ones where compiling is dear.

    Raises:
      TypeError: ``batches`` is a mapping, which is one batch.
      ValueError: there is no batch, or a batch without examples.
    """

    def __init__(self, batches: Iterable[Any], weights: str = "examples") -> None:
        one_of("weights", weights, WEIGHTS)
        if isinstance(batches, Mapping):
            raise TypeError(
                f"batches must be a list of batches, got one batch with the keys {list(batches)}: "
                "Batches([batch]), or a list of its pieces."
            )
        lazy = isinstance(batches, Sequence) or hasattr(batches, "__getitem__")
        self._batches: Any = batches if lazy else list(batches)
        if lazy and isinstance(batches, (list, tuple)):
            self._batches = [_on_host(batch) for batch in batches]
        groups: dict[Any, _Group] = {}
        for index, batch in enumerate(self):
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
            kind = jax.tree.structure(like), tuple(jax.tree.leaves(like))
            group = groups.setdefault(kind, _Group([], [], like))
            group.indices.append(index)
            group.weights.append(_weight(batch, index) if weights == "examples" else 1.0)
        if not groups:
            raise ValueError("batches is empty: give at least one batch (an iterator runs out).")
        self._groups = tuple(groups.values())
        self._total = sum(sum(group.weights) for group in self._groups)

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tree]:
        """The batches, one by one, as NumPy arrays."""
        return (self._fetch(index) for index in range(len(self)))

    def mean(self, fn: Callable[[Any], Tree]) -> Tree:
        """The weighted mean of a function over the batches.

        Args:
          fn: ``batch -> tree of arrays``, of the same shapes for every batch.

        Returns:
          A tree of arrays, float32 at least.
        """
        total: Tree = None
        for group in self._groups:
            part = self._sum(fn, group)
            total = part if total is None else jax.tree.map(lax.add, total, part)
        return total

    def _sum(self, fn: Callable[[Any], Tree], group: _Group) -> Tree:
        dtype = numerics.default_float()
        weights = jnp.asarray(np.asarray(group.weights) / self._total, dtype)

        def step(sums: Tree, entry: tuple[jax.Array, jax.Array]) -> tuple[Tree, None]:
            index, weight = entry
            batch = jax.pure_callback(self._fetch, group.like, index)
            return jax.tree.map(
                lambda a, x: lax.add(a, numerics.scaled(weight, numerics.widen(x))), sums, fn(batch)
            ), None

        start = jax.tree.map(
            lambda x: jnp.zeros(x.shape, numerics.compute_dtype(x)), jax.eval_shape(fn, group.like)
        )
        return lax.scan(step, start, (jnp.asarray(group.indices, jnp.int32), weights))[0]

    def _fetch(self, index: Any) -> Tree:
        return _on_host(self._batches[int(index)])


def _on_host(batch: Any) -> Tree:
    """A batch as NumPy arrays of dtypes that JAX has."""

    def leaf(x: Any) -> np.ndarray:
        array = np.asarray(x)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    return jax.tree.map(leaf, batch)


def _weight(batch: Any, index: int) -> float:
    if count := examples(batch):
        return float(count)
    leaves = jax.tree.leaves(batch)
    raise ValueError(
        f"batch {index} has no examples: the first axis of its first array counts them, which "
        f'has shape {leaves[0].shape if leaves else None}; or give weights="equal".'
    )
