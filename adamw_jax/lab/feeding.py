"""Feed programs: initial weights, batches, data on the device, all determined by seeds."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax.lab.task import Data, Task, Tree


@functools.lru_cache(maxsize=32)
def initial(task: Task, seed: int) -> tuple[Tree, Tree]:
    """Return the start of a run, drawn alone, so that it does not depend on other lanes."""
    return _drawn(task)(jax.random.key(seed))


@functools.lru_cache(maxsize=8)
def _drawn(task: Task) -> Callable[[jax.Array], Any]:
    """Return ``task.start``, compiled if it can be traced."""
    compiled = jax.jit(task.start)
    try:
        compiled.lower(jax.random.key(0))
    except jax.errors.JAXTypeError:
        return task.start  # it draws with NumPy
    return compiled


def source_of(
    data: Data, seeds: Sequence[int], steps: int, begun: int = 0
) -> Callable[[int, int, int], Tree]:
    """Return (begin, end, lanes) -> indices or batches of shape (lanes, end - begin, ...).

    Args:
      data: the data.
      seeds: seeds of the lanes.
      steps: all steps.
      begun: steps of a run that is continued; their batches are skipped.
    """
    distinct = list(dict.fromkeys(seeds))
    if data.size is not None:
        size, batch_size = data.size, data.batch_size or 1
        orders = {seed: order_of(size, seed, steps, batch_size) for seed in distinct}

        def read(begin: int, end: int) -> dict[int, Tree]:
            return {seed: order[begin:end] for seed, order in orders.items()}
    else:
        streams: dict[int, Iterator[Tree]] = {
            seed: itertools.islice(data.batches(seed), begun, None) for seed in distinct
        }

        def read(begin: int, end: int) -> dict[int, Tree]:
            return {
                seed: jax.tree.map(lambda *a: np.stack(a),
                                   *(next(stream) for _ in range(begin, end)))
                for seed, stream in streams.items()
            }  # fmt: skip

    def source(begin: int, end: int, width: int) -> Tree:
        found = read(begin, end)
        mine = [found[seed] for seed in seeds]
        mine += mine[-1:] * (width - len(mine))
        return jax.tree.map(lambda *a: jnp.asarray(np.stack(a)), *mine)

    return source


def order_of(examples: int, seed: int, steps: int, batch_size: int) -> np.ndarray:
    """Return the examples of each step, permuted in every epoch; shape (steps, batch_size)."""
    rng = np.random.default_rng([seed, examples])
    per_epoch = examples // batch_size
    epochs = -(-steps // per_epoch)
    drawn = [rng.permutation(examples)[: per_epoch * batch_size] for _ in range(epochs)]
    return np.concatenate(drawn).reshape(-1, batch_size)[:steps].astype(np.int32)


@functools.lru_cache(maxsize=4)
def on_device(task: Task) -> dict[str, Any]:
    """Return training and held-out examples as arrays; None if training data gives batches."""
    data = task.data
    train = data.train if data.size is not None else None
    return {"train": jax.tree.map(jnp.asarray, train),
            "held out": jax.tree.map(jnp.asarray, data.held_out)}  # fmt: skip
