"""Split one batch into two that share half of their examples.

    S = the first two thirds of a batch,    S~ = the last two thirds

The authors' code for translation does this. Their code for vision takes S = (a, b), S~ = (a, c) of
three half batches a, b, c, which is the same in another order. Zhu et al. 2021, arXiv 2102.08098.

>>> import jax.numpy as jnp
>>> one, other = overlapping_pair({"x": jnp.arange(6)})
>>> print(one["x"], other["x"])
[0 1 2 3] [2 3 4 5]
"""

from __future__ import annotations

from typing import Any

import jax


def overlapping_pair(batch: Any) -> tuple[Any, Any]:
    """Return S and S~ from one batch; give ``map(overlapping_pair, batches)`` to ``gradinit``.

    Args:
      batch: a tree of arrays with three or more examples along the first axis. If their number is
        not a multiple of three, the last one or two are left out.

    Returns:
      Two trees like ``batch``, each with two thirds of its examples.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> first, second = aj.initialization.overlapping_pair(jnp.arange(8))
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
