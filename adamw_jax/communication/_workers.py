"""The state of ``compressed_mean`` on several devices: where its rows belong, and how many.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax import adamw, compose
>>> from adamw_jax.communication import compressed_mean, top_k
>>> tx = compose(compressed_mean(top_k(0.1), "data", workers=4), adamw(1e-3))
>>> state = tx.init(jnp.zeros(10))
>>> worker_specs(state, "data").stages["compressed_mean"].error
P('data',)
>>> resize_workers(state, 2).stages["compressed_mean"].error.shape
(2, 10)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adamw_jax._core import numerics, state as states
from adamw_jax._core.checks import whole_number
from adamw_jax.communication._compressed_mean import CompressedMeanState

Tree = Any


def worker_specs(state: Any, axis_name: str | Sequence[str]) -> Any:
    """Return the specs of a state for ``jax.shard_map``: the memory of each worker on its device.

    Args:
      state: the state of an optimizer with ``compressed_mean``, under any wrapper, or its shapes:
        ``jax.eval_shape(tx.init, params)``.
      axis_name: as for ``compressed_mean``.

    Returns:
      A tree like the state: ``P(axis_name)`` for the memory of the workers, ``P()`` for everything
      else, which is the same on all of them.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(4)}
      >>> compress = aj.communication.compressed_mean(aj.communication.one_bit(), "data", workers=8)
      >>> state = aj.compose(compress, aj.adamw(1e-3)).init(params)
      >>> specs = aj.communication.worker_specs(state, "data")
    """
    axes = axis_name if isinstance(axis_name, str) else tuple(axis_name)
    same = jax.tree.map(lambda _: PartitionSpec(), state)
    return _with_errors(same, lambda _: PartitionSpec(axes))


def resize_workers(state: Any, workers: int) -> Any:
    """Convert a state to another number of workers.

    Args:
      state: the state of an optimizer with ``compressed_mean``, under any wrapper.
      workers: the new number, >= 1.

    Returns:
      A state in which each worker has the mean of the former memories, so that what was not sent
      yet still arrives once.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(4)}
      >>> compress = aj.communication.compressed_mean(aj.communication.one_bit(), "data", workers=8)
      >>> state = aj.compose(compress, aj.adamw(1e-3)).init(params)
      >>> state = aj.communication.resize_workers(state, 4)
    """
    workers = whole_number("workers", workers)

    def resized(e: jax.Array) -> jax.Array:
        return jnp.repeat(jnp.mean(e, axis=0, keepdims=True), workers, axis=0)

    made = _with_errors(numerics.on_device(state), resized)
    return numerics.in_memory_of(made, state)


def _with_errors(state: Any, change: Callable[[Any], Any]) -> Any:
    def changed(_: Any, node: CompressedMeanState) -> CompressedMeanState:
        return node._replace(error=jax.tree.map(change, node.error))

    return states.replace(state, CompressedMeanState, changed)
