"""The second moment of the step before, as ACProp reads it.

    direction_t = g_t / (sqrt(s_{t-1} / mass_{t-1}) + eps)        s: EMA of |g - m|^2, plus eps

Numerator and denominator are then independent given the past ("asynchronous"), and the step is not
bounded by the learning rate: after a silence the denominator knows nothing of the new gradient.
Zhuang et al., NeurIPS 2021, arXiv 2110.05454, in the form of the authors' code.

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
from adamw_jax._core.record import Clock, Moments
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any

NUMERATORS = ("gradient", "momentum")


def delay_second(numerator: str = "gradient", *, corrected_by: str = "prior") -> Stage:
    """Puts the second moment of the step before in the place of this step's.

    Args:
      numerator: what is divided, the ``"gradient"`` (paper) or the ``"momentum"``.
      corrected_by: whose weights ``correct_bias`` divides it by, those of the ``"prior"`` step, or
        of the ``"current"`` one as the authors' rectified form does.

    Returns:
      A stage *moments -> moments*, to stand first after ``estimate_moments``. At the first step,
      which has no moment before it, the direction is the numerator, undivided.

    Raises:
      ValueError: a word is unknown, or (in ``update``) the recipe has no second moment, or one that
        another stage has changed already.
    """
    one_of("numerator", numerator, NUMERATORS)
    one_of("corrected_by", corrected_by, ("prior", "current"))

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        prior, now = record.prior_second, record.second
        if prior is None or now is None:
            raise ValueError("delay_second() needs a second moment, and the recipe has none.")
        if now.divisor is not None:
            raise ValueError("delay_second() must stand before correct_bias().")
        step.facts.delayed = True
        empty = record.count == 1
        second = prior
        if corrected_by == "current":
            second = second._replace(clock=now.clock)
        elif prior.clock is not None:
            level = numerics.nonzero(prior.clock.level)  # of an empty one, which is not used
            before = lax.max(record.count - 1, jnp.ones_like(record.count))
            second = second._replace(clock=Clock(level, prior.clock.age), count=before)
        record = dataclasses.replace(record, second=second)
        if numerator == "gradient":
            wide = jax.tree.map(numerics.widen, record.gradient)
            record = dataclasses.replace(record, numerator=wide)
        return record.only_where(lax.bitwise_not(empty), "numerator"), state

    return stage("delay_second", Kind.MOMENTS, Kind.MOMENTS, apply, reduces=True, reads="prior")
