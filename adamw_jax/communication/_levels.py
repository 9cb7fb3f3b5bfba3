"""Compressors that round to a few levels at random, without a bias.

    C(x_i) = size sign(x_i) l_i / s,  a_i = s |x_i| / size,  l_i = a_i rounded up or down at random

so that E[l_i] = a_i and E[C(x)] = x. ``qsgd`` takes the Euclidean norm of a bucket of elements as
size, and E|C(x) - x|^2 <= min(d / s^2, sqrt(d) / s) |x|^2 for buckets of d elements. ``terngrad``
has one level, s = 1, and takes the largest magnitude of the array.

QSGD: Alistarh, Grubic, Li, Tomioka & Vojnovic, NeurIPS 2017, arXiv 1610.02132. TernGrad: Wen, Xu,
Yan, Wu, Wang, Chen & Li, NeurIPS 2017, arXiv 1705.07878.

>>> import jax.numpy as jnp
>>> from adamw_jax.communication import payload_bytes
>>> [payload_bytes(c, jnp.zeros((64, 64))) for c in (qsgd(bits=4), terngrad())]
[2080, 1028]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, whole_number
from adamw_jax.communication._bits import pack, unpack
from adamw_jax.communication._compressor import Compressor, Payload, Wire, coded


def qsgd(bits: int = 4, bucket: int = 512) -> Compressor:
    """Round to levels of the norm of each bucket, at random (QSGD).

    Args:
      bits: bits for each element, 2, 4 or 8, which code the sign and s = 1, 7 or 127 levels; 4.
      bucket: number of elements that share a norm, >= 1; 512 (experiments of the paper with 4
        bits). Each norm is a float32.

    Returns:
      A compressor without error feedback, because its mean is right by itself. The paper sends
      levels in a code of variable length (Elias); these have a fixed one.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.qsgd(bits=4), params)
    """
    if bits not in (2, 4, 8):
        raise ValueError(f"bits must be 2, 4 or 8, got {bits!r}.")
    bucket = whole_number("bucket", bucket)
    levels = 2 ** (bits - 1) - 1

    def encode(x: jax.Array, key: jax.Array, wire: Wire) -> Payload:
        buckets = _buckets(x)
        largest = jnp.max(jnp.abs(buckets), axis=1, keepdims=True)
        squares = jnp.sum(_share(buckets, largest) ** 2, axis=1, keepdims=True)
        norms = largest * jnp.sqrt(squares)
        codes = _rounded(buckets, norms, levels, wire.own(key))
        return {"codes": pack(codes.reshape(-1)[: x.size], bits), "norms": norms[:, 0]}

    def decode(payload: Payload, like: Any) -> jax.Array:
        signed = _buckets(_signed(unpack(payload["codes"], bits, like.size), levels, like.dtype))
        decoded = signed * (payload["norms"][:, None] / levels)
        return decoded.reshape(-1)[: like.size].reshape(like.shape)

    def _buckets(x: jax.Array) -> jax.Array:
        width = min(bucket, x.size)
        return jnp.pad(x.reshape(-1), (0, -x.size % width)).reshape(-1, width)

    return coded("qsgd", encode, decode, contracts=False)


def terngrad(clip: float | None = None) -> Compressor:
    """Send 0 or the sign of each element, at random, and the largest magnitude (TernGrad).

    Args:
      clip: first limit each magnitude to ``clip`` standard deviations of the array, > 0; None for
        no limit. The paper trains with 2.5, which is less noisy but biased.

    Returns:
      A compressor without error feedback. It sends 2 bits for each element and a float32 for each
      array.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.terngrad(), params)
    """
    if clip is not None:
        clip = number("clip", clip, above=0)

    def encode(x: jax.Array, key: jax.Array, wire: Wire) -> Payload:
        if clip is not None:
            limit = clip * jnp.std(x)
            x = jnp.clip(x, -limit, limit)
        size = jnp.max(jnp.abs(x))
        return {"codes": pack(_rounded(x, size, 1, wire.own(key)).reshape(-1), 2), "size": size}

    def decode(payload: Payload, like: Any) -> jax.Array:
        signed = _signed(unpack(payload["codes"], 2, like.size), 1, like.dtype)
        return (signed * payload["size"]).reshape(like.shape)

    return coded("terngrad", encode, decode, contracts=False)


def _rounded(x: jax.Array, size: jax.Array, levels: int, key: jax.Array) -> jax.Array:
    """Return codes from 0 to ``2 levels``, uint8."""
    at = jnp.minimum(_share(jnp.abs(x), size) * levels, levels)
    low = jnp.floor(at)
    level = jnp.where(random.uniform(key, x.shape, x.dtype) < at - low, low + 1, low)
    return lax.convert_element_type(jnp.sign(x) * level + levels, jnp.uint8)


def _share(x: jax.Array, size: jax.Array) -> jax.Array:
    """Return ``x / size``, for which XLA takes 1 / size; of the largest numbers this would be 0."""
    factor = jnp.where(size > 2.0**100, jnp.asarray(2.0**-50, x.dtype), 1)
    return x * factor / numerics.nonzero(size * factor)


def _signed(codes: jax.Array, levels: int, dtype: Any) -> jax.Array:
    return lax.convert_element_type(codes, dtype) - levels
