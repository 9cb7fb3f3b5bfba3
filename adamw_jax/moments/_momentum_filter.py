"""Estimate parameters and a velocity from loss values by a Kalman filter (KOALA-M).

    predict    theta <- theta + p;    p <- kappa p
               P <- F P F' + diag(Q, qv),   F = (1 1; 0 kappa)
    measure    S = P11 |e|^2 + R;     theta <- theta - lr P11 l/S e;    p <- p - lr P21 l/S e
               P <- P - h P_1 P_1',   h = |e|^2 / S,  P_1 the first column
    Q <- 0.9 Q + 0.1 |E - theta| / n,    E <- 0.9 E + 0.1 theta

p is the velocity, P the covariance of parameter and velocity, n the number of parameters; e and l
are defined in ``_loss_measurement``. The gradient is taken at the *predicted* theta. So an update
includes the next prediction of theta: the parameters between steps are predictions, and
``eval_params`` subtracts the velocity. The next update predicts p and P, which needs no gradient.
"""

from __future__ import annotations

import functools
import types
from typing import Annotated, Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import ScalarOrSchedule, declare, fraction, length, nonnegative, real
from adamw_jax._core.gradients import check_floating, check_gradient, size, square_norm_of_tree
from adamw_jax._core.options import Option, filled, shows_options
from adamw_jax._core.sequential import after
from adamw_jax._core.stage import Kind, Slopes, Stage, Step, stage
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._decay import decay_settings
from adamw_jax.direction._rules import values_of
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
from adamw_jax.moments._parts import zeros

Tree = Any

SHARE = 0.1
"""Weight of the newest entry in the averages of the parameters and of Q (paper and code)."""


class Covariance(NamedTuple):
    """The 2x2 covariance of parameter and velocity, three scalars shared by all elements."""

    parameter: jax.Array
    cross: jax.Array
    velocity: jax.Array

    def predicted(self, kappa: jax.Array, q: jax.Array, qv: jax.Array) -> Covariance:
        """Return F P F' + diag(q, qv)."""
        drift = self.cross + self.velocity
        return Covariance(
            self.parameter + self.cross + drift + q,
            kappa * drift,
            kappa * kappa * self.velocity + qv,
        )

    def corrected(self, shrink: jax.Array, information: jax.Array) -> Covariance:
        """Return P - h P_1 P_1', which stays positive in float32."""
        square = self.cross * self.cross
        # Rounding may make the difference too small for a correlation of at most 1.
        least = square / numerics.nonzero(self.parameter) * shrink
        left = self.velocity - square * information
        return Covariance(self.parameter * shrink, self.cross * shrink, lax.max(left, least))


class MomentumFilterState(NamedTuple):
    """State of KOALA-M; ``eval_params`` gives the parameters before the last prediction.

    Attributes:
      covariance: P after the last step.
      drift: Q, the process noise of the parameters.
      noise: R of the last step.
      velocity: p of the last step, params-shaped; it is already added to the parameters.
      average: running average E of the parameters, params-shaped.
    """

    covariance: Covariance
    drift: jax.Array
    noise: jax.Array
    velocity: Tree
    average: Tree
    exact = ("average",)

    def eval_params(self) -> tuple[Tree, Any]:
        """Return the velocity, and a function that subtracts it from the parameters."""

        def evaluate(velocity: jax.Array, theta: jax.Array) -> jax.Array:
            return lax.sub(numerics.widen(theta), numerics.widen(velocity))

        return self.velocity, evaluate


