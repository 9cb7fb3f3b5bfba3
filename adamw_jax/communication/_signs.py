"""Compressors that send one bit for each element: its sign.

    majority_vote    sum of the signs of all workers > 0 -> 1,  < 0 -> -1,  = 0 -> 0
    scaled_sign      C(x) = mean(|x|) sign(x)                              for the whole array
    one_bit          C(x) = mean of the elements of its column with the same sign

A vote says nothing about sizes, so it needs an optimizer and a learning rate for signs. The two
others are used with error feedback; |x - C(x)|^2 <= (1 - 1 / n) |x|^2 for n elements that share a
size. For them the sign of 0 is 1.

Majority vote: Bernstein, Wang, Azizzadenesheli & Anandkumar, ICML 2018, arXiv 1802.04434, and
Bernstein, Zhao, Azizzadenesheli & Anandkumar, ICLR 2019, arXiv 1810.05291. EF-signSGD: Karimireddy,
Rebjock, Stich & Jaggi, ICML 2019, arXiv 1901.09847. 1-bit SGD: Seide, Fu, Droppo, Li & Yu,
Interspeech 2014.

>>> import jax.numpy as jnp
>>> from adamw_jax.communication import payload_bytes
>>> payload_bytes(majority_vote(), jnp.zeros((64, 64)))  # 16 kB without compression
512
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, random

from adamw_jax._core import numerics
from adamw_jax.communication._bits import pack, unpack
from adamw_jax.communication._compressor import Compressor, Payload, Wire, coded


def majority_vote() -> Compressor:
    """Send signs and take the sign that most workers have (signSGD with majority vote).

    Returns:
      A compressor without error feedback. The result is 1, -1, or 0 for a tie. One bit cannot say
      that a gradient is 0: with an even number of workers half of them then vote for each sign, so
      that zeros of all give 0; with an odd number the vote left over has a random sign in each
      step.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.majority_vote(), params)
    """

    def encode(x: jax.Array, key: jax.Array, wire: Wire) -> Payload:
        for_zero = (wire.index + random.bits(key, (), jnp.uint32).astype(jnp.int32)) % 2 == 0
        return pack(jnp.where(x == 0, for_zero, x > 0).reshape(-1), 1)

    return coded(
        "majority_vote", encode, _signs, contracts=False, combine=lambda total, _: jnp.sign(total)
    )


def scaled_sign() -> Compressor:
    """Send signs and one mean of magnitudes for each array (EF-signSGD).

    Returns:
      A compressor for error feedback. In the paper the learning rate stands inside the memory; here
      the memory is of gradients, which is the same for a constant rate.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.scaled_sign(), params)
    """

    def encode(x: jax.Array, key: jax.Array, wire: Wire) -> Payload:
        return {"bits": pack((x >= 0).reshape(-1), 1), "size": jnp.mean(jnp.abs(x))}

    def decode(payload: Payload, like: Any) -> jax.Array:
        return payload["size"] * _signs(payload["bits"], like)

    return coded("scaled_sign", encode, decode, contracts=True)


def one_bit() -> Compressor:
    """Send signs and two means for each column: of its elements >= 0 and of those < 0 (1-bit SGD).

    Returns:
      A compressor for error feedback. A column has the elements with the same index on the last
      axis, the inputs of one unit of a layer; an array with one axis is one column.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones((64, 64))}
      >>> sent = aj.communication.payload_bytes(aj.communication.one_bit(), params)
    """

    def encode(x: jax.Array, key: jax.Array, wire: Wire) -> Payload:
        columns = _columns(x)
        up = columns >= 0

        def mean(where: jax.Array) -> jax.Array:
            number = jnp.sum(where, axis=0, dtype=x.dtype)
            return jnp.sum(jnp.where(where, columns, 0), axis=0) / numerics.nonzero(number)

        return {"bits": pack(up.reshape(-1), 1), "up": mean(up), "down": mean(~up)}

    def decode(payload: Payload, like: Any) -> jax.Array:
        up = _columns(_signs(payload["bits"], like)) > 0
        return jnp.where(up, payload["up"][None], payload["down"][None]).reshape(like.shape)

    return coded("one_bit", encode, decode, contracts=True)


def _signs(bits: jax.Array, like: Any) -> jax.Array:
    up = unpack(bits, 1, like.size).reshape(like.shape)
    return lax.convert_element_type(up, like.dtype) * 2 - 1


def _columns(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1)
