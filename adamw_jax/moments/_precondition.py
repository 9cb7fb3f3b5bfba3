"""Divide the first moment by the root of the second, which makes Adam adaptive.

    direction = gain first / (second^power + eps)

The direction is 0 for elements whose gradient has always been 0, also if eps = 0: the root is at
least 1e-19 (1e-154 in float64), below which the square of a gradient underflows anyway.

>>> precondition().spec.kinds
'moments -> direction'
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics, sequential
from adamw_jax._core.checks import number, one_of
from adamw_jax._core.declare import ScalarOrSchedule, declare, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments, Reading, leafwise
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any


@shows_options
def precondition(
    eps: ScalarOrSchedule | None = 1e-8,
    eps_root: ScalarOrSchedule | None = None,
    power: float = 0.5,
    *,
    eps_hat: bool = False,
    eps_form: str = "added",
) -> Stage:
    """Divide the first moment by the root of the second.

    Args:
      eps: added to the root, >= 0, in float32 whatever the gradient's dtype; 1e-8 (Adam's paper),
        None for 0.
      eps_root: added under the root, >= 0; None for 0.
      power: exponent of the second moment in (0, 0.5]; 0.5 is the square root, smaller values are
        Padam's. A second moment that is a magnitude (``infinity_norm``) has twice this exponent.
      eps_hat: add eps to the root of the *uncorrected* second moment (Keras, fairseq, the AdamW
        authors' code): sqrt(v) + eps, with the bias correction moved to the step size.
      eps_form: ``"added"``, or ``"clamped"`` to make eps the lower bound of the root (ADOPT).

    Returns:
      A stage *moments -> direction*. Without a second moment the direction is the first moment.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    power = number("power", power, above=0.0, most=0.5)
    one_of("eps_form", eps_form, ("added", "clamped"))

    def apply(record: Moments, state: Any, step: Step) -> tuple[Tree, Any]:
        if record.second is None:
            value = record.first.value
            direction = jax.tree.map(times, value, factors(record, None, value))
        else:
            direction = divided(record, record.second, step)
        kept = keeps_numerator(record)
        return direction if kept else where_adaptive(direction, record), state

    def divided(record: Moments, second: Reading, step: Step) -> Tree:
        top, magnitude = numerator(record), record.magnitude
        # The divisors c1 and c2 of bias correction are applied to scalars, not to arrays:
        # m/c1 / ((v/c2 + eps_root)^p + eps) = m (c2^p / c1) / ((v + c2 eps_root)^p + c2^p eps).
        added = None if eps is None else step["eps"]

        def rooted(scalar: jax.Array) -> jax.Array:
            """Return the factor that a bias-correction divisor contributes to the denominator."""
            if not magnitude:
                return numerics.root(scalar, power)
            return scalar if power == 0.5 else numerics.root(scalar, 2 * power)

        if added is not None and eps_hat and second.divisor is not None:
            added = added / rooted(second.divisor)
        under = step["eps_root"] if eps_root is not None and not magnitude else None
        factor = None
        if second.due is not None:
            factor = rooted(second.due)
            added = None if added is None else added * factor
            under = None if under is None else under * second.due
        if top.due is not None:
            factor = (1.0 if factor is None else factor) / top.due

        kept = keeps_numerator(record)

        def leaf(m: jax.Array, v: jax.Array, use: Any, by: Any, inverse: Any) -> jax.Array:
            return _quotient(
                *(m, v, None if use is True else use, by, inverse, added, under),
                power=power,
                magnitude=magnitude,
                kept=kept,
                clamped=eps_form == "clamped",
            )

        inverse = second.inverse_root
        if inverse is None:
            inverse = jax.tree.map(lambda _: (), top.raw)
        by = factors(record, factor, top.raw)

        def of(raw: Tree) -> Tree:
            return jax.tree.map(leaf, raw, second.raw, record.adaptive, by, inverse)

        direction = of(top.raw)
        if second.inverse_root is not None and not sequential.on_cpu():
            step.facts.again = lambda tree: (
                of(jax.tree.map(sequential.unseen, top.raw)) if tree is direction else tree
            )
        return direction

    return stage(
        "precondition",
        Kind.MOMENTS,
        Kind.DIRECTION,
        apply,
        hyperparams=declare(eps=nonnegative.if_given(eps), eps_root=nonnegative.if_given(eps_root)),
        elementwise=True,
    )


@numerics.kernel
def _quotient(
    m: jax.Array,
    v: jax.Array,
    use: jax.Array | None,
    by: tuple[jax.Array, ...],
    inverse: tuple[jax.Array, ...],
    added: jax.Array | None,
    under: jax.Array | None,
    *,
    power: float,
    magnitude: bool,
    kept: bool,
    clamped: bool,
) -> jax.Array:
    if kept and use is not None:
        by = tuple(jnp.where(use, f, jnp.ones_like(f)) for f in by)
    m = times(m, by)
    if inverse and added is None and under is None and power == 0.5:
        return functools.reduce(lambda x, f: lax.mul(x, numerics.like(f, x)), inverse, m)
    if not magnitude:
        scale = numerics.root(v, power, under)
    else:
        scale = v if power == 0.5 else numerics.root(v, 2 * power)
    if added is not None:
        scale = _at_least(scale, added) if clamped else lax.add(scale, added)
    if magnitude:
        scale = lax.max(scale, lax.full_like(scale, jnp.finfo(scale.dtype).tiny ** 0.5))
    return quotient(m, scale, use)


def _at_least(x: jax.Array, least: jax.Array) -> jax.Array:
    return lax.max(x, lax.broadcast(least, x.shape))


def numerator(record: Moments) -> Reading:
    """Return the array to divide, the first moment unless a stage has replaced it."""
    return record.first if record.numerator is None else Reading(record.numerator)


def keeps_numerator(record: Moments) -> bool:
    """Return whether leaves that are not adaptive can be handled by dividing by 1.

    This avoids a select after the division, which XLA would compute again for each reader.
    """
    second = record.second
    plain = second is not None and second.inverse_root is None
    kept = {direction for _, direction in record.exceptions} == {"numerator"}
    return plain and kept and numerator(record).due is None


def quotient(m: jax.Array, scale: jax.Array, use: jax.Array | None) -> jax.Array:
    """Return ``m / scale``, with a denominator of 1 if the quotient is not used."""
    if use is not None:
        scale = jnp.where(use, scale, jnp.ones_like(scale))
    return lax.div(m, numerics.like(scale, m))


def factors(record: Moments, factor: jax.Array | None, like: Tree) -> Tree:
    """Return the factor on each leaf of the numerator, the gain times ``factor``, or ()."""
    gain = factor if record.gain is None else record.gain
    if gain is None:
        return jax.tree.map(lambda _: (), like)
    if factor is not None and record.gain is not None:
        gain = jax.tree.map(lambda x: numerics.scaled(factor, x), gain)
    return jax.tree.map(lambda x: (x,), leafwise(gain, like))


def times(m: jax.Array, by: tuple[jax.Array, ...]) -> jax.Array:
    """Multiply ``m`` by the factor, if there is one."""
    return numerics.scaled(by[0], m) if by else m


def where_adaptive(direction: Tree, record: Moments) -> Tree:
    """Return the divided direction, replaced for leaves to which an exception applies."""
    for where, word in reversed(record.exceptions):
        if word == "zero":
            other = jax.tree.map(lambda d: lax.full_like(d, 0), direction)
        else:
            other = (record.first if word == "momentum" else numerator(record)).value
        direction = jax.tree.map(jnp.where, leafwise(where, direction), other, direction)
    return direction