class MomentumFilterOptions(FilterOptions, total=False):
    """Keywords of KOALA-M."""

    sw: Annotated[
        float,
        Option(
            0.1,
            "variance of the parameters before the first step, >= 0; 0.1 (code).",
        ),
    ]
    sv: Annotated[
        float, Option(0.1, "variance of the velocity before the first step, >= 0; 0.1 (code).")
    ]
    sc: Annotated[float, Option(0.0, "their covariance before the first step; 0 (code).")]
    kappa: Annotated[
        ScalarOrSchedule, Option(0.9, "factor on the velocity, in [0, 1]; 0.9 (paper).")
    ]
    qw: Annotated[
        float,
        Option(
            0.01,
            "process noise of the parameters before the first step, >= 0; 0.01 (code). From then "
            "on it is estimated: the distance of the parameters from their running average, "
            "divided by the number of parameters.",
        ),
    ]
    qv: Annotated[
        ScalarOrSchedule, Option(0.01, "process noise of the velocity, >= 0; 0.01 (code).")
    ]
    squared_drift: Annotated[
        bool,
        Option(
            False,
            "use the paper's process noise, the squared distance from a running average that "
            "starts at the parameters and includes the current ones. The authors' code averages "
            "the distance itself, and its running average starts at 0.",
        ),
    ]


