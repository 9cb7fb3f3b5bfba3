"""What a compressor is: how the workers make the mean of one array from small messages.

A worker is a device along an axis of ``jax.shard_map``, or an element along an axis of
``jax.vmap(..., axis_name=...)``, which simulates workers on one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax, random

from adamw_jax._core import numerics

Payload = Any


class Wire:
    """The collectives of one step, and the place of this worker.

    Attributes:
      axes: names of the axes along which the workers are.

    Example:
      Inside ``jax.shard_map`` the mean over the workers is ``wire.mean(x)``:

      >>> from adamw_jax.communication import Wire
      >>> wire = Wire(("data",))
    """

    def __init__(self, axes: tuple[str, ...]) -> None:
        self.axes = axes

    @property
    def size(self) -> int:
        """The number of workers."""
        return math.prod(map(lax.axis_size, self.axes))

    @property
    def index(self) -> jax.Array:
        """The number of this worker, int32."""
        return lax.axis_index(self.axes)

    def own(self, key: jax.Array) -> jax.Array:
        """Make the random key of this worker.

        Args:
          key: a key that all workers have.
        """
        return random.fold_in(key, self.index)

    def mean(self, x: jax.Array) -> jax.Array:
        """Return a mean over the workers (all-reduce).

        Args:
          x: an array of this worker.
        """
        return lax.pmean(x, self.axes)

    def gather(self, payload: Payload) -> Payload:
        """Return what all workers send, along a new first axis (all-gather).

        Args:
          payload: what this worker sends, a tree of arrays.
        """
        typed = numerics.varying_axes(self.index)  # by types, all workers have the same result
        return lax.all_gather(payload, self.axes, to="invarying" if typed else "varying")


class Exchanged(NamedTuple):
    """What one worker has after an exchange of one array.

    Attributes:
      mean: what the optimizer gets in place of the mean over workers; the same on each.
      sent: the part of its own array that this worker has told the others.
      memory: the new memory of the compressor.

    Example:
      >>> import jax.numpy as jnp
      >>> from adamw_jax.communication import Compressor, Exchanged
      >>> def exchange(x, memory, key, wire):  # nothing is compressed
      ...     return Exchanged(wire.mean(x), sent=x, memory=memory)
      >>> plain = Compressor("plain", exchange, contracts=True)
    """

    mean: jax.Array
    sent: jax.Array
    memory: Any


class Compressor(NamedTuple):
    """The declaration of a compressor, for ``compressed_mean``.

    Attributes:
      name: the function that made it.
      exchange: ``(x, memory, key, wire) -> Exchanged`` for one array of one worker: float32 (or
        float64), of any shape. It calls the collectives of ``wire``. ``key`` is the same on all
        workers and new at every step.
      contracts: whether it tells so much of each array that what is missing is shorter than the
        array, so that the missing part can be added to the next gradient (error feedback).
      start: ``(key, x) -> memory``: the first memory for an array like ``x``, an array; None for no
        memory. All workers have the same memory.

    Example:
      >>> import adamw_jax as aj
      >>> compressor = aj.communication.one_bit()
      >>> compressor.name, compressor.contracts
      ('one_bit', True)
    """

    name: str
    exchange: Callable[[jax.Array, Any, jax.Array, Wire], Exchanged]
    contracts: bool
    start: Callable[[jax.Array, Any], Any] | None = None


def coded(
    name: str,
    encode: Callable[[jax.Array, jax.Array, Wire], Payload],
    decode: Callable[[Payload, Any], jax.Array],
    *,
    contracts: bool,
    combine: Callable[[jax.Array, int], jax.Array] = lambda total, workers: total / workers,
) -> Compressor:
    """Declare a compressor whose payloads are gathered, decoded and added.

    Args:
      name: the function that makes it.
      encode: ``(x, key, wire) -> payload``, a tree of arrays. ``key`` is the same on all workers.
      decode: ``(payload, like) -> array``, of the shape and dtype of ``like``.
      contracts: as in ``Compressor``.
      combine: ``(sum of the decoded arrays, number of workers) -> result``; the mean.

    Returns:
      The compressor. It adds one decoded array after the other, so that no worker holds them all.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> half = aj.communication.coded(
      ...     "half",
      ...     encode=lambda x, key, wire: x.astype(jnp.bfloat16),
      ...     decode=lambda payload, like: payload.astype(like.dtype),
      ...     contracts=True,
      ... )
      >>> aj.communication.payload_bytes(half, {"w": jnp.ones((8, 8))})
      128
    """

    def exchange(x: jax.Array, memory: Any, key: jax.Array, wire: Wire) -> Exchanged:
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        payload = encode(x, key, wire)
        every = wire.gather(payload)
        first, others = (jax.tree.map(lambda a, s=s: a[s], every) for s in (0, slice(1, None)))
        total, _ = lax.scan(
            lambda sum, one: (sum + decode(one, like), None), decode(first, like), others
        )
        return Exchanged(combine(total, wire.size), decode(payload, like), memory)

    return Compressor(name, exchange, contracts)
