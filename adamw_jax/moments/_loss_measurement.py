"""What both filters do with one loss value: its noise, and a gain for every leaf.

    R <- alpha_r R + (1 - alpha_r) mean((loss_i - target)^2)               unless R is given
    e = g + wd theta;    l = loss - target + wd/2 |theta|^2                leaf by leaf
    S = P |e|^2 + R;     gain = l / S

Leaves, or the entries of a leaf that stacks them, are the layers of the paper: each has its own S,
P is shared; ``per_leaf=False`` makes all leaves one layer. The leaf whose |e|^2 / S is largest, h,
is that of the largest |e|, so P - P^2 h = P R / (P max |e|^2 + R), which cancels nothing and stays
positive in float32. A measurement that is not finite, or overflows squared, says nothing: P and R
stay as they are, and an infinite one moves nothing. A NaN is seen in the update.

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
from adamw_jax.direction._decay import decay_factors

Tree = Any

SILENT = 1e-9
"""A leaf whose gradient has a smaller norm says nothing: it does not move (the authors' code)."""


class FilterOptions(TypedDict, total=False):
    """Keywords of both filters."""

    r: Annotated[
        ScalarOrSchedule | None,
        Option(
            None,
            "measurement noise R, >= 0; None learns it: an average of ``value_sq_mean`` from 1.",
        ),
    ]
    alpha_r: Annotated[
        ScalarOrSchedule, Option(0.9, "decay rate of that average, in [0, 1); 0.9 (paper).")
    ]
    target: Annotated[ScalarOrSchedule, Option(0.0, "the loss to be reached; 0.")]
    weight_decay: Annotated[
        ScalarOrSchedule | None,
        Option(
            None,
            "coefficient of the term wd/2 |theta|^2 of the loss of a leaf, a number or schedule; "
            "None for none. It enters the loss and the norm, with KOALA-M the direction, too.",
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
            "which leaves stack layers along their first axis (``nnx.scan``), so that each layer "
            "has its own S; given like ``mask``. None for no leaf.",
        ),
    ]
    per_leaf: Annotated[
        bool,
        Option(
            True,
            "every leaf is a layer with its own S (the paper's layer-wise form, and the code's); "
            "False gives all leaves together one S.",
        ),
    ]


class Measurement(NamedTuple):
    """The loss above its target, and the mean square of that over the batch: two scalars."""

    residual: jax.Array
    mean_square: jax.Array


class Gains(NamedTuple):
    """What the measurement says to every leaf.

    Attributes:
      error: gradient with decay in it, params-shaped.
      gain: l / S, a scalar per leaf, or shaped like a leaf of stacked layers; 0 where silent.
      heard: whether the leaf, or its layer, is not silent; likewise.
      shrink: R / S of the leaf that says most, by which the variance of the state falls.
      information: its |e|^2 / S.
    """

    error: Tree
    gain: Tree
    heard: Tree
    shrink: jax.Array
    information: jax.Array


class Layers(NamedTuple):
    """What has an S of its own.

    Attributes:
      stacked: the leaves of which every index of the first axis is a layer.
      per_leaf: whether the other leaves are one layer each; otherwise all of them are one.
    """

    stacked: masks.Mask
    per_leaf: bool

    @classmethod
    def of(cls, stacked: masks.Mask, per_leaf: bool) -> Layers:
        """Checked.

        Raises:
          ValueError: ``per_leaf`` is no bool, or False where leaves are stacked.
        """
        switch("per_leaf", per_leaf)
        if stacked is not None and not per_leaf:
            raise ValueError(
                "stacked says which leaves hold several layers, but per_leaf=False makes one layer "
                "of all leaves: leave one of the two out."
            )
        return cls(stacked, per_leaf)


def measured(name: str, extra: Mapping[str, Any], target: jax.Array) -> Measurement:
    """The measurement among the extra arguments of ``update``.

    Raises:
      ValueError: there is no ``value``, or an argument is no scalar.
    """
    value = extra.get("value")
    if value is None:
        raise ValueError(
            f"{name} measures the loss, but update got no value: call "
            "tx.update(gradients, state, params, value=loss), with the loss that the gradients are "
            "of. optax.chain and the wrappers pass it on."
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
    """The measurement noise as hyperparameter: ``r``, or the rate at which it is learned."""
    alpha = declare(alpha_r=decay_rate(alpha_r))
    return alpha if r is None else declare(r=nonnegative(r))


def noise_after(noise: jax.Array, measurement: Measurement, step: Step) -> jax.Array:
    """R for this step."""
    if "r" in step.values:
        return step["r"]
    alpha, square = step["alpha_r"], measurement.mean_square
    return lax.select(lax.is_finite(square), alpha * noise + (1.0 - alpha) * square, noise)


def start_value(**named: Ranged) -> Any:
    """A function that gives the initial value of a scalar of the state, now checked."""
    (checked,) = declare(**named).values()
    # Never the caller's buffer: it may be donated.
    return lambda: jnp.array(checked.at(jnp.zeros([], jnp.int32)), copy=True)


def declare_decay(weight_decay: ScalarOrSchedule | None, mask: Any) -> dict[str, Hyperparameter]:
    """The decay coefficient as hyperparameter, where there is one."""
    if weight_decay is not None:
        return declare(weight_decay=nonnegative(weight_decay))
    if mask is not None:
        raise ValueError(
            "mask says which leaves decay, but weight_decay is not given: give it, or leave mask "
            "out."
        )
    return {}


def decay_shares(
    mask: masks.Mask, rules: ParameterRules | None, params: Tree, step: Step
) -> Tree | None:
    """What multiplies the decay coefficient in every leaf, or None where nothing decays."""
    if "weight_decay" not in step.values:
        return None
    return decay_factors(mask, rules, params)


def gains(
    gradient: Tree,
    shares: Tree | None,
    step: Step,
    measurement: Measurement,
    variance: jax.Array,
    noise: jax.Array,
    layers: Layers,
) -> Gains:
    """Every leaf's gain, and how much the shared variance learns."""
    leaves, structure = jax.tree.flatten(gradient)
    layered = structure.flatten_up_to(_layered(layers.stacked, gradient))
    nothing = [None] * len(leaves)
    params = nothing if shares is None else structure.flatten_up_to(step.params)
    factors = nothing if shares is None else structure.flatten_up_to(shares)
    zero = jnp.zeros([], numerics.default_float())
    errors, sizes = [], []
    for g, p, share, own in zip(leaves, params, factors, layered, strict=True):
        error, decay = numerics.widen(g), zero
        size = square = _square(error, own)
        if share:
            rate, wide = step["weight_decay"] * share, numerics.widen(jnp.asarray(p))
            error = lax.add(error, numerics.scaled(rate, wide))
            decay = 0.5 * rate * _square(wide, own)
            square = _square(error, own)
        errors.append(error)
        sizes.append((size, square, decay))
    if not layers.per_leaf:
        sizes = [tuple(map(sum, zip(*sizes, strict=True)))] * len(leaves)
    lost = jnp.isinf(measurement.mean_square) | jnp.isinf(measurement.residual)
    factor_of, heard_by, loudest = [], [], zero
    for error, own, (size, square, decay) in zip(errors, layered, sizes, strict=True):
        spread = variance * square + noise
        silent = (size < SILENT**2) | (spread <= 0.0) | jnp.isinf(spread) | lost
        heard = lax.bitwise_not(silent)  # NaN is heard: it must not pass unseen
        gain = (measurement.residual + decay) / numerics.nonzero(spread)
        gain = lax.select(heard, gain, lax.full_like(gain, 0))
        square = lax.select(heard, square, lax.full_like(square, 0))
        if own:
            square = lax.reduce_max(square, (0,))
            gain, heard = (lax.broadcast_in_dim(x, error.shape, (0,)) for x in (gain, heard))
        factor_of.append(gain)
        heard_by.append(heard)
        loudest = lax.max(loudest, square)
    spread = variance * loudest + noise
    learns = ~(loudest <= 0.0) & lax.is_finite(measurement.mean_square)
    safe = numerics.nonzero(spread)
    return Gains(
        *(jax.tree.unflatten(structure, x) for x in (errors, factor_of, heard_by)),
        shrink=lax.select(learns, noise / safe, jnp.ones_like(noise)),
        information=lax.select(learns, loudest / safe, zero),
    )


def _square(x: jax.Array, layered: bool) -> jax.Array:
    """|x|^2 of a leaf, or of every layer in it."""
    if not layered:
        return square_norm(x)
    check_uncut(x, "a leaf of stacked layers", "leave stacked= out")
    return lax.reduce_sum(numerics.abs_square(x), tuple(range(1, x.ndim)))


def _layered(stacked: masks.Mask, gradient: Tree) -> Tree:
    """Which leaves stack layers along their first axis, as a tree of bools."""
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
