"""What a step writes before what, where XLA is free to choose and chooses badly."""

from adamw_jax.order.after import after, known_once_whole
from adamw_jax.order.calls import Calls
from adamw_jax.order.device import are_alike, is_alone, is_on_cpu, unordered
from adamw_jax.order.leaf_by_leaf import WHOLE, is_due, leaf_by_leaf, ordered

__all__ = [
    "WHOLE",
    "Calls",
    "after",
    "are_alike",
    "is_alone",
    "is_due",
    "is_on_cpu",
    "known_once_whole",
    "leaf_by_leaf",
    "ordered",
    "unordered",
]
