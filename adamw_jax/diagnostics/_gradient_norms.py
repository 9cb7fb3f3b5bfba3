"""Compute the norm of the gradient by parameter or by layer.

    norm of a layer = sqrt(sum of |g|^2 over its leaves)

Xiong et al., ICML 2020, arXiv 2002.04745, compare Transformers by these norms: with normalisation
after the residual sum the gradients shrink towards the input, with normalisation before the layers
they keep their size.

>>> import jax.numpy as jnp
>>> gradients = {"mlp": {"w": jnp.array([[3.0]]), "b": jnp.array([4.0])}, "out": jnp.zeros(2)}
>>> {name: float(norm) for name, norm in layer_gradient_norms(gradients).items()}
{'mlp/b': 4.0, 'mlp/w': 3.0, 'out': 0.0}
>>> {name: float(norm) for name, norm in layer_gradient_norms(gradients, depth=1).items()}
{'mlp': 5.0, 'out': 0.0}
"""

from __future__ import annotations

from typing import Any

import jax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import whole_number
from adamw_jax._core.gradients import check_floating, norms_of_groups

Tree = Any


def layer_gradient_norms(
    gradients: Tree, where: masks.Mask = None, *, depth: int | None = None
) -> dict[str, jax.Array]:
    """Return Euclidean norms by name, in the order of the tree.

    Args:
      gradients: any tree of floating-point arrays, such as gradients, updates or parameters.
      where: mask of the leaves to use, such as ``"*/kernel"``; see ``decoupled_decay``.
      depth: number of parts of a slash-separated name that make a layer, >= 1; None for one norm
        per leaf.

    Returns:
      Scalars of the default float dtype; the squares are summed in this dtype.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> gradients = {"first": {"kernel": jnp.array([3.0, 4.0])}, "last": {"kernel": jnp.ones(4)}}
      >>> norms = aj.diagnostics.layer_gradient_norms(gradients)
      >>> {name: float(norm) for name, norm in norms.items()}
      {'first/kernel': 5.0, 'last/kernel': 2.0}
    """
    check_floating(gradients, "gradient of")
    parts = None if depth is None else whole_number("depth", depth)
    chosen = jax.tree.leaves(masks.resolve(where, gradients, "where"))
    layers: dict[str, list[jax.Array]] = {}
    leaves = zip(numerics.leaf_names(gradients), jax.tree.leaves(gradients), strict=True)
    for use, (name, leaf) in zip(chosen, leaves, strict=True):
        if use:
            layer = "/".join(name.split("/")[:parts])
            layers.setdefault(layer, []).append(leaf)
    return dict(zip(layers, norms_of_groups([*layers.values()]), strict=True))
