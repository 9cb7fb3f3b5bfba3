"""Communication between workers: compressed gradients with error feedback, and local SGD."""

from adamw_jax.communication._compressed_mean import CompressedMeanState, compressed_mean
from adamw_jax.communication._compressor import Compressor, Exchanged, Wire, coded
from adamw_jax.communication._levels import qsgd, terngrad
from adamw_jax.communication._local_sgd import LocalSGDState, local_sgd, post_local
from adamw_jax.communication._payload_bytes import payload_bytes, received_bytes
from adamw_jax.communication._power_sgd import power_sgd
from adamw_jax.communication._signs import majority_vote, one_bit, scaled_sign
from adamw_jax.communication._sparse import random_k, top_k
from adamw_jax.communication._workers import resize_workers, worker_specs

__all__ = [
    "CompressedMeanState",
    "Compressor",
    "Exchanged",
    "LocalSGDState",
    "Wire",
    "coded",
    "compressed_mean",
    "local_sgd",
    "majority_vote",
    "one_bit",
    "payload_bytes",
    "post_local",
    "power_sgd",
    "qsgd",
    "random_k",
    "received_bytes",
    "resize_workers",
    "scaled_sign",
    "terngrad",
    "top_k",
    "worker_specs",
]
