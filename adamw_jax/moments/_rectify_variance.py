"""Variance rectification (Liu et al., ICLR 2020, arXiv 1908.03265, RAdam).

    rho_inf = 2 / (1 - b2) - 1
    rho_t   = 2 age / mass + 1                  (= rho_inf - 2 t b2^t / (1 - b2^t), constant b2)
    r_t     = sqrt( (rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t) )

The clock's age gives the length rho_t without the cancellation that the closed form suffers in
float32, and for scheduled b2 too.

>>> rectify_variance().spec.kinds
'moments -> moments'
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of
from adamw_jax._core.declare import ScalarOrSchedule, declare, nonnegative
from adamw_jax._core.record import Moments
from adamw_jax._core.stage import Kind, Stage, Step, stage

FALLBACKS = ("skip", "decay", "momentum")


def rectify_variance(threshold: ScalarOrSchedule = 5.0, *, below: str = "skip") -> Stage:
    """Scales the direction by the rectifier r_t once the average is long enough.

    Args:
      threshold: least length rho_t at which the second moment is used, >= 0, or a schedule of it;
        5 in the authors' code and in PyTorch, 4 in the paper.
      below: what happens before that, the first five steps for b2 >= 0.9. ``"skip"`` makes no
        step and no decay (the authors' code since 2021, free of the gradient's scale);
        ``"decay"`` makes no step, but decays (ACProp's authors); ``"momentum"`` makes the unscaled
        momentum step (the paper, PyTorch, optax). A step that an earlier stage has settled, such
        as the first of ``delay_second``, stays as it is. Decay is left out by ``compose`` alone:
        in ``optax.chain`` a decay behind these stages goes on in a skipped step. A skipped step is
        exactly 0, which a solver that stops on a small update takes for convergence: use
        ``"momentum"`` there.

    Returns:
      A stage *moments -> moments*; ``precondition`` honours the gain and flag it sets. If
      b2 <= 0.6 the length never exceeds 4, and what ``below`` says holds for ever.

    Raises:
      ValueError: ``threshold`` is out of range or ``below`` unknown, or (in ``update``) the second
        moment is no moving average.
      TypeError: ``threshold`` is neither number nor schedule.
    """
    one_of("below", below, FALLBACKS)

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        second = record.second
        if second is None or second.clock is None or second.rate is None:
            raise ValueError(
                "rectify_variance() needs a moving average as second moment, such as "
                "ema_of_squares(0.999)."
            )
        length = 2.0 * second.clock.age / numerics.nonzero(second.clock.mass) + 1.0
        limit = 2.0 / (1.0 - second.rate) - 1.0
        adaptive = length >= step["threshold"]
        if below == "skip":
            short = lax.bitwise_not(adaptive)
            if record.exceptions:  # what an earlier stage has settled is a step
                short = jax.tree.map(lambda use: short & use, record.adaptive)
            step.facts.skip_step = short
        fallback = "momentum" if below == "momentum" else "zero"
        return record.scaled(rectifier(length, limit)).only_where(adaptive, fallback), state

    return stage(
        "rectify_variance",
        Kind.MOMENTS,
        Kind.MOMENTS,
        apply,
        hyperparams=declare(threshold=nonnegative(threshold)),
    )


def rectifier(length: jax.Array, limit: jax.Array) -> jax.Array:
    """r_t of an average of length rho_t whose limit is rho_inf; 0 for a length of at most 4."""
    long_enough = (length > 4.0) & (limit > 4.0)
    five = lax.full_like(length, 5.0)
    rho = lax.select(long_enough, length, five)
    top = lax.select(long_enough, limit, five)
    ratio = (rho - 4.0) * (rho - 2.0) * top / ((top - 4.0) * (top - 2.0) * rho)
    return lax.select(long_enough, lax.sqrt(ratio), lax.full_like(length, 0.0))
