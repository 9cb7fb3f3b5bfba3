"""Rectify the variance of early steps, as RAdam does (Liu et al., ICLR 2020, arXiv 1908.03265).

    rho_inf = 2 / (1 - b2) - 1
    rho_t   = 2 A / W + 1                         (= rho_inf - 2 t b2^t / (1 - b2^t), constant b2)
    r_t     = sqrt( (rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t) )

rho_t is the effective length of the average. W is the sum of its weights, A the sum of the weights
times the ages of their entries. Both give rho_t without the cancellation of the closed form
in float32, and also for a scheduled b2.

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
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Moments
from adamw_jax._core.stage import Kind, Stage, Step, stage

FALLBACKS = ("skip", "decay", "momentum")


@shows_options
def rectify_variance(threshold: ScalarOrSchedule = 5.0, *, below: str = "skip") -> Stage:
    """Scale the direction by the rectifier r_t once the average is long enough.

    Args:
      threshold: least length rho_t at which the second moment is used, >= 0, or a schedule of it;
        5 in the authors' code and in PyTorch, 4 in the paper.
      below: the step below the threshold, in the first five steps for b2 >= 0.9. ``"skip"`` makes
        no step and no decay (the authors' code since 2021; independent of the gradient's scale).
        ``"decay"`` only decays (ACProp's authors). ``"momentum"`` steps along the momentum, neither
        divided nor scaled (the paper, PyTorch, optax). A step that an earlier stage has decided,
        such as the first of ``delay_second``, does not change. Only in ``compose`` does ``"skip"``
        stop the decay; in ``optax.chain`` a decay after this stage continues. A skipped step is
        exactly 0, which looks like convergence to a solver that stops on small updates: use
        ``"momentum"`` there.

    Returns:
      A stage *moments -> moments*. If b2 <= 0.6 the length never exceeds 4, and every step is as
      ``below`` says.

    Raises:
      ValueError: (in ``update``) the second moment is not a moving average.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.ema(0.9), aj.ema_of_squares(0.999)),
      ...     aj.correct_bias(),
      ...     aj.moments.rectify_variance(below="skip"),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    one_of("below", below, FALLBACKS)

    def apply(record: Moments, state: Any, step: Step) -> tuple[Moments, Any]:
        second = record.second
        if second is None or second.clock is None or second.rate is None:
            raise ValueError(
                "rectify_variance() needs a moving average as second moment, such as "
                "ema_of_squares(0.999)."
            )
        length = 2.0 * second.clock.weighted_age / numerics.nonzero(second.clock.weight_sum) + 1.0
        limit = 2.0 / (1.0 - second.rate) - 1.0
        adaptive = length >= step["threshold"]
        if below == "skip":
            short = lax.bitwise_not(adaptive)
            if record.exceptions:  # do not skip a step that an earlier stage has decided
                short = jax.tree.map(lambda use: short & use, record.adaptive)
            step.facts.skip_step = short
        fallback = "momentum" if below == "momentum" else "zero"
        factor = rectifier(length, limit)
        plain = lax.full_like(factor, 1.0 if below == "momentum" else 0.0)
        step.facts.rectifier = lax.select(adaptive, factor, plain)
        return record.scaled(factor).only_where(adaptive, fallback), state

    return stage(
        "rectify_variance",
        Kind.MOMENTS,
        Kind.MOMENTS,
        apply,
        hyperparams=declare(threshold=nonnegative(threshold)),
        elementwise=True,
    )


def rectifier(length: jax.Array, limit: jax.Array) -> jax.Array:
    """Return r_t for a length rho_t and its limit rho_inf; 0 for a length of at most 4."""
    long_enough = (length > 4.0) & (limit > 4.0)
    five = lax.full_like(length, 5.0)
    rho = lax.select(long_enough, length, five)
    top = lax.select(long_enough, limit, five)
    ratio = (rho - 4.0) * (rho - 2.0) * top / ((top - 4.0) * (top - 2.0) * rho)
    return lax.select(long_enough, lax.sqrt(ratio), lax.full_like(length, 0.0))
