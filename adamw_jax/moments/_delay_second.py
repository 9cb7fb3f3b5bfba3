"""Divide by the second moment of the previous step, as ACProp does.

    direction_t = g_t / (sqrt(s_{t-1} / W_{t-1}) + eps)

s is the average of |g - m|^2 plus eps, W the sum of its weights. Given the past, numerator and
denominator are independent ("asynchronous"). The learning rate does not bound the step: if a large
gradient follows small ones, the denominator is still small. Zhuang et al., NeurIPS 2021, arXiv
2110.05454, in the form of the authors' code.

>>> delay_second().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Clock, Moments
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

NUMERATORS = ("gradient", "momentum")


@shows_options
def delay_second(
    numerator: str = "gradient", *, corrected_by: str = "prior", first: str = "numerator"
) -> Stage:
    """Replace the second moment by that of the previous step.

    Args:
      numerator: the array that is divided, ``"gradient"`` (paper) or ``"momentum"``.
      corrected_by: the step whose weights ``correct_bias`` divides by, ``"prior"``, or
        ``"current"`` as in the authors' rectified form.
      first: the first step, which has no previous moment: along the ``"numerator"``, undivided, or
        ``"skip"`` to move and decay nothing (ADOPT).

    Returns:
      A stage *moments -> moments*; put it directly after ``estimate_moments``.

    Raises:
      ValueError: (in ``update``) the recipe has no second moment, or one that is already corrected.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.moments.delay_second(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    one_of("numerator", numerator, NUMERATORS)
    one_of("corrected_by", corrected_by, ("prior", "current"))
    one_of("first", first, ("numerator", "skip"))

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        prior, now = record.prior_second, record.second
        if prior is None or now is None:
            raise ValueError(
                "delay_second() needs a second moment, and the recipe has none: give "
                "estimate_moments a part for it, such as ema_of_squares(0.999)."
            )
        if now.divisor is not None:
            raise ValueError("delay_second() must come before correct_bias(): exchange them.")
        step.facts.delayed = True
        empty = record.count == 1
        second = prior
        if corrected_by == "current":
            second = second._replace(clock=now.clock)
        elif prior.clock is not None:
            level = numerics.nonzero(prior.clock.level)  # 0 at the first step, where it is unused
            before = lax.max(record.count - 1, jnp.ones_like(record.count))
            second = second._replace(clock=Clock(level, prior.clock.weighted_age), count=before)
        record = dataclasses.replace(record, second=second)
        if numerator == "gradient":
            wide = jax.tree.map(numerics.widen, record.gradient)
            record = dataclasses.replace(record, numerator=wide)
        if first == "skip":
            step.facts.skip_step = empty
        fallback = "zero" if first == "skip" else "numerator"
        return record.only_where(lax.bitwise_not(empty), fallback), state

    return stage(
        "delay_second",
        Kind.MOMENTS,
        Kind.MOMENTS,
        apply,
        reduces=True,
        elementwise=True,
        reads="prior",
    )
