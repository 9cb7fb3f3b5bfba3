"""Count the bytes that workers exchange, from the arrays that a compressor gives to the network.

>>> import jax.numpy as jnp
>>> from adamw_jax.communication import scaled_sign
>>> params = {"kernel": jnp.zeros((256, 512)), "bias": jnp.zeros(512)}
>>> payload_bytes(scaled_sign(), params)  # without compression 526,336
16456
>>> received_bytes(scaled_sign(), params, workers=8), received_bytes(None, params, workers=8)
(115192, 921088)
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import random

from adamw_jax._core.checks import whole_number
from adamw_jax._core.gradients import check_floating
from adamw_jax.communication._compressed_mean import exchange_tree, first_memory, real_like
from adamw_jax.communication._compressor import Compressor, Exchanged, Payload, Wire

Tree = Any


def payload_bytes(compressor: Compressor | None, params: Tree) -> int:
    """Return the bytes that a worker gives to the network in a step.

    Args:
      compressor: the compressor; None for float32 gradients that are averaged as they are.
      params: the parameters, or their shapes and dtypes.

    Returns:
      The size of the codes, scales, values and indices of all leaves. ``compressed_mean`` adds one
      number of 4 bytes per step.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> aj.communication.payload_bytes(None, params)  # without compression
      16384
    """
    wire = _counted(compressor, params)
    return wire.gathered + wire.averaged


def received_bytes(compressor: Compressor | None, params: Tree, workers: int) -> int:
    """Return the bytes that a worker receives in a step, if arrays go around a ring.

    What is gathered arrives from each of the others: (N - 1) times the payload for N workers. What
    is averaged takes 2 (N - 1) / N times the payload. So a compressor that gathers saves bytes only
    if it makes the gradient smaller by more than N / 2.

    Args:
      compressor: as for ``payload_bytes``.
      params: as for ``payload_bytes``.
      workers: their number N, >= 1.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> received = aj.communication.received_bytes(aj.communication.one_bit(), params, workers=8)
    """
    workers, wire = whole_number("workers", workers), _counted(compressor, params)
    return (workers - 1) * wire.gathered + 2 * (workers - 1) * wire.averaged // workers


class _Counter(Wire):
    """A wire of one worker that counts bytes."""

    def __init__(self) -> None:
        super().__init__(())
        self.gathered, self.averaged = 0, 0

    @property
    def size(self) -> int:
        return 1

    @property
    def index(self) -> Any:
        return np.int32(0)

    def mean(self, x: jax.Array) -> jax.Array:
        self.averaged += _bytes(x)
        return x

    def gather(self, payload: Payload) -> Payload:
        self.gathered += _bytes(payload)
        return jax.tree.map(lambda x: x[None], payload)


def _counted(compressor: Compressor | None, params: Tree) -> _Counter:
    check_floating(params, "parameter")
    wire, like = _Counter(), jax.tree.map(real_like, params)
    used = _PLAIN if compressor is None else compressor

    def exchange(tree: Tree) -> Any:
        return exchange_tree(used, tree, first_memory(used, like, 0), random.key(0), wire)

    jax.eval_shape(exchange, like)
    return wire


def _average(x: jax.Array, memory: Any, key: jax.Array, wire: Wire) -> Exchanged:
    return Exchanged(wire.mean(x), x, memory)


_PLAIN = Compressor("none", _average, contracts=True)


def _bytes(tree: Tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
