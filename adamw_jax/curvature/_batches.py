"""Compute a loss over more examples than fit on the device at once, batch by batch.

    L = sum_i n_i L_i / sum_i n_i           n_i examples in batch i, L_i the mean loss over them

Gradients and curvature products are linear in the loss, so they are averaged in the same way. The
batches stay on the host. A computation, jitted or not, fetches one after the other.

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
    """Batches with the same structure and shapes: their indices, weights and shapes."""

    indices: list[int]
    weights: list[float]
    like: Tree


@jax.tree_util.register_static
class Batches:
    """Several batches in place of one; functions then use the mean loss over all of them.

    Args:
      batches: the batches, each a tree of arrays. A sequence (a list of host arrays, or an object
        with ``len`` and ``[i]`` that loads from disk) is read again in every pass over the data.
        Any other iterable is read once into a list on the host.
      weights: ``"examples"`` weights a batch by the length of the first axis of its first array,
        which is right for a loss that is a mean over examples. ``"equal"`` weights all equally.

    Make it once and keep it: compiled programs are cached per ``Batches`` object, so a second
    object compiles everything again, even with the same data. Iterating over it yields its batches.

    Each shape of batch is compiled once. If compiling is slow, pad, drop or bucket batches of odd
    shapes.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> loss_fn = lambda params, batch: jnp.sum(batch * params**2) / 2
      >>> params, batch = jnp.ones(3), jnp.array([1.0, 2.0, 3.0])
      >>> batches = aj.curvature.Batches([batch, 3 * batch], weights="equal")
      >>> aj.curvature.hvp(loss_fn, params, batches, jnp.ones(3)).tolist()  # of the mean loss
      [2.0, 4.0, 6.0]
    """

    def __init__(self, batches: Iterable[Any], weights: str = "examples") -> None:
        one_of("weights", weights, WEIGHTS)
        if isinstance(batches, Mapping):
            raise TypeError(
                f"batches must be a list of batches, got one batch with the keys {list(batches)}: "
                "write Batches([batch])."
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
            raise ValueError(
                "batches is empty: give at least one (an iterator is used up once read)."
            )
        self._groups = tuple(groups.values())
        self._total = sum(sum(group.weights) for group in self._groups)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tree]:
        """Yield the batches as NumPy arrays."""
        return (self._fetch(index) for index in range(len(self)))

    def mean(self, fn: Callable[[Any], Tree]) -> Tree:
        """Average a function over the batches, with their weights.

        Args:
          fn: ``batch -> tree of arrays``, with the same shapes for every batch.

        Returns:
          A tree of arrays in float32 or wider.
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
    """Return a batch as NumPy arrays with dtypes that JAX has."""

    def leaf(x: Any) -> np.ndarray:
        array = np.asarray(x)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    return jax.tree.map(leaf, batch)


def _weight(batch: Any, index: int) -> float:
    if count := examples(batch):
        return float(count)
    leaves = jax.tree.leaves(batch)
    raise ValueError(
        f"batch {index} has no examples: its first array must have them along the first axis, got "
        f'shape {leaves[0].shape if leaves else None}; or give weights="equal".'
    )