@shows_options
def momentum_filter(
    learning_rate: ScalarOrSchedule = 1.0,
    rules: ParameterRules | None = None,
    dtype: Any = None,
    **options: Unpack[MomentumFilterOptions],
) -> Stage:
    """Make the stage of ``koala_m``. Arguments as for ``koala_m``.

    ``dtype`` is the storage dtype of velocity and average, None for float32 (float64 under x64).
    The stage applies the learning rate itself, because the velocity includes it. It reads
    the learning rates and decays of ``rules``; to freeze leaves use ``compose(frozen=...)``.

    Returns:
      A stage *gradient -> update* with two values of state per parameter. Its ``update`` needs the
      parameters and ``value``, the loss.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(aj.moments.momentum_filter(0.1))
    """
    o = types.SimpleNamespace(**filled(MomentumFilterOptions, options))
    switch("squared_drift", o.squared_drift)
    layers = Layers.of(o.stacked, o.per_leaf)
    declared = {
        **declare(
            learning_rate=length(learning_rate),
            kappa=fraction(o.kappa),
            qv=nonnegative(o.qv),
            target=real(o.target),
        ),
        **declare_noise(o.r, o.alpha_r),
        **({} if rules is None else rules.declared("learning_rate")),
        **declare_decay(o.weight_decay, o.mask, rules),
    }
    first = [
        start_value(sw=nonnegative(o.sw)),
        start_value(sc=real(o.sc)),
        start_value(sv=nonnegative(o.sv)),
    ]
    first_drift = start_value(qw=nonnegative(o.qw))
    _check_covariance(o.sw, o.sc, o.sv)

    def init(params: Tree) -> MomentumFilterState:
        check_floating(params, "parameter")
        one = jnp.ones([], numerics.default_float())
        covariance = Covariance(*(value() for value in first))
        return MomentumFilterState(
            covariance, first_drift(), one, zeros(params, dtype), zeros(params, dtype)
        )

    def read(
        gradient: Tree, state: MomentumFilterState, step: Step
    ) -> tuple[MomentumFilterState, Tree, Gains]:
        """Return the predicted state, the parameters and their gains."""
        check_gradient(gradient, state.velocity)
        params = jax.tree.map(lambda p: numerics.widen(jnp.asarray(p)), step.params)
        velocity = jax.tree.map(numerics.widen, state.velocity)
        average = jax.tree.map(numerics.widen, state.average)
        measurement = measured("koala_m", step.extra, step["target"])
        before = jax.tree.map(lax.sub, params, velocity)
        if o.squared_drift:
            share = lax.select(step.count == 0, numerics.scalar(1.0), numerics.scalar(SHARE))
            average = jax.tree.map(functools.partial(_towards, share), average, before)
            drift = _square_distance(average, before) / _number(params)
        else:
            newest = numerics.root(_square_distance(average, before)) / _number(params)
            drift = (1.0 - SHARE) * state.drift + SHARE * newest
        # Overflowed, it says nothing. (A norm that scales first would write the difference out.)
        drift = lax.select(jnp.isinf(drift), state.drift, drift)
        covariance = state.covariance.predicted(step["kappa"], drift, step["qv"])
        noise = noise_after(state.noise, measurement, step)
        rates = rates_or_none(o.mask, rules, step)
        found = gains(gradient, rates, step, measurement, covariance.parameter, noise, layers)
        return MomentumFilterState(covariance, drift, noise, velocity, average), params, found

    def apply(
        gradient: Tree, state: MomentumFilterState, step: Step
    ) -> tuple[Tree, MomentumFilterState]:
        (covariance, drift, noise, velocity, average), params, found = read(gradient, state, step)
        rates = values_of(rules, "learning_rate", step, step.params)
        pull = jax.tree.map(_times, rates, found.gain)

        def moved(x: jax.Array, error: jax.Array) -> jax.Array:
            return numerics.scaled(covariance.parameter * x, error)

        def slowed(v: jax.Array, stored: jax.Array, x: jax.Array, error: jax.Array) -> jax.Array:
            kept = numerics.scaled(step["kappa"], v)
            new = lax.sub(kept, numerics.scaled(covariance.cross * x, error))
            return numerics.cast(new, stored.dtype)

        back = jax.tree.map(moved, pull, found.error)
        new_velocity = jax.tree.map(slowed, velocity, state.velocity, pull, found.error)
        update = jax.tree.map(lambda v, b: lax.sub(numerics.widen(v), b), new_velocity, back)
        if not o.squared_drift:

            def averaged(
                informative: jax.Array, e: jax.Array, p: jax.Array, b: jax.Array
            ) -> jax.Array:
                return lax.select(
                    informative, _towards(numerics.scalar(SHARE), e, lax.sub(p, b)), e
                )

            average = jax.tree.map(averaged, found.informative, average, params, back)
        # The average reads the parameters, which the update overwrites.
        update = after(update, average, kept=True)
        return update, MomentumFilterState(
            covariance.corrected(found.shrink, found.information),
            drift,
            noise,
            new_velocity,
            numerics.cast_like(average, state.average),
        )

    def slopes(gradient: Tree, state: MomentumFilterState, step: Step) -> Tree:
        predicted, _, found = read(gradient, state, step)
        both = lax.add(predicted.covariance.parameter, predicted.covariance.cross)
        return jax.tree.map(lambda gain: lax.mul(both, gain), found.gain)

    def settings(params: Tree) -> dict[str, Tree]:
        words = {} if rules is None else rules.settings(params)
        if o.weight_decay is not None:
            words |= decay_settings("weight_decay", o.mask, rules)(params)
        return words

    return stage(
        "momentum_filter",
        Kind.GRADIENT,
        Kind.UPDATE,
        apply,
        init=init,
        hyperparams=declared,
        needs_params=True,
        slopes=Slopes(slopes, needs_loss=True),
        settings=settings,
        weights="own",
    )


def _times(rate: Any, gain: jax.Array) -> jax.Array:
    return jnp.zeros_like(gain) if not isinstance(rate, jax.Array) else numerics.scaled(rate, gain)


def _towards(share: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return lax.add(old, numerics.scaled(share, lax.sub(new, old)))


def _square_distance(a: Tree, b: Tree) -> jax.Array:
    return square_norm_of_tree(jax.tree.map(lax.sub, a, b))


def _number(tree: Tree) -> int:
    """Return the number of parameters, at least 1."""
    return max(1, sum(size(x) for x in jax.tree.leaves(tree)))


def _check_covariance(sw: Any, sc: Any, sv: Any) -> None:
    """Raise an error if numbers known now cannot be a covariance."""
    known = all(isinstance(x, (int, float)) for x in (sw, sc, sv))
    if known and sc * sc > sw * sv:
        raise ValueError(
            f"sc is a covariance, so |sc| must be at most sqrt(sw sv) = {(sw * sv) ** 0.5:g}, "
            f"got {sc!r}."
        )
