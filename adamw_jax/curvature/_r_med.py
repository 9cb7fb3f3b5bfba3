"""How uneven the diagonal of the Hessian is: its largest entry over its median.

    R_med = max_i |H_ii| / median_i |H_ii|

Jiang, Malik & Li, NeurIPS 2023, arXiv 2211.02254: adaptive methods lead to places where it is
small. It is a ratio of diagonal entries, not of eigenvalues. Absolute values and the form per block
are our reading. Take the exact diagonal: the noise of an estimated one enters both the maximum and
the median, and with 20 Hutchinson probes the ratio of a small network is off by a third.

>>> import jax.numpy as jnp
>>> r_med({"b": jnp.array([1.0, -8.0, 2.0]), "w": jnp.array([[2.0, 4.0]])}, per_block=False)
Array(4., dtype=float32)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax.curvature._products import flat_map, real_params

Tree = Any


def r_med(
    diag: Tree, *, per_block: bool = True, absolute: bool = True
) -> dict[str, jax.Array] | jax.Array:
    """The ratio of the largest to the median entry of a diagonal.

    Args:
      diag: a diagonal as ``hessian_diag`` gives it, a tree of arrays.
      per_block: one ratio a leaf, by its slash-separated name. False takes one over all leaves,
        which is mostly about the scales of layers and biases.
      absolute: of absolute values; False keeps the signs.

    Returns:
      Scalars of float32 at least, by leaf, or one. Of an even number of entries the median is the
      mean of the middle two. A zero median gives inf, an all-zero diagonal NaN.

    Raises:
      TypeError: a leaf is not real floating-point.
    """
    switch("per_block", per_block)
    switch("absolute", absolute)
    diag = real_params(diag)

    def ratio(tree: Tree) -> jax.Array:
        entries = flat_map(lambda x: x, tree)[1]
        entries = jnp.abs(entries) if absolute else entries
        return jnp.max(entries) / jnp.median(entries)

    if not per_block:
        return ratio(diag)
    return dict(zip(numerics.leaf_names(diag), map(ratio, jax.tree.leaves(diag)), strict=True))
