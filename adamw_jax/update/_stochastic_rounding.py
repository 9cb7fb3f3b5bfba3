"""Round narrow parameters at random, so that updates below their resolution count on average.

    theta' = above with probability (theta + u - below) / (above - below), else below

theta is the parameter, u its update, below and above are the neighbouring numbers of the dtype. So
E[theta'] = theta + u. Rounded to nearest, a bfloat16 weight of 1 is unchanged by a thousand updates
of 1e-3. Gupta, Agrawal, Gopalakrishnan & Narayanan, ICML 2015, arXiv 1502.02551; for bfloat16
weights, Zamirai, Zhang, Aberger & De Sa, arXiv 2010.06192.

The update has the wider dtype of gradient and parameter, and ``optax.apply_updates`` rounds the sum
to nearest. So the stage chooses between two *updates* of this dtype whose rounded sums lie on
either side of theta + u, with the probabilities that make the mean of the sums right. Such updates
are apart by the gap (between neighbouring numbers) at theta + u or at u, whichever is larger. For a
small update the sums are the two neighbours of theta + u.

>>> import jax, jax.numpy as jnp
>>> from adamw_jax import compose, sgdw
>>> tx = compose(sgdw(1e-3), stochastic_rounding())
>>> params = gradient = jnp.ones(4096, jnp.bfloat16)
>>> updates, state = jax.jit(tx.update)(gradient, tx.init(params), params)
>>> bool(abs(updates.astype(jnp.float32).mean() + 1e-3) < 1e-4)
True
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from adamw_jax._core import numerics
from adamw_jax._core.options import shows_options
from adamw_jax._core.stage import Kind, Stage, Step, stage, tail
from adamw_jax.update._rounding_grid import (
    gap,
    in_place_of,
    is_narrow,
    largest,
    nearest,
    saturated,
    to_multiple,
)

Tree = Any

NAME = tail("stochastic_rounding")

_NOISE = jnp.uint16
_SEEDS = 2**32


class StochasticRoundingState(NamedTuple):
    """State of ``stochastic_rounding``.

    Attributes:
      key: data of a random key, uint32, new at every step.
    """

    key: jax.Array


@shows_options
def stochastic_rounding(seed: Any = 0) -> Stage:
    """Make updates that round parameters of less than 32 bits at random, without a bias.

    Args:
      seed: a whole number from 0 to 2**32 - 1, a scalar integer array, or a key of
        ``jax.random.key``; 0. Each leaf draws different numbers, by its path, also in parts of
        ``optax.partition`` with the same seed. Members of an ensemble under ``jax.vmap`` need one
        seed each: ``jax.vmap(lambda seed, p: make(seed).init(p))``.

    Returns:
      A stage *update -> update* that needs the parameters and must be the last of a recipe; changes
      after it would be rounded to nearest. It draws 16 bits per value, so updates of 2**-17 gaps
      and more count, which is the resolution of float32 next to a bfloat16. Parameters of 32 bits
      or more and complex ones do not change. The sum saturates at the largest finite number; NaN
      and infinity pass. Gradients must not be narrower than their parameters.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"w": jnp.ones(3, jnp.bfloat16)}
      >>> tx = aj.compose(aj.adamw(1e-4), aj.update.stochastic_rounding(seed=0))
      >>> updates, state = tx.update(params, tx.init(params), params)
    """
    key = _key(seed)
    implementation = random.key_impl(key)

    def init(params: Tree) -> StochasticRoundingState:
        del params
        # Copy the caller's buffer, because the state may be donated.
        return StochasticRoundingState(jnp.copy(random.key_data(key)))

    def apply(
        update: Tree, state: StochasticRoundingState, step: Step
    ) -> tuple[Tree, StochasticRoundingState]:
        later, now = random.split(random.wrap_key_data(state.key, impl=implementation))

        def leaf(path: Any, u: jax.Array, p: jax.Array) -> jax.Array:
            if not is_narrow(p):
                return u
            key = numerics.key_of(now, path, p)
            return rounding_update(jnp.asarray(p), u, random.bits(key, u.shape, _NOISE))

        new = jax.tree_util.tree_map_with_path(leaf, update, step.params)
        return new, StochasticRoundingState(random.key_data(later))

    return stage(
        NAME,
        Kind.UPDATE,
        Kind.UPDATE,
        apply,
        init=init,
        needs_params=True,
    )


def rounding_update(p: jax.Array, u: jax.Array, noise: jax.Array) -> jax.Array:
    """Choose one of the two updates around ``u``, in float32 but exact in the dtype of ``p``.

    Args:
      p: a narrow parameter.
      u: its update, of a dtype at least as wide.
      noise: uniform uint16, in the same shape.
    """
    dtype, limit = p.dtype, largest(p.dtype)
    start, wanted = numerics.cast(p, jnp.float32), numerics.cast(u, jnp.float32)
    exact = saturated(start + wanted, dtype)
    move = saturated(exact - start, dtype)
    grid = lax.max(gap(exact, dtype), gap(move, dtype))
    one = to_multiple(move, grid)
    to_one = nearest(start + one, dtype)
    apart = lax.max(grid, gap(one, dtype))
    other = saturated(one + jnp.where(to_one <= exact, apart, -apart), dtype)
    to_other = nearest(start + other, dtype)
    share = (exact - to_one) / numerics.nonzero(to_other - to_one)
    level = (numerics.cast(noise, jnp.float32) + 0.5) * 2.0**-16
    drawn = (level < share) & (jnp.abs(to_other) <= limit)
    chosen = jnp.where(drawn | (jnp.abs(to_one) > limit), other, one)
    finite = jnp.isfinite(start) & jnp.isfinite(wanted)
    return in_place_of(wanted, jnp.where(finite, chosen, wanted))


def _key(seed: Any) -> jax.Array:
    if isinstance(seed, jax.Array) and seed.shape == ():
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return seed
        if jnp.issubdtype(seed.dtype, jnp.integer):
            return random.key(seed)
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < _SEEDS:
        raise ValueError(
            "seed must be a whole number from 0 to 2**32 - 1, a scalar integer array or one key of "
            f"jax.random.key, got {seed!r}."
        )
    return random.key(int(seed))
