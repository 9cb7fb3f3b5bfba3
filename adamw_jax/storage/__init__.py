"""Small state: formats for the arrays in the state of any optimizer."""

from adamw_jax._core.encoded import Encoded, decode_state, encoded_like_names, is_encoded
from adamw_jax.storage._formats import (
    Choice,
    Format,
    bfloat16,
    choose,
    eight_bit,
    encode_state,
    float8,
    float32,
    four_bit,
    roots,
)
from adamw_jax.storage._quantize import quantize_state

__all__ = [
    "Choice",
    "Encoded",
    "Format",
    "bfloat16",
    "choose",
    "decode_state",
    "eight_bit",
    "encode_state",
    "encoded_like_names",
    "float32",
    "float8",
    "four_bit",
    "is_encoded",
    "quantize_state",
    "roots",
]
