"""Small state: codecs for the arrays of any optimizer's state, and who uses them."""

from adamw_jax.storage.choice import (
    Choice,
    Format,
    bfloat16,
    choose,
    eight_bit,
    encode_state,
    float8,
    float32,
    four_bit,
)
from adamw_jax.storage.encoded import Encoded, decode_state, encoded_like_names, is_encoded
from adamw_jax.storage.quantize import quantize_state

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
]
