"""``layer_gradient_norms``: the gradient's norm, by parameter or by layer.

    norm of a layer = sqrt(sum of |g|^2 over its leaves)

What Xiong et al., ICML 2020, arXiv 2002.04745, look at: in a Transformer with normalisation behind
the residual sum the gradients shrink towards the input, before it they keep their size.

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
    """Euclidean norms by name, in the order of the tree.

    Args:
      gradients: any tree of floating arrays; updates or parameters do as well.
      where: mask of the leaves to look at, see ``decoupled_decay``, such as ``"*/kernel"``.
      depth: how many parts of a slash-separated name make a layer; None for a norm of each leaf.

    Returns:
      Scalars of the default float dtype, summed in it.

    Raises:
      TypeError: a leaf is not floating.
      ValueError: the mask does not fit, or ``depth`` is not a whole number >= 1.
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
