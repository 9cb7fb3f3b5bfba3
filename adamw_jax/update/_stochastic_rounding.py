"""Stochastic rounding: narrow parameters that move by updates smaller than their resolution.

    theta <- theta + u,  rounded up with the probability of its distance from below, else down,

so that on average nothing is lost: E[theta'] = theta + u. Rounded to nearest, a bfloat16 weight of
1 does not feel a thousand updates of 1e-3. Gupta, Agrawal, Gopalakrishnan & Narayanan, ICML 2015,
arXiv 1502.02551; for bfloat16 weights, Zamirai, Zhang, Aberger & De Sa, arXiv 2010.06192.

The update leaves in the wider of the dtypes of gradient and parameter, and
``optax.apply_updates`` rounds the sum to nearest. So the choice is between two *updates* that this
dtype holds, and whose sums round to one number on either side of theta + u; the odds are those of
the two sums. The steps between such updates are the gap at theta + u or at u, the larger one: with
a small update, the sums are the two neighbours of theta + u.

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
      key: the data of a random key, uint32, renewed at every step.
    """

    key: jax.Array


def stochastic_rounding(seed: Any = 0) -> Stage:
    """Updates that round parameters of less than 32 bits at random, without a bias.

    Args:
      seed: a whole number from 0 to 2**32 - 1, a scalar integer array, or a key of
        ``jax.random.key``; 0. Every leaf draws numbers of its own, by its path, also in the parts
        of ``optax.partition`` that have one seed. Members of an ensemble that is mapped want one
        each: ``jax.vmap(lambda seed, p: make(seed).init(p))``.

    Returns:
      A stage *update -> update* that needs the parameters and must be the last of a recipe: what
      comes after it would be rounded to nearest. It draws 16 bits a value, so that an update counts
      from 2**-17 gaps on, which is what float32 resolves next to a bfloat16. Parameters of float32
      and more, and complex ones, pass as they are. The sum saturates at the largest finite
      number; NaN and infinity pass. Gradients must not be narrower than their parameters.
    """
    key = _key(seed)
    implementation = random.key_impl(key)

    def init(params: Tree) -> StochasticRoundingState:
        del params
        # Never the caller's buffer: the state may be donated.
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
    """One of the two updates around ``u``, in float32 and representable in the dtype of ``p``.

    Args:
      p: a narrow parameter.
      u: its update, of a dtype at least as wide.
      noise: as many uniform uint16.
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
