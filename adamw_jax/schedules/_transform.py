"""Apply a 1cycle of learning rate and momentum as one transformation.

    update = -lr_t direction_t,    direction_t with the decay rate momentum_t

>>> import jax.numpy as jnp, optax
>>> from adamw_jax import one_cycle, scale_by_adam
>>> cycle = one_cycle(1e-2, total_steps=100)
>>> tx = optax.chain(optax.clip(1.0), scale_by_one_cycle(cycle, scale_by_adam, b2=0.99))
>>> state = tx.init(jnp.zeros(2))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optax

from adamw_jax._core.compose import Composed, compose
from adamw_jax._core.stage import Stage
from adamw_jax.update import scale_by_learning_rate


def scale_by_one_cycle(
    cycle: Any, direction: Callable[..., Composed] | None = None, **options: Any
) -> Stage | Composed:
    """Scale a direction by the learning rate of a 1cycle, and set its momentum.

    Args:
      cycle: from ``one_cycle(...)``, or any object with ``learning_rate`` and ``momentum``.
      direction: a ``scale_by_...`` of this library. Its ``b1`` (``momentum`` for SGD) follows the
        cycle, unless it is None. Without a direction the transformation only multiplies by minus
        the learning rate, for a chain with stages that already use ``cycle.momentum``.
      **options: further arguments of ``direction``.

    Returns:
      A transformation for ``optax.chain``, with the same steps as the optimizer, such as
      ``adam(cycle, b2=0.99)``.

    Raises:
      TypeError: options are given without a direction.
      ValueError: the options and the cycle both have a momentum.

    Example:
      >>> import optax, adamw_jax as aj
      >>> cycle = aj.one_cycle(1e-2, total_steps=100)
      >>> tx = optax.chain(aj.schedules.scale_by_one_cycle(cycle, aj.scale_by_adam))
    """
    if not callable(getattr(cycle, "learning_rate", None)):
        raise TypeError(f"cycle must come from one_cycle(...), got {cycle!r}.")
    if direction is None:
        if options:
            raise TypeError(
                f"options {sorted(options)} are arguments of a direction: give direction, or leave "
                "them out."
            )
        return scale_by_learning_rate(cycle.learning_rate)
    if isinstance(direction, optax.GradientTransformation):
        raise TypeError(
            "direction must be a function such as scale_by_adam, not its result, got "
            f"{direction!r}."
        )
    moving = _momentum(cycle, direction, options)
    correction = getattr(cycle, "bias_correction", None)
    if moving and correction and getattr(direction, "corrects", lambda _: False)(options):
        options = {"bias_correction": correction, **options}
    made = direction(**{**options, **moving})
    return compose(made, scale_by_learning_rate(cycle.learning_rate))


def _momentum(cycle: Any, direction: Callable[..., Composed], options: Any) -> dict[str, Any]:
    """Return the argument of ``direction`` that follows the cycle; None (no buffer) stays None."""
    momentum = getattr(cycle, "momentum", None)
    parameters = inspect.signature(direction).parameters
    name = next((name for name in ("b1", "momentum") if name in parameters), None)
    if momentum is None or name is None:
        return {}
    given = options.get(name)
    if given is not None and given is not momentum:
        raise ValueError(
            f"scale_by_one_cycle() got {name}={given!r}, but {type(cycle).__name__} has a schedule "
            f"of momentum: leave {name} out, or build the schedules without momentum."
        )
    return {} if options.get(name, parameters[name].default) is None else {name: momentum}
