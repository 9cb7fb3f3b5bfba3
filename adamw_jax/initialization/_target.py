"""Compute the first step A[g] of the optimizer that will train, and the norm n of the gradient.

    SGD:   A[g] = g / |g|_2, or g;    n = |g|_2
    Adam:  A[g] = sign(g);            n = |g|_1

Adam's first step is the sign of the gradient, up to eps. After Zhu, Ni, Xu, Kong, Huang &
Goldstein, NeurIPS 2021, arXiv 2102.08098, and their code.

>>> import jax.numpy as jnp
>>> gradient = {"w": jnp.array([3.0, 0.0]), "b": jnp.array([-4.0])}
>>> print(gradient_norm(gradient, "sgd"), gradient_norm(gradient, "adam"))
5.0 7.0
>>> first_step(gradient, "adam")["b"]
Array([-1.], dtype=float32)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of, switch
from adamw_jax._core.gradients import square_norm_of_tree

Tree = Any

ALGORITHMS = ("sgd", "adam")


def gradient_norm(gradient: Tree, algorithm: str) -> jax.Array:
    """Return n(g), the norm over all leaves together.

    Args:
      gradient: any tree of floating-point arrays.
      algorithm: ``"sgd"`` for the Euclidean norm, ``"adam"`` for the sum of magnitudes.

    Returns:
      A scalar of the default float dtype. The Euclidean norm of 0 is tiny but positive. If its
      square overflows it is infinite, and the search skips the step.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> float(aj.initialization.gradient_norm({"w": jnp.array([3.0, 4.0])}, "sgd"))
      5.0
    """
    one_of("algorithm", algorithm, ALGORITHMS)
    if algorithm == "sgd":
        return numerics.root(square_norm_of_tree(gradient))
    sums = [_sum_of_magnitudes(numerics.widen(g)) for g in jax.tree.leaves(gradient)]
    return sum(sums, jnp.zeros([], numerics.default_float()))


def first_step(gradient: Tree, algorithm: str, normalize: bool = True) -> Tree:
    """Return A[g], the direction of the first step, without the learning rate.

    Args:
      gradient: any tree of floating-point arrays.
      algorithm: ``"sgd"`` or ``"adam"``.
      normalize: whether SGD divides the gradient by its norm; Adam ignores it.

    Returns:
      A tree like ``gradient``, in float32 or wider. Complex leaves of ``jax.grad`` are conjugated,
      so that the step descends.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> step = aj.initialization.first_step({"w": jnp.array([3.0, -4.0])}, "adam")
    """
    one_of("algorithm", algorithm, ALGORITHMS)
    switch("normalize", normalize)
    wide = jax.tree.map(lambda g: jnp.conj(numerics.widen(g)), gradient)
    if algorithm == "adam":
        return jax.tree.map(lax.sign, wide)
    if not normalize:
        return wide
    factor = 1.0 / gradient_norm(wide, "sgd")
    return jax.tree.map(lambda g: numerics.scaled(factor, g), wide)


def _sum_of_magnitudes(x: jax.Array) -> jax.Array:
    return lax.reduce_sum(lax.abs(x), tuple(range(x.ndim)))
