"""Measure how uneven the diagonal of the Hessian is: its largest entry over its median.

    R_med = max_i |H_ii| / median_i |H_ii|

Jiang, Malik & Li, NeurIPS 2023, arXiv 2211.02254: adaptive methods lead to points where it is
small. It is a ratio of diagonal entries, not of eigenvalues. Absolute values and one ratio per leaf
are our interpretation. Use the exact diagonal: noise changes both the maximum and the median, and
with 20 Hutchinson probes the ratio of a small network is off by a third.

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
    """Compute the ratio of the largest to the median entry of a diagonal.

    Args:
      diag: a diagonal as ``hessian_diag`` gives it, a tree of arrays.
      per_block: compute one ratio per leaf. False computes one over all leaves, which mostly
        compares the scales of layers and biases.
      absolute: use absolute values; False keeps the signs.

    Returns:
      A dict from the slash-separated names of leaves to scalars, or one scalar; float32 or wider.
      The median of an even number of entries is the mean of the middle two. A median of 0 gives
      inf, a diagonal of zeros NaN.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> float(aj.curvature.r_med({"w": jnp.array([1.0, 2.0, 8.0])}, per_block=False))
      4.0
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
