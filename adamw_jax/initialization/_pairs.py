"""Two batches that share half of their examples, from one.

    S = the first two thirds of a batch,    S~ = the last two thirds

The authors' code for translation splits so; that for vision takes S = (a, b), S~ = (a, c) of three
half batches, which is the same in another order. Zhu et al. 2021, arXiv 2102.08098.

>>> import jax.numpy as jnp
>>> one, other = overlapping_pair({"x": jnp.arange(6)})
>>> print(one["x"], other["x"])
[0 1 2 3] [2 3 4 5]
"""

from __future__ import annotations

from typing import Any

import jax


def overlapping_pair(batch: Any) -> tuple[Any, Any]:
    """S and S~ from one batch; ``map(overlapping_pair, batches)`` feeds ``gradinit``.

    Args:
      batch: a tree of arrays with the examples along the first axis, three or more; one or two
        that are over are left out.

    Returns:
      Two trees like ``batch``, of two thirds of its examples each.

    Raises:
      ValueError: an array has no three examples, the lengths differ, or there is no array.
    """
    shapes = [getattr(x, "shape", ()) for x in jax.tree.leaves(batch)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or min(lengths) < 3:
        raise ValueError(
            "batch must hold arrays with the same number of examples, 3 or more, along the first "
            f"axis, got the shapes {shapes}."
        )
    third = min(lengths) // 3
    return (
        jax.tree.map(lambda x: x[: 2 * third], batch),
        jax.tree.map(lambda x: x[third : 3 * third], batch),
    )
