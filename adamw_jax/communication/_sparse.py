"""Compressors that send some elements and leave the others for later.

    top_k       C(x) = the k elements with the largest magnitudes, 0 elsewhere
    random_k    C(x) = k elements drawn at random, the same on all workers, 0 elsewhere

Both are used with error feedback ("with memory"), since |x - C(x)|^2 <= (1 - k / d) |x|^2 for d
elements, for ``random_k`` in the mean over draws. Stich, Cordonnier & Jaggi, NeurIPS 2018, arXiv
1809.07599. All workers draw the same elements from a common key, so ``random_k`` sends no indices
and its values are averaged by an all-reduce.

>>> import jax.numpy as jnp
>>> from adamw_jax.communication import payload_bytes
>>> [payload_bytes(c, jnp.zeros((64, 64))) for c in (top_k(0.01), random_k(0.01))]
[240, 160]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from adamw_jax._core.checks import number, switch
from adamw_jax.communication._compressor import Compressor, Exchanged, Payload, Wire, coded


def top_k(fraction: float = 0.01) -> Compressor:
    """Send the largest elements of each array.

    Args:
      fraction: share of the elements of an array that is sent, in (0, 1], at least one element;
        0.01.

    Returns:
      A compressor for error feedback. It sends a float32 and an index for each element that is
      sent: uint16 in arrays of up to 65,536 elements, else uint32.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.top_k(0.01), params)
    """
    fraction = number("fraction", fraction, above=0, most=1)

    def encode(x: jax.Array, key: jax.Array, wire: Wire) -> Payload:
        _, places = lax.top_k(jnp.abs(x.reshape(-1)), _number(x, fraction))
        index = jnp.uint16 if x.size <= 2**16 else jnp.uint32
        return {"values": x.reshape(-1)[places], "places": places.astype(index)}

    def decode(payload: Payload, like: Any) -> jax.Array:
        return _placed(payload["values"], payload["places"], like)

    return coded("top_k", encode, decode, contracts=True)


def random_k(fraction: float = 0.01, *, unbiased: bool = False) -> Compressor:
    """Send random elements of each array, the same ones on all workers.

    Args:
      fraction: share of the elements of an array that is sent, in (0, 1], at least one element;
        0.01.
      unbiased: multiply what arrives by d / k, so that its mean over draws is right without error
        feedback; False.

    Returns:
      A compressor for error feedback, or with ``unbiased`` one without.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.random_k(0.01), params)
    """
    fraction = number("fraction", fraction, above=0, most=1)
    switch("unbiased", unbiased)

    def exchange(x: jax.Array, memory: Any, key: jax.Array, wire: Wire) -> Exchanged:
        number = _number(x, fraction)
        places = random.permutation(key, x.size)[:number]
        scale = x.size / number if unbiased else 1
        values = x.reshape(-1)[places]
        mean, sent = (_placed(scale * each, places, x) for each in (wire.mean(values), values))
        return Exchanged(mean, sent, memory)

    return Compressor("random_k", exchange, contracts=not unbiased)


def _number(x: jax.Array, fraction: float) -> int:
    return max(1, int(fraction * x.size))


def _placed(values: jax.Array, places: jax.Array, like: Any) -> jax.Array:
    flat = jnp.zeros(like.size, like.dtype).at[places.astype(jnp.uint32)].set(values)
    return flat.reshape(like.shape)
