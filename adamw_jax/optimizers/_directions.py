"""Provide ``scale_by_x``, the direction of each optimizer x: its stages before the learning rate.

``register`` makes them. ``tools/optimizer_exports.py`` writes ``_directions.pyi``, which shows
their signatures to editors and type checkers.
"""

from adamw_jax.optimizers._registry import info, list_optimizers

_ROWS = [info(name) for name in list_optimizers()]
globals().update({f"scale_by_{row.name}": row.direction for row in _ROWS if row.direction})
