"""Train without a schedule (Defazio et al., The Road Less Scheduled, 2024, arXiv 2405.15682).

    z <- z + u(y);   c = w_t / sum of w;   x <- (1 - c) x + c z;   y <- (1 - b) z + b x
    w_t = t^step_power max(lr_1 .. lr_t)^rate_power

u is the update of the optimizer before this stage, for the gradient at the parameters y. The state
keeps z. The average x, which ``eval_params`` gives, follows from both: x = (y - (1 - b) z) / b.

>>> import jax.numpy as jnp
>>> from adamw_jax import compose, eval_params, sgdw
>>> tx = compose(sgdw(0.1, momentum=None), schedule_free(0.1))
>>> params = jnp.ones(2)
>>> eval_params(tx.init(params), params)
Array([1., 1.], dtype=float32)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, declare, exponent, length, nonnegative
from adamw_jax._core.options import shows_options
from adamw_jax._core.sequential import first_element
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail

Tree = Any

NAME = tail("schedule_free")


class ScheduleFreeState(NamedTuple):
    """State of ``schedule_free``; ``eval_params`` gives the average x at any step.

    Attributes:
      z: the weights that the optimizer alone would reach, params-shaped, float32 at least.
      last_interpolation: b of the step that made the present parameters.
      weight_sum: sum of the weights of the steps.
      largest_rate: largest learning rate so far.
    """

    z: Tree
    last_interpolation: jax.Array
    weight_sum: jax.Array
    largest_rate: jax.Array
    exact = ("z",)

    owns = "z"

    def eval_params(self) -> tuple[Tree, Any]:
        """Return z, and x = z + (y - z) / b, where y are the parameters."""

        def evaluate(z: jax.Array, y: jax.Array) -> jax.Array:
            wide = lax.convert_element_type(y, z.dtype)
            return z + (wide - z) / numerics.broadcastable(self.last_interpolation, wide)

        return self.z, evaluate


@shows_options
def schedule_free(
    learning_rate: ScalarOrSchedule,
    interpolation: ScalarOrSchedule = 0.9,
    *,
    rate_power: ScalarOrSchedule = 2.0,
    step_power: ScalarOrSchedule = 0.0,
) -> Stage:
    """Take gradients between the last iterate and the average, and evaluate at the average.

    Put it at the end of a recipe without momentum: ``interpolation`` takes the place of b1. The
    learning rate may warm up, and need not decay. ``schedule_free_adamw`` and
    ``schedule_free_radam`` are complete. If the model has batch norm, refresh its statistics for
    the averaged weights with ``refresh_batch_stats``.

    Args:
      learning_rate: that of the recipe, which weighs the average; a number or schedule.
      interpolation: b in (0, 1], or a schedule of it; 0.9 (paper; ``b1`` in optax). At 1 gradients
        are taken at the average.
      rate_power: power of the largest learning rate in the weight of a step, >= 0, or a schedule
        of it; 2 (code).
      step_power: power r of the step number t in the weight, >= 0, or a schedule of it; 0 (code).

    Returns:
      A stage *update -> update* with one value of state per parameter; it needs the parameters. A
      step that ``rectify_variance`` rectifies weighs by the rectified rate; a skipped step has the
      weight 0 as long as no step moved.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> tx = aj.compose(aj.adam(1e-2, b1=0.0), aj.update.schedule_free(1e-2))
      >>> params = {"w": jnp.ones(3)}
      >>> averaged = aj.eval_params(tx.init(params), params)
    """
    declared = declare(
        learning_rate=length(learning_rate),
        interpolation=exponent(interpolation),
        rate_power=nonnegative(rate_power),
        step_power=nonnegative(step_power),
    )

    def init(params: Tree) -> ScheduleFreeState:
        first = declared["interpolation"].at(jnp.zeros([], jnp.int32))
        first = jnp.array(first, copy=True)  # the caller's array, if it is one, may be donated
        none = jnp.zeros([], numerics.default_float())
        return ScheduleFreeState(numerics.copied(params), first, none, jnp.zeros_like(none))

    def apply(update: Tree, state: ScheduleFreeState, step: Step) -> tuple[Tree, ScheduleFreeState]:
        rate, new = step["learning_rate"], step["interpolation"]
        if step.facts.rectifier is not None:
            rate = rate * step.facts.rectifier
        largest = lax.max(state.largest_rate, rate)
        number_of_step = numerics.scalar(step.count + 1)
        weight = number_of_step ** step["step_power"] * largest ** step["rate_power"]
        total = state.weight_sum + weight
        share = lax.select(total > 0, weight / numerics.nonzero(total), jnp.zeros_like(total))
        ratio = new / state.last_interpolation
        # 1 - (1 - share) ratio would lose the digits of a small share.
        of_update, to_z = (1 - share) * (ratio - new), share * ratio + (1 - ratio)
        update = numerics.leaving(update, update, step.params)
        z = jax.tree.map(lambda z, u: lax.add(z, numerics.widen(u)), state.z, update)
        if step.in_sequence:
            step.facts.leaf_scalars = jax.tree.map(first_element, z)

        # y' - y, with x = z + (y - z) / b inserted. It reads the new z, so that XLA copies no z.
        def moved(u: jax.Array, z: jax.Array, p: jax.Array) -> jax.Array:
            step = lax.add(
                numerics.scaled(of_update, numerics.widen(u)),
                numerics.scaled(to_z, lax.sub(z, numerics.widen(p))),
            )
            return lax.convert_element_type(step, u.dtype)

        out = jax.tree.map(moved, update, z, step.params)
        return out, ScheduleFreeState(z, new, total, largest)

    return stage(
        NAME,
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=init,
        hyperparams=declared,
        needs_params=True,
        weights="own",
        reduces=True,  # XLA computes the update whole, since z and y read it
    )
