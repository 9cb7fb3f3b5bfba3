"""Decay weights in proportion to Adafactor's effective learning rate.

    a_t = rho_t max(min_scale, RMS(theta))                  the effective learning rate
    learning_rate        update <- update - a_t wd theta
    raw_learning_rate    update <- update - lr_t wd theta               (PyTorch)
    proximal             update <- (update - a_t wd theta) / (1 + a_t wd)

rho_t is the learning rate or relative step, wd the coefficient, theta the parameters before the
step. ``decoupled_decay`` comes before the learning rate, so its decay would enter a momentum of
updates; this stage comes after it.

>>> effective_decay(0.1, 1e-2).spec.kinds
'update -> update'
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import one_of, switch
from adamw_jax._core.declare import ScalarOrSchedule, declare, length, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._decay import decay_hyperparams, decay_rates, decay_settings
from adamw_jax.direction._rule import Factor
from adamw_jax.update._relative_step import learning_rates

Tree = Any

FORMS = ("learning_rate", "raw_learning_rate", "proximal")


@shows_options
def effective_decay(
    weight_decay: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    mask: masks.Mask = None,
    form: str = "learning_rate",
    *,
    relative: bool = False,
    rules: ParameterRules | None = None,
) -> Stage:
    """Decay the weights after the learning rate, scaled like the step.

    Args:
      weight_decay: coefficient >= 0, or a schedule of it.
      learning_rate: the learning rate of the recipe.
      mask: which leaves decay, as for ``decoupled_decay``.
      form: ``"learning_rate"`` multiplies by every factor on the direction: the learning rate, the
        relative step, and the scale of the parameter if the recipe has ``scale_by_parameter_rms``.
        ``"raw_learning_rate"`` multiplies only by ``learning_rate``. ``"proximal"`` subtracts as
        the first form, then divides by 1 plus its coefficient.
      relative: whether the learning rate is the upper bound of a relative step.
      rules: per-parameter coefficients and learning rates.

    Returns:
      A stage *update -> update*.
    """
    one_of("form", form, FORMS)
    switch("relative", relative)

    def apply(update: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        scales, bounded = None, False
        if form != "raw_learning_rate":
            scales, bounded = step.facts.parameter_scale, relative
        if scales is None:
            scales = jax.tree.map(lambda _: numerics.scalar(1.0), step.params)
        lengths = learning_rates(rules, step, step.params, relative=bounded)

        def leaf(
            rate: Factor, length: Factor, scale: jax.Array, u: jax.Array, p: jax.Array
        ) -> jax.Array:
            if not isinstance(rate, jax.Array) or not isinstance(length, jax.Array):
                return u
            decay = rate * length * scale
            moved = lax.sub(numerics.widen(u), numerics.scaled(decay, numerics.widen(p)))
            return numerics.scaled(1.0 / (1.0 + decay), moved) if form == "proximal" else moved

        rates = decay_rates(mask, rules, step)
        return jax.tree.map(leaf, rates, lengths, scales, update, step.params), state

    return stage(
        "effective_decay",
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        hyperparams=declare(
            weight_decay=nonnegative(weight_decay), learning_rate=length(learning_rate)
        )
        | decay_hyperparams(rules, with_learning_rate=True),
        needs_params=True,
        settings=decay_settings("weight_decay", mask, rules),
    )
