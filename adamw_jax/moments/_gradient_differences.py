"""Average gradients and their differences, for Adan's first moment.

    d  = g - g_previous                    (0 at the first step)
    m' = b1 m + (1 - b1) g        v' = b2 v + (1 - b2) d
    read: m' / W_m + b2 v' / W_v           (the second moment squares g + b2 d)

W is the sum of the weights of an average. Xie et al. 2022, arXiv 2208.06677, in the form of the
authors' code: b1 and b2 are decay rates (the paper's betas are 1 - b), and averages start at 0 and
are corrected.

>>> gradient_differences(0.98, 0.92).name
'gradient_differences'
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.declare import ScalarOrSchedule, decay_rate, declare
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Clock, Reading, divided
from adamw_jax._core.sequential import after
from adamw_jax._core.stage import Step
from adamw_jax.moments._parts import Part, started, zeros

Tree = Any


class DifferencesState(NamedTuple):
    """State of ``gradient_differences``.

    Attributes:
      average: the average of gradients, params-shaped.
      difference: the average of their differences, params-shaped.
      previous: the previous gradient, params-shaped.
      clock: the weights of ``average``.
      difference_clock: the weights of ``difference``.
    """

    average: Tree
    difference: Tree
    previous: Tree
    clock: Clock
    difference_clock: Clock
    moment = property(operator.itemgetter(0))
    momenta = ("average", "difference", "clock", "difference_clock")


@shows_options
def gradient_differences(
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    *,
    from_first: bool = False,
    dtype: Any = None,
    storage: Any = None,
) -> Part:
    """Add ``b2`` times the average of gradient differences to the average of gradients.

    Args:
      b1: decay rate of the average of gradients, in [0, 1), or a schedule of it; 0.98 (code).
      b2: decay rate of the average of differences, and its weight in the sum, in [0, 1), or a
        schedule of it; 0.92 (code). With 0 the moment is the corrected ``ema(b1)``.
      from_first: start the averages at the first gradient and at the first difference (of the
        second step) instead of 0 (the paper's Algorithm 1). Then there is no bias.
      dtype: storage dtype; the default is float32 (float64 under x64).
      storage: how the arrays are stored, as for ``ema``.

    Returns:
      A part for the first moment, with three values of state per parameter. The previous gradient
      is stored after clipping and L2 decay.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(
      ...         aj.moments.gradient_differences(), aj.ema_of_squares(0.99, rate_name="b3")
      ...     ),
      ...     aj.correct_bias(),
      ...     aj.precondition(1e-8),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """

    def init(params: Tree) -> DifferencesState:
        value, difference, previous = (zeros(params, dtype) for _ in range(3))
        return DifferencesState(value, difference, previous, Clock.start(), Clock.start())

    def changes(gradient: Tree, previous: Tree, empty: jax.Array) -> Tree:
        def leaf(g: jax.Array, old: jax.Array) -> jax.Array:
            change = lax.sub(numerics.widen(g), numerics.widen(old))
            return lax.select(empty, lax.full_like(change, 0), change)

        return jax.tree.map(leaf, gradient, previous)

    def update(gradient: Tree, state: DifferencesState, step: Step, first: Reading | None):
        del first
        difference = changes(gradient, state.previous, state.clock.weight_sum == 0)
        b1, b2 = step["b1"], step["b2"]
        if from_first:
            # The first step has no difference: a rate of 1 leaves that average empty.
            b2 = started(b2, state.difference_clock)
            b2 = lax.select(state.clock.weight_sum == 0, lax.full_like(b2, 1), b2)
            b1 = started(b1, state.clock)

        def mixed(rate: jax.Array, old: Tree, new: Tree) -> Tree:
            rest = jnp.ones([], rate.dtype) - rate
            return jax.tree.map(
                lambda a, x: numerics.cast(
                    lax.add(
                        numerics.scaled(rate, numerics.widen(a)),
                        numerics.scaled(rest, numerics.widen(x)),
                    ),
                    a.dtype,
                ),
                old,
                new,
            )

        return DifferencesState(
            mixed(b1, state.moment, gradient),
            mixed(b2, state.difference, difference),
            jax.tree.map(lambda g, old: numerics.cast(g, old.dtype), gradient, state.previous),
            state.clock.tick(b1),
            state.difference_clock.tick(b2),
        )

    def read(state: DifferencesState, gradient: Tree, step: Step) -> Reading:
        del gradient
        weight = step["b2"] / numerics.nonzero(state.difference_clock.weight_sum)
        first = divided(
            jax.tree.map(numerics.widen, state.moment), numerics.nonzero(state.clock.weight_sum)
        )
        value = jax.tree.map(
            lambda m, v: lax.add(m, numerics.scaled(weight, numerics.widen(v))),
            first,
            state.difference,
        )
        one = jnp.ones([], numerics.default_float())
        return Reading(value, state.clock, step["b1"], divisor=one)

    def entry(state: DifferencesState, gradient: Tree, step: Step) -> Tree:
        change = changes(gradient, state.previous, state.clock.weight_sum == 0)
        return jax.tree.map(
            lambda g, d: lax.add(numerics.widen(g), numerics.scaled(step["b2"], d)),
            gradient,
            change,
        )

    def write_after_read(state: DifferencesState, second: Any) -> DifferencesState:
        # Both averages read the previous gradient, which the current one overwrites.
        squares = getattr(second, "moment", None)
        readers = [state.difference] if squares is None else [state.difference, squares]
        return state._replace(previous=after(state.previous, *readers, kept=True))

    declared = declare(b1=decay_rate(b1), b2=decay_rate(b2))
    return Part(
        "gradient_differences",
        declared,
        init,
        update,
        read,
        kind=DifferencesState,
        entry=entry,
        write_after_read=write_after_read,
        storage=storage,
        elementwise=True,
    )
