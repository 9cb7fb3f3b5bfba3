"""Estimate the parameters from loss values by a Kalman filter without velocity (KOALA-V).

    P <- P + q;    S = P |g|^2 + R;    direction = P (loss - target) / S g;    P <- P R / S

P is the variance of the parameters, q the process noise, R the measurement noise. R = 0 is Polyak's
step (loss - target) / |g|^2, the longest possible. With a constant |g| and R the variance before a
measurement tends to (q + sqrt(q^2 + 4 q R / |g|^2)) / 2.

>>> import jax.numpy as jnp
>>> tx = loss_filter(r=0.0)
>>> gradient = jnp.array([3.0, 4.0])
>>> tx.update(gradient, tx.init(gradient), value=jnp.float32(5.0))[0]
Array([0.6, 0.8], dtype=float32)
"""

from __future__ import annotations

import types
from typing import Annotated, Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import ScalarOrSchedule, declare, nonnegative, real
from adamw_jax._core.gradients import check_floating, check_gradient
from adamw_jax._core.options import Option, filled, shows_options
from adamw_jax._core.stage import Kind, Slopes, Stage, Step, stage
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._decay import decay_settings
from adamw_jax.moments._loss_measurement import (
    FilterOptions,
    Gains,
    Layers,
    declare_decay,
    declare_noise,
    gains,
    measured,
    noise_after,
    rates_or_none,
    start_value,
)

Tree = Any


class LossFilterState(NamedTuple):
    """State of KOALA-V, two scalars.

    Attributes:
      variance: P, the variance of the parameters after the last step.
      noise: R of the last step.
    """

    variance: jax.Array
    noise: jax.Array


class LossFilterOptions(FilterOptions, total=False):
    """Keywords of KOALA-V."""

    sigma: Annotated[
        float,
        Option(
            0.1,
            "variance P before the first step, >= 0; 0.1 (training script; the class has 1).",
        ),
    ]
    q: Annotated[
        ScalarOrSchedule,
        Option(1.0, "process noise, added to P at every step, >= 0; 1 (code)."),
    ]
    decay_in_direction: Annotated[
        bool,
        Option(
            False,
            "step along the gradient of the loss with decay, g + wd theta; the authors step along "
            "g.",
        ),
    ]


@shows_options
def loss_filter(rules: ParameterRules | None = None, **options: Unpack[LossFilterOptions]) -> Stage:
    """Make the stage of ``koala_v``. Arguments as for ``koala_v``.

    Only the decay is read from ``rules``.

    Returns:
      A stage *gradient -> direction* with two scalars of state. Its ``update`` needs ``value``, the
      loss, and for a decay the parameters.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.moments.loss_filter(sigma=0.1, q=1.0, r=None))
    """
    o = types.SimpleNamespace(**filled(LossFilterOptions, options))
    switch("decay_in_direction", o.decay_in_direction)
    layers, decays = Layers.of(o.stacked, o.per_leaf), o.weight_decay is not None
    declared = {
        **declare(q=nonnegative(o.q), target=real(o.target)),
        **declare_noise(o.r, o.alpha_r),
        **declare_decay(o.weight_decay, o.mask, rules),
    }
    first_variance = start_value(sigma=nonnegative(o.sigma))

    def init(params: Tree) -> LossFilterState:
        check_floating(params, "parameter")
        return LossFilterState(first_variance(), jnp.ones([], numerics.default_float()))

    def read(gradient: Tree, state: LossFilterState, step: Step) -> tuple[LossFilterState, Gains]:
        check_gradient(gradient, step.params)
        measurement = measured("koala_v", step.extra, step["target"])
        variance = state.variance + step["q"]
        noise = noise_after(state.noise, measurement, step)
        rates = rates_or_none(o.mask, rules, step)
        found = gains(gradient, rates, step, measurement, variance, noise, layers)
        return LossFilterState(variance, noise), found

    def apply(gradient: Tree, state: LossFilterState, step: Step) -> tuple[Tree, LossFilterState]:
        (variance, noise), found = read(gradient, state, step)
        along = found.error if o.decay_in_direction else jax.tree.map(numerics.widen, gradient)
        direction = jax.tree.map(
            lambda gain, x: numerics.scaled(lax.mul(variance, gain), x), found.gain, along
        )
        return direction, LossFilterState(variance * found.shrink, noise)

    def slopes(gradient: Tree, state: LossFilterState, step: Step) -> Tree:
        predicted, found = read(gradient, state, step)
        return jax.tree.map(lambda gain: lax.mul(predicted.variance, gain), found.gain)

    return stage(
        "loss_filter",
        Kind.GRADIENT,
        Kind.DIRECTION,
        apply,
        init=init,
        hyperparams=declared,
        needs_params=decays,
        slopes=Slopes(slopes, needs_loss=True),
        settings=decay_settings("weight_decay", o.mask, rules) if decays else None,
    )
