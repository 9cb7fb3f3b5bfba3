"""Packing: keep the state of many small leaves in a few buffers."""

from adamw_jax.packing._pack import pack_small_leaves
from adamw_jax.packing._repack import repack_state

__all__ = [
    "pack_small_leaves",
    "repack_state",
]
