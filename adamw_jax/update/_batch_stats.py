"""``refresh_batch_stats``: batch-norm statistics for weights that no batch was trained on.

Averaged weights (``average_iterates``, ``lookahead``) need statistics of their own, from one pass
over the training data in training mode. A batch of b examples after n others enters with the
weight b / (n + b), and so

    mean = sum_i b_i mean_i / sum_i b_i,        var = sum_i b_i var_i / sum_i b_i

``var`` is the mean of the batches' variances, not the variance of all data pooled (``bn_update`` of
Izmailov et al. 2018, arXiv 1803.05407, and Granziol et al., arXiv 2003.01247).

>>> import jax.numpy as jnp
>>> def apply_fn(x):
...     return {"mean": x.mean(0), "var": x.var(0)}
>>> stats = refresh_batch_stats(apply_fn, [jnp.array([1.0, 3.0]), jnp.array([5.0])])
>>> print(stats["mean"], stats["var"].round(4))
3.0 0.6667

Flax's layers give the statistics of a batch, times ``1 - momentum``, where their running ones start
at zero. In Linen, where ``averaged`` are the weights from ``eval_params``:

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
    """Statistics over all batches, from those of each: one pass, nothing is changed in place.

    Args:
      apply_fn: gives the statistics of a batch as a tree of arrays, from the model in training
        mode; best jitted.
      batches: of any tree of arrays, of equal or different sizes.
      momentum: 0 where ``apply_fn`` gives the statistics of the batch themselves; the momentum of
        the layers, in [0, 1), where it gives their running statistics after one batch *from zeros*
        (Flax, whose default is 0.99). A number, or a tree of numbers over the statistics or a
        prefix of it.
      values_per_example: None leaves variances as ``apply_fn`` gives them, which is biased for
        Flax's layers. A number makes biased ones unbiased, N / (N - 1) for N values, as PyTorch's
        layers have them: how many values of an example each statistic is over, 1 behind a dense
        layer, height times width behind a convolution; a tree as above where layers differ.
      variances: which leaves are variances, for ``values_per_example``: a tree of bools, a function
        of the statistics, or a pattern on leaf names; None for those called ``var``.
      size: gives the number of examples in a batch; None for the length of the first axis of its
        first array.

    Returns:
      A tree like that of ``apply_fn``, averaged in float32 at least and of the same dtypes.

    Raises:
      ValueError: there is no batch, the statistics change their structure or shapes, a number is
        out of its range, a batch has one value only and its variance shall be unbiased.
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
    """What makes the statistics of a batch of what ``apply_fn`` gave, leaf by leaf."""
    return jax.tree.map(lambda m, v: _unbiased(v, examples) / (1 - m), keep, values)


def _unbiased(values: int, examples: int) -> float:
    """N / (N - 1) for N values; 1 for a leaf that is no variance (0 values)."""
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
    """How many values of an example a variance is over; 0 for what stays as it is."""
    chosen = masks.resolve(_called_var if variances is None else variances, statistics, "variances")
    if values is None:
        return jax.tree.map(lambda _: 0, chosen)
    if not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "values_per_example is given, but no leaf is a variance: say which ones are with "
            f"variances; the leaves are {numerics.leaf_names(statistics)}."
        )
    counts = _spread("values_per_example", values, statistics)
    return jax.tree.map(
        lambda use, n: whole_number("values_per_example", n) if use else 0, chosen, counts
    )


def _called_var(statistics: Tree) -> Tree:
    return numerics.map_named(lambda name, _: name.rsplit("/", 1)[-1] == "var", statistics)


def _spread(name: str, value: Any, statistics: Tree) -> Tree:
    """A number, or a tree that is a prefix of the statistics, as a tree of their structure."""
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
            "they must have one structure."
        )
