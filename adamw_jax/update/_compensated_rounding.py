"""Compensated rounding: narrow parameters, and what their rounding left, in two bytes more.

    x      = theta + c + u                    in float32
    theta <- round(x)                         what apply_updates makes of it
    c     <- x - theta

as in the compensated sum of Kahan, Communications of the ACM 8(1), 1965; for bfloat16 weights,
Zamirai, Zhang, Aberger & De Sa, arXiv 2010.06192, who keep c in bfloat16. Since |c| is at most
half the gap between two parameters, c is kept here as a whole number of 2**-16 gaps: a bfloat16
parameter and its 16 bits are then a float32, but for the last bit just below a power of two. As a
bfloat16, c would lose updates under 2**-10 gaps.

The update leaves in the wider of the dtypes of gradient and parameter. Where it is larger than
what it makes of the parameter, as at a change of sign, that dtype may not hold it, and the nearest
that it holds is taken; c covers the difference up to half a gap.

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
      error: what the parameters lack, in 2**-16 gaps between their neighbours: int16, params-shaped
        where a parameter is narrow, and no leaf elsewhere.
    """

    error: Tree


def compensated_rounding() -> Stage:
    """Updates that give parameters of less than 32 bits what their rounding kept from them before.

    Returns:
      A stage *update -> update* that needs the parameters and must be the last of a recipe. It
      stores two bytes for each value of a narrow parameter. bfloat16 parameters are the rounded
      ones of float32 training, float16 and float8 ones have 16 bits more. Parameters of float32
      and more, and complex ones, pass as they are. The sum saturates at the largest finite number;
      NaN and infinity pass. Gradients must not be narrower than their parameters.
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
    """The update of one leaf, in float32 and representable in the dtype of ``p``, and the error."""
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
    """The nearest multiple of ``grid``, of two the upper one: the rest is in [-1/2, 1/2) of it."""
    return jnp.floor(x / grid + 0.5) * grid
