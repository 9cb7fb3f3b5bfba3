"""Compute the gain of each leaf from one loss value, for both KOALA filters.

    R <- alpha_r R + (1 - alpha_r) mean((loss_i - target)^2)               unless R is given
    e = g + wd theta;    l = loss - target + wd/2 |theta|^2                leaf by leaf
    S = P |e|^2 + R;     gain = l / S

R is the measurement noise, P the variance of the parameters, wd the coefficient of decay. A leaf is
a layer of the paper: each has its own S, and P is shared. A leaf may also stack several layers, and
``per_leaf=False`` makes all leaves one layer. The largest h = |e|^2 / S is that of the layer with
the largest |e|. So P - P^2 h = P R / (P max |e|^2 + R), without cancellation, so it stays positive
in float32. If the measurement or its square is not finite, P and R do not change. An infinite one
moves nothing; a NaN shows in the update.

>>> import jax.numpy as jnp
>>> measured("koala_v", {"value": jnp.float32(2.0)}, jnp.float32(0.5))
Measurement(residual=Array(1.5, dtype=float32), mean_square=Array(2.25, dtype=float32))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import switch
from adamw_jax._core.declare import (
    Hyperparameter,
    Ranged,
    ScalarOrSchedule,
    decay_rate,
    declare,
    nonnegative,
    real_number,
)
from adamw_jax._core.gradients import check_uncut, square_norm
from adamw_jax._core.masks import Mask
from adamw_jax._core.options import Option
from adamw_jax._core.stage import Step
from adamw_jax.direction import ParameterRules
from adamw_jax.direction._decay import decay_hyperparams, decay_rates

Tree = Any

LEAST_NORM = 1e-9
"""Layers whose gradient has a smaller norm do not move and measure nothing (authors' code)."""


class FilterOptions(TypedDict, total=False):
    """Keywords of both filters."""

    r: Annotated[
        ScalarOrSchedule | None,
        Option(
            None,
            "measurement noise R, >= 0; None estimates it: an average of ``value_sq_mean`` that "
            "starts at 1.",
        ),
    ]
    alpha_r: Annotated[
        ScalarOrSchedule, Option(0.9, "decay rate of that average, in [0, 1); 0.9 (paper).")
    ]
    target: Annotated[ScalarOrSchedule, Option(0.0, "the loss to reach; 0.")]
    weight_decay: Annotated[
        ScalarOrSchedule | None,
        Option(
            None,
            "coefficient of the term wd/2 |theta|^2 that is added to the loss of each leaf, a "
            "number or schedule; None for no term. It enters the loss and the norm, and in KOALA-M "
            "also the direction.",
        ),
    ]
    mask: Annotated[
        Mask,
        Option(
            None,
            "which leaves decay: tree of bools, function of the parameters, or name pattern.",
        ),
    ]
    stacked: Annotated[
        Mask,
        Option(
            None,
            "which leaves stack layers along their first axis (``nnx.scan``), given like ``mask``; "
            "each layer then has its own S. None for no leaf.",
        ),
    ]
    per_leaf: Annotated[
        bool,
        Option(
            True,
            "each leaf is a layer with its own S (the layer-wise form of paper and code); False "
            "uses one S for all leaves.",
        ),
    ]


class Measurement(NamedTuple):
    """The loss minus its target, and the mean of its square over the batch: two scalars."""

    residual: jax.Array
    mean_square: jax.Array


class Gains(NamedTuple):
    """The gains that a measurement gives.

    Attributes:
      error: e, the gradient with decay, params-shaped.
      gain: l / S, a scalar per leaf, or shaped like the leaf if it stacks layers; 0 if the layer
        measures nothing.
      informative: whether the layer measures something, shaped like ``gain``.
      shrink: R / S of the most informative layer; the shared variance is multiplied by it.
      information: |e|^2 / S of that layer.
    """

    error: Tree
    gain: Tree
    informative: Tree
    shrink: jax.Array
    information: jax.Array


class Layers(NamedTuple):
    """The layers, each with its own S.

    Attributes:
      stacked: the leaves that stack layers along their first axis.
      per_leaf: whether each of the other leaves is a layer; otherwise all leaves are one layer.
    """

    stacked: masks.Mask
    per_leaf: bool

    @classmethod
    def of(cls, stacked: masks.Mask, per_leaf: bool) -> Layers:
        """Check and make the layers."""
        switch("per_leaf", per_leaf)
        if stacked is not None and not per_leaf:
            raise ValueError(
                "stacked names leaves of several layers, but per_leaf=False makes all leaves one "
                "layer: leave one of the two out."
            )
        return cls(stacked, per_leaf)


def measured(name: str, extra: Mapping[str, Any], target: jax.Array) -> Measurement:
    """Return the measurement from the extra arguments of ``update``."""
    value = extra.get("value")
    if value is None:
        raise ValueError(
            f"{name} needs the loss, but update got no value: call "
            "tx.update(gradients, state, params, value=loss) with the loss of these gradients. "
            "optax.chain and the wrappers pass it on."
        )
    value = numerics.scalar(real_number(value, "value, the loss, is"))
    residual = value - target
    mean_square = extra.get("value_sq_mean")
    if mean_square is None:
        return Measurement(residual, residual * residual)
    mean_square = numerics.scalar(real_number(mean_square, "value_sq_mean is"))
    shifted = mean_square - target * (value + residual)
    return Measurement(residual, lax.max(shifted, jnp.zeros_like(shifted)))


def declare_noise(
    r: ScalarOrSchedule | None, alpha_r: ScalarOrSchedule
) -> dict[str, Hyperparameter]:
    """Declare ``r``, or if it is None ``alpha_r``, the decay rate of its estimate."""
    alpha = declare(alpha_r=decay_rate(alpha_r))
    return alpha if r is None else declare(r=nonnegative(r))


def noise_after(noise: jax.Array, measurement: Measurement, step: Step) -> jax.Array:
    """Return R for this step."""
    if "r" in step.values:
        return step["r"]
    alpha, square = step["alpha_r"], measurement.mean_square
    return lax.select(lax.is_finite(square), alpha * noise + (1.0 - alpha) * square, noise)


def start_value(**named: Ranged) -> Any:
    """Check a scalar of the state and return a function that makes its initial value."""
    (checked,) = declare(**named).values()
    # Copy, because the caller's buffer may be donated.
    return lambda: jnp.array(checked.at(jnp.zeros([], jnp.int32)), copy=True)


def declare_decay(
    weight_decay: ScalarOrSchedule | None, mask: Any, rules: ParameterRules | None
) -> dict[str, Hyperparameter]:
    """Declare the decay coefficient, if there is one, and what ``rates_or_none`` reads."""
    if weight_decay is not None:
        return declare(weight_decay=nonnegative(weight_decay)) | decay_hyperparams(rules)
    if mask is not None:
        raise ValueError(
            "mask selects the leaves that decay, but weight_decay is not given: give it, or leave "
            "mask out."
        )
    return {}


def rates_or_none(mask: masks.Mask, rules: ParameterRules | None, step: Step) -> Tree | None:
    """Return the decay coefficient of each leaf, or None without decay."""
    if "weight_decay" not in step.values:
        return None
    return decay_rates(mask, rules, step)


def gains(
    gradient: Tree,
    rates: Tree | None,
    step: Step,
    measurement: Measurement,
    variance: jax.Array,
    noise: jax.Array,
    layers: Layers,
) -> Gains:
    """Return the gain of each leaf, and the factor on the shared variance."""
    leaves, structure = jax.tree.flatten(gradient)
    layered = structure.flatten_up_to(_layered(layers.stacked, gradient))
    nothing = [None] * len(leaves)
    params = nothing if rates is None else structure.flatten_up_to(step.params)
    decays = [0.0] * len(leaves) if rates is None else structure.flatten_up_to(rates)
    zero = jnp.zeros([], numerics.default_float())
    errors, sizes = [], []
    for g, p, rate, own in zip(leaves, params, decays, layered, strict=True):
        error, decay = numerics.widen(g), zero
        size = square = _square(error, own)
        if isinstance(rate, jax.Array):
            wide = numerics.widen(jnp.asarray(p))
            error = lax.add(error, numerics.scaled(rate, wide))
            decay = 0.5 * rate * _square(wide, own)
            square = _square(error, own)
        errors.append(error)
        sizes.append((size, square, decay))
    if not layers.per_leaf:
        sizes = [tuple(map(sum, zip(*sizes, strict=True)))] * len(leaves)
    lost = jnp.isinf(measurement.mean_square) | jnp.isinf(measurement.residual)
    factor_of, informative_by, largest = [], [], zero
    for error, own, (size, square, decay) in zip(errors, layered, sizes, strict=True):
        spread = variance * square + noise
        ignored = (size < LEAST_NORM**2) | (spread <= 0.0) | jnp.isinf(spread) | lost
        informative = lax.bitwise_not(ignored)  # also for NaN, so that it shows in the update
        gain = (measurement.residual + decay) / numerics.nonzero(spread)
        gain = lax.select(informative, gain, lax.full_like(gain, 0))
        square = lax.select(informative, square, lax.full_like(square, 0))
        if own:
            square = lax.reduce_max(square, (0,))
            gain, informative = (
                lax.broadcast_in_dim(x, error.shape, (0,)) for x in (gain, informative)
            )
        factor_of.append(gain)
        informative_by.append(informative)
        largest = lax.max(largest, square)
    spread = variance * largest + noise
    learns = ~(largest <= 0.0) & lax.is_finite(measurement.mean_square)
    safe = numerics.nonzero(spread)
    return Gains(
        *(jax.tree.unflatten(structure, x) for x in (errors, factor_of, informative_by)),
        shrink=lax.select(learns, noise / safe, jnp.ones_like(noise)),
        information=lax.select(learns, largest / safe, zero),
    )


def _square(x: jax.Array, layered: bool) -> jax.Array:
    """Return |x|^2 of a leaf, or of each layer in it."""
    if not layered:
        return square_norm(x)
    check_uncut(x, "a leaf of stacked layers", "leave stacked= out")
    return lax.reduce_sum(numerics.abs_square(x), tuple(range(1, x.ndim)))


def _layered(stacked: masks.Mask, gradient: Tree) -> Tree:
    """Return which leaves stack layers along their first axis, as a tree of bools."""
    if stacked is None:
        return jax.tree.map(lambda _: False, gradient)
    chosen = masks.resolve(stacked, gradient, "stacked")
    leaves = numerics.named_leaves(gradient)
    for (name, g), own in zip(leaves, jax.tree.leaves(chosen), strict=True):
        if own and not g.ndim:
            raise ValueError(
                f"stacked names {name!r}, a scalar, which has no axis of layers: leave it out."
            )
    return chosen
