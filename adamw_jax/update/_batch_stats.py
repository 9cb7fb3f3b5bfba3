"""Compute batch-norm statistics for averaged weights.

Averaged weights (``average_iterates``, ``lookahead``) need statistics of their own, from one pass
over the training data in training mode. With b_i examples in batch i,

    mean = sum_i b_i mean_i / sum_i b_i,        var = sum_i b_i var_i / sum_i b_i

``var`` is the mean of the variances within batches, not the variance of all data (``bn_update`` of
Izmailov et al. 2018, arXiv 1803.05407, and Granziol et al., arXiv 2003.01247).

>>> import jax.numpy as jnp
>>> def apply_fn(x):
...     return {"mean": x.mean(0), "var": x.var(0)}
>>> stats = refresh_batch_stats(apply_fn, [jnp.array([1.0, 3.0]), jnp.array([5.0])])
>>> print(stats["mean"], stats["var"].round(4))
3.0 0.6667

A layer of Flax returns the statistics of a batch times ``1 - momentum`` if its running statistics
start at zero. In Linen, with ``averaged``, the weights from ``eval_params``:

>>> import flax.linen as nn, jax
>>> class Model(nn.Module):
...     @nn.compact
...     def __call__(self, x, train):
...         return nn.BatchNorm(momentum=0.9, use_running_average=not train)(nn.Dense(3)(x))
>>> model, batches = Model(), [jnp.ones((4, 2)), jnp.zeros((8, 2))]
>>> variables = model.init(jax.random.key(0), batches[0], train=False)
>>> averaged = variables["params"]
>>> empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
>>> @jax.jit
... def apply_fn(batch):
...     state = {"params": averaged, "batch_stats": empty}
...     return model.apply(state, batch, train=True, mutable=["batch_stats"])[1]["batch_stats"]
>>> batch_stats = refresh_batch_stats(apply_fn, batches, momentum=0.9)

In NNX:

>>> from flax import nnx
>>> class Net(nnx.Module):
...     def __init__(self, rngs):
...         self.dense = nnx.Linear(2, 3, rngs=rngs)
...         self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
...     def __call__(self, x):
...         return self.norm(self.dense(x))
>>> net = Net(nnx.Rngs(0))
>>> definition, averaged, statistics, others = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
>>> empty = jax.tree.map(jnp.zeros_like, statistics)
>>> @jax.jit
... def apply_fn(batch):
...     copy = nnx.merge(definition, averaged, empty, others, copy=True)
...     copy.train()
...     copy(batch)
...     return nnx.state(copy, nnx.BatchStat)
>>> nnx.update(net, refresh_batch_stats(apply_fn, batches, momentum=0.9))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import number, whole_number

Tree = Any


def refresh_batch_stats(
    apply_fn: Callable[[Any], Tree],
    batches: Iterable[Any],
    *,
    momentum: float | Tree = 0.0,
    values_per_example: int | Tree | None = None,
    variances: masks.Mask = None,
    size: Callable[[Any], int] | None = None,
) -> Tree:
    """Combine the statistics of the batches in one pass over them.

    Args:
      apply_fn: returns the statistics of a batch as a tree of arrays, from the model in training
        mode; jit it for speed.
      batches: trees of arrays, of equal or different sizes.
      momentum: 0 if ``apply_fn`` returns the statistics of the batch itself. The momentum of the
        layers, in [0, 1), if it returns their running statistics after one batch *from zeros*
        (Flax, whose default is 0.99). A number, or a tree of numbers with the structure of the
        statistics or a prefix of it.
      values_per_example: None keeps the variances of ``apply_fn``, which are biased for Flax's
        layers. A number removes the bias by N / (N - 1) for N values, as PyTorch's layers do: the
        number of values per example, 1 after a dense layer, height times width after a
        convolution. A tree as above if layers differ.
      variances: which leaves are variances, for ``values_per_example``: a tree of bools, a function
        of the statistics, or a pattern on leaf names; None for those called ``var``.
      size: returns the number of examples in a batch; None for the length of the first axis of its
        first array.

    Returns:
      A tree with the structure and dtypes of ``apply_fn``'s, averaged in float32 at least.

    Raises:
      ValueError: there is no batch, the statistics change their structure or shapes, or a batch of
        one value has no unbiased variance.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> batches = [jnp.ones((4, 2)), 3 * jnp.ones((4, 2))]
      >>> stats = aj.update.refresh_batch_stats(lambda x: {"mean": x.mean(0)}, batches)
      >>> stats["mean"].tolist()
      [2.0, 2.0]
    """
    mean, seen = None, 0
    for batch in batches:
        examples = whole_number("size", _length(batch) if size is None else size(batch))
        statistics = apply_fn(batch)
        if mean is None:
            keep = _spread("momentum", momentum, statistics)
            keep = jax.tree.map(lambda m: number("momentum", m, least=0, below=1), keep)
            values = _values(values_per_example, variances, statistics)
            dtypes = jax.tree.map(lambda s: s.dtype, statistics)
            mean = jax.tree.map(lambda s: jnp.zeros_like(numerics.widen(s)), statistics)
        _check(statistics, mean)
        seen += examples
        factors = _factors(keep, values, examples)
        mean = _entered(mean, statistics, factors, examples / seen)
    if mean is None:
        raise ValueError("batches is empty: give at least one batch (an iterator runs out once).")
    return jax.tree.map(lambda m, dtype: numerics.cast(m, dtype), mean, dtypes)


@jax.jit
def _entered(mean: Tree, statistics: Tree, factors: Tree, share: Any) -> Tree:
    share = numerics.scalar(share)

    def leaf(m: jax.Array, s: jax.Array, factor: Any) -> jax.Array:
        own = numerics.scaled(numerics.scalar(factor), numerics.widen(s))
        return lax.add(m, numerics.scaled(share, lax.sub(own, m)))

    return jax.tree.map(leaf, mean, statistics, factors)


def _factors(keep: Tree, values: Tree, examples: int) -> Tree:
    """Return the factors that turn the result of ``apply_fn`` into the statistics of a batch."""
    return jax.tree.map(lambda m, v: _unbiased(v, examples) / (1 - m), keep, values)


def _unbiased(values: int, examples: int) -> float:
    """Return N / (N - 1) for N values, or 1 if the leaf is not a variance (0 values)."""
    if not values:
        return 1.0
    count = values * examples
    if count == 1:
        raise ValueError(
            "a batch of one value has no unbiased variance: use larger batches, or "
            "values_per_example=None."
        )
    return count / (count - 1)


def _values(values: int | Tree | None, variances: masks.Mask, statistics: Tree) -> Tree:
    """Return the values per example of each variance, 0 for leaves that do not change."""
    chosen = masks.resolve(_called_var if variances is None else variances, statistics, "variances")
    if values is None:
        return jax.tree.map(lambda _: 0, chosen)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "values_per_example is given, but no leaf is known to be a variance: name some in "
            f"variances; the leaves are {numerics.leaf_names(statistics)}."
        )
    counts = _spread("values_per_example", values, statistics)
    return jax.tree.map(
        lambda use, n: whole_number("values_per_example", n) if use else 0, chosen, counts
    )


def _called_var(statistics: Tree) -> Tree:
    return numerics.map_named(lambda name, _: name.rsplit("/", 1)[-1] == "var", statistics)


def _spread(name: str, value: Any, statistics: Tree) -> Tree:
    """Expand a number, or a tree that is a prefix of the statistics, to their structure."""
    try:
        return jax.tree.map(lambda v, part: jax.tree.map(lambda _: v, part), value, statistics)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be a number or a tree of numbers that fits the statistics, whose leaves "
            f"are {numerics.leaf_names(statistics)}; got {value!r}."
        ) from error


def _length(batch: Any) -> int:
    leaves = jax.tree.leaves(batch)
    if not leaves or not getattr(leaves[0], "ndim", 0):
        raise ValueError(
            "the size of a batch is the length of the first axis of its first array, but there is "
            f"none in a batch of type {type(batch).__name__}: give size, a function of the batch."
        )
    return leaves[0].shape[0]


def _check(statistics: Tree, mean: Tree) -> None:
    shapes = [
        [(n, x.shape) for n, x in zip(numerics.leaf_names(t), jax.tree.leaves(t), strict=True)]
        for t in (statistics, mean)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"apply_fn gave statistics {shapes[0]} for one batch and {shapes[1]} for the first: "
            "return the same structure and shapes for every batch."
        )
