"""Keep the rounding errors of parameters with less than 32 bits, in two bytes per value.

    x      = theta + c + u                    in float32
    theta <- round(x)                         by apply_updates
    c     <- x - theta

theta is the parameter, u its update, c the error of the last rounding. This is the compensated sum
of Kahan, Communications of the ACM 8(1), 1965, used for bfloat16 weights by Zamirai, Zhang, Aberger
& De Sa, arXiv 2010.06192, who store c in bfloat16 and so lose updates below 2**-10 gaps. A gap is
the distance between neighbouring numbers of the parameter's dtype. |c| is at most half a gap, so c
is stored here as a whole number of 2**-16 gaps: a bfloat16 parameter and its 16 bits make a float32
(except for the last bit just below a power of two).

The update has the wider dtype of gradient and parameter. If it is larger than the parameter that it
leaves, as at a change of sign, that dtype may not contain it. Then the nearest number is used, and
c covers the difference up to half a gap.

>>> import jax, jax.numpy as jnp, optax
>>> from adamw_jax import compose, sgdw
>>> tx = compose(sgdw(1e-4, momentum=None), compensated_rounding())
>>> params = gradient = jnp.ones(1, jnp.bfloat16)
>>> state, update = tx.init(params), jax.jit(tx.update)
>>> for _ in range(100):
...     updates, state = update(gradient, state, params)
...     params = optax.apply_updates(params, updates)
>>> params
Array([0.988281], dtype=bfloat16)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adamw_jax._core import masks, numerics
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail
from adamw_jax.update._rounding_grid import gap, in_place_of, is_narrow, largest, nearest, saturated

Tree = Any

NAME = tail("compensated_rounding")

_UNITS = 2.0**16
_ENDS = jnp.iinfo(jnp.int16)


class CompensatedRoundingState(NamedTuple):
    """State of ``compensated_rounding``.

    Attributes:
      error: c in units of 2**-16 gaps, int16, shaped like the parameters; only narrow parameters
        have a leaf.
    """

    error: Tree


def compensated_rounding() -> Stage:
    """Add the error of the last rounding to updates of parameters with less than 32 bits.

    Returns:
      A stage *update -> update* that needs the parameters and must be the last of a recipe. It
      stores two bytes for each value of a narrow parameter. bfloat16 parameters are then those of
      float32 training, rounded; float16 and float8 parameters gain 16 bits. Parameters of 32 bits
      or more and complex ones do not change. The sum saturates at the largest finite number; NaN
      and infinity pass. Gradients must not be narrower than their parameters.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3, jnp.bfloat16)}
      >>> tx = aj.compose(aj.adamw(1e-4), aj.update.compensated_rounding())
      >>> updates, state = tx.update(params, tx.init(params), params)
    """

    def init(params: Tree) -> CompensatedRoundingState:
        narrow = masks.show(params, jax.tree.map(is_narrow, params))
        return CompensatedRoundingState(
            jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.int16), narrow)
        )

    def apply(
        update: Tree, state: CompensatedRoundingState, step: Step
    ) -> tuple[Tree, CompensatedRoundingState]:
        def leaf(u: jax.Array, p: jax.Array, error: Any) -> tuple[jax.Array, Any]:
            return _compensated(jnp.asarray(p), u, error) if is_narrow(p) else (u, error)

        leaves, structure = jax.tree.flatten(update)
        params, errors = map(structure.flatten_up_to, (step.params, state.error))
        pairs = [leaf(*each) for each in zip(leaves, params, errors, strict=True)]
        new, rest = (jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in (0, 1))
        return new, CompensatedRoundingState(rest)

    return stage(
        NAME,
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=init,
        needs_params=True,
    )


def _compensated(p: jax.Array, u: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the update of a leaf, in float32 but exact in the dtype of ``p``, and the error."""
    dtype = p.dtype
    start, wanted = numerics.cast(p, jnp.float32), numerics.cast(u, jnp.float32)
    kept = numerics.cast(error, jnp.float32) * (gap(start, dtype) / _UNITS)
    exact = saturated(start + kept + wanted, dtype)
    move = saturated(nearest(_half_up(exact, gap(exact, dtype)) - start, dtype), dtype)
    move = jnp.where(jnp.abs(nearest(start + move, dtype)) <= largest(dtype), move, 0.0)
    reached = nearest(start + move, dtype)
    units = jnp.round((exact - reached) / gap(reached, dtype) * _UNITS)
    finite = jnp.isfinite(start) & jnp.isfinite(wanted)
    units = jnp.where(finite, jnp.clip(units, _ENDS.min, _ENDS.max), 0.0)
    move = in_place_of(wanted, jnp.where(finite, move, wanted))
    return move, numerics.cast(units, jnp.int16)


def _half_up(x: jax.Array, grid: jax.Array) -> jax.Array:
    """Round to a multiple of ``grid``, halves upwards; the rest is in [-1/2, 1/2) of ``grid``."""
    return jnp.floor(x / grid + 0.5) * grid
