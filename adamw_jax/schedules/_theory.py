"""Decay b1 as in the regret bounds of Adam and AMSGrad.

    b1_t = b1 lambda^(t-1)            (Kingma & Ba 2014, arXiv 1412.6980, Theorem 4.1)

>>> round(float(theory_decay(0.9, 0.5)(2)), 6)
0.225
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax._core import numerics
from adamw_jax._core.checks import number


def theory_decay(b1: float, decay: float) -> Callable[[Any], jax.Array]:
    """Make a schedule for ``b1`` that decays geometrically, ``b1 * decay**count``.

    Args:
      b1: value at the first step (count 0), in [0, 1).
      decay: lambda, in (0, 1); the paper's example is 1 - 1e-8.

    Returns:
      A function of the count of updates, from 0, to a scalar of the default float dtype.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.adam(1e-3, b1=aj.schedules.theory_decay(0.9, 1 - 1e-8))
    """
    b1 = number("b1", b1, least=0, below=1)
    # Computed on the host, because in float32 the paper's example would round to 1.
    rate = math.log(number("decay", decay, above=0, below=1))

    def schedule(count: Any) -> jax.Array:
        return b1 * jnp.exp(rate * jnp.asarray(count, numerics.default_float()))

    return schedule
