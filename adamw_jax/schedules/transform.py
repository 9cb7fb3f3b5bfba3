"""``scale_by_one_cycle``: 1cycle over learning rate and momentum as one transformation.

    update = -lr_t direction_t,    where the direction's first moment decays at momentum_t

>>> import jax.numpy as jnp, optax
>>> from adamw_jax import one_cycle, scale_by_adam
>>> cycle = one_cycle(1e-2, total_steps=100)
>>> tx = optax.chain(optax.clip(1.0), scale_by_one_cycle(cycle, scale_by_adam, b2=0.99))
>>> state = tx.init(jnp.zeros(2))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from adamw_jax.compose import Composed, compose
from adamw_jax.learning_rate import scale_by_learning_rate
from adamw_jax.stage import Stage


def scale_by_one_cycle(
    cycle: Any, direction: Callable[..., Composed] | None = None, **options: Any
) -> Stage | Composed:
    """Drives a step by a 1cycle: learning rate and momentum from one object.

    Args:
      cycle: from ``one_cycle(...)``, or any object with ``learning_rate`` and ``momentum``.
      direction: a ``scale_by_...`` of this library, whose ``b1`` (``momentum`` for SGD) follows the
        cycle: gradients in, updates out. None only multiplies by minus the learning rate, for a
        chain whose stages already take ``cycle.momentum``.
      **options: further arguments of ``direction``.

    Returns:
      A transformation for ``optax.chain``; the trajectory is that of the whole optimizer given the
      cycle, ``adam(cycle, b2=0.99)``.

    Raises:
      TypeError: ``cycle`` has no schedules, or options without a direction.
    """
    if not callable(getattr(cycle, "learning_rate", None)):
        raise TypeError(f"cycle must come from one_cycle(...), got {cycle!r}.")
    if direction is None:
        if options:
            raise TypeError(f"options {sorted(options)} need a direction to go to.")
        return scale_by_learning_rate(cycle.learning_rate)
    if isinstance(direction, optax.GradientTransformation):
        raise TypeError("direction must be the function, scale_by_adam, not its result.")
    momentum = getattr(cycle, "momentum", None)
    made = direction(**options) if momentum is None else direction(momentum, **options)
    return compose(made, scale_by_learning_rate(cycle.learning_rate))
