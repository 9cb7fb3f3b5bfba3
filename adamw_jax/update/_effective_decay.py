"""Decoupled weight decay by the length of the step that Adafactor takes.

    a_t = rho_t max(min_scale, RMS(theta))                  the effective learning rate
    learning_rate        update <- update - a_t wd theta
    raw_learning_rate    update <- update - lr_t wd theta               (PyTorch)
    proximal             update <- (update - a_t wd theta) / (1 + a_t wd)

``decoupled_decay`` stands before the learning rate, where it would enter a momentum of updates;
this one stands behind it. Every form reads the parameters before the step.

>>> effective_decay(0.1, 1e-2).spec.kinds
'update -> update'
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import one_of, switch
from adamw_jax._core.declare import ScalarOrSchedule, declare, length, nonnegative
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._decay import decay_factors
from adamw_jax.update._relative_step import relative_step

Tree = Any

FORMS = ("learning_rate", "raw_learning_rate", "proximal")


def effective_decay(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    mask: masks.Mask = None,
    form: str = "learning_rate",
    *,
    relative: bool = False,
    rules: ParameterRules | None = None,
) -> Stage:
    """Weight decay behind the learning rate, as long as the step is.

    Args:
      weight_decay: coefficient >= 0, or a schedule of it.
      learning_rate: the recipe's own.
      mask: which leaves decay; see ``decoupled_decay``.
      form: ``"learning_rate"`` multiplies by all that multiplies the direction: the learning rate,
        the relative step, and the scale of the parameter where ``scale_by_parameter_rms`` stands
        before. ``"raw_learning_rate"`` multiplies by ``learning_rate`` alone. ``"proximal"``
        divides by 1 plus the coefficient of the first.
      relative: whether the learning rate caps a relative step.
      rules: per-parameter multipliers of the coefficient.

    Returns:
      A stage *update -> update*.
    """
    one_of("form", form, FORMS)
    switch("relative", relative)

    def apply(update: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        scales, rate = None, step["learning_rate"]
        if form != "raw_learning_rate":
            scales = step.facts.parameter_scale
            rate = relative_step(rate, step.count) if relative else rate
        if scales is None:
            scales = jax.tree.map(lambda _: jnp.ones_like(rate), step.params)
        rate = rate * step["weight_decay"]

        def leaf(factor: float, scale: jax.Array, u: jax.Array, p: jax.Array) -> jax.Array:
            if factor == 0:
                return u
            decay = rate * scale if factor == 1 else rate * scale * factor
            moved = lax.sub(numerics.widen(u), numerics.scaled(decay, numerics.widen(p)))
            return numerics.scaled(1.0 / (1.0 + decay), moved) if form == "proximal" else moved

        factors = decay_factors(mask, rules, step.params, with_learning_rate=True)
        return jax.tree.map(leaf, factors, scales, update, step.params), state

    return stage(
        "effective_decay",
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        hyperparams=declare(
            weight_decay=nonnegative(weight_decay), learning_rate=length(learning_rate)
        ),
        needs_params=True,
    )
