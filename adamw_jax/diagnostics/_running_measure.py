"""``RunningMeasure``: time averages of scalars, and whether they stand still.

    mean_t = (1/t) sum of x,      drift = mean of the later half of the window - of the earlier half

A training that has settled moves on while its time averages do not (Zhang, Li, Sra & Jadbabaie,
ICML 2022, arXiv 2110.06256). Successive values are correlated, so the error of the drift comes from
means over blocks: sqrt(2 / n (s_1^2 + s_2^2)) for n blocks, with the variances of the two halves.

>>> import jax.numpy as jnp
>>> measure = RunningMeasure(window=20, blocks=4)
>>> state = measure.init({"loss": 0.0})
>>> for t in range(40):
...     state = measure.update(state, {"loss": jnp.float32(t % 2)})
>>> found = measure.read(state)["loss"]
>>> print(found.mean, found.variance, found.drift, found.settled)
0.5 0.25 0.0 True
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import whole_number
from adamw_jax._core.stage import increment

Tree = Any


class Measured(NamedTuple):
    """What is known of one scalar; of the default float dtype but for ``settled``.

    Attributes:
      mean: over all steps.
      variance: over all steps, divided by their number.
      window_mean: over the blocks of the window that are complete; 0 before the first.
      drift: mean of the later half of the window less that of the earlier one.
      drift_error: its standard error.
      settled: whether the window is full and the drift at most two standard errors.
    """

    mean: jax.Array
    variance: jax.Array
    window_mean: jax.Array
    drift: jax.Array
    drift_error: jax.Array
    settled: jax.Array


class RunningMeasureState(NamedTuple):
    """State of a ``RunningMeasure``, trees of scalars but for ``blocks``.

    Attributes:
      count: steps, int32.
      mean: over all of them.
      square: sum of squared distances from the mean.
      partial: sum over the block that is under way.
      blocks: means of the last complete blocks, a ring of shape (blocks,) for each scalar.
    """

    count: jax.Array
    mean: Tree
    square: Tree
    partial: Tree
    blocks: Tree


@dataclasses.dataclass(frozen=True)
class RunningMeasure:
    """Measures a tree of scalars; ``init``, ``update`` and ``read`` are pure and run under ``jit``.

    Attributes:
      window: steps over which drift is judged, a multiple of ``blocks``.
      blocks: parts of it, even, >= 4; each should be longer than values stay correlated.

    Raises:
      ValueError: the numbers are not of that kind.
    """

    window: int = 1000
    blocks: int = 20

    def __post_init__(self) -> None:
        """Checks the numbers."""
        blocks = whole_number("blocks", self.blocks, least=4)
        window = whole_number("window", self.window, least=blocks)
        if blocks % 2 or window % blocks:
            raise ValueError(
                f"window must be a multiple of blocks, and blocks even, got window={self.window} "
                f"and blocks={self.blocks}."
            )

    def init(self, scalars: Tree) -> RunningMeasureState:
        """The state before the first step.

        Args:
          scalars: a tree like those to be measured; its values do not count.
        """

        def zeros(*shape: int) -> Tree:
            return jax.tree.map(lambda _: jnp.zeros(shape, numerics.default_float()), scalars)

        count = jnp.zeros([], jnp.int32)
        return RunningMeasureState(count, zeros(), zeros(), zeros(), zeros(self.blocks))

    def update(self, state: RunningMeasureState, scalars: Tree) -> RunningMeasureState:
        """The state after one more step.

        Args:
          state: from ``init`` or the step before.
          scalars: what was measured, a tree of scalars like that of ``init``. A value that is not
            finite shows in every later mean.

        Raises:
          ValueError: ``scalars`` is another tree, or holds arrays.
        """
        self._check(state, scalars)
        new = jax.tree.map(numerics.scalar, scalars)
        count = increment(state.count)
        length = self.window // self.blocks
        ends = lax.rem(count, jnp.int32(length)) == 0
        slot = lax.rem(count // jnp.int32(length) - 1, jnp.int32(self.blocks))
        number = numerics.scalar(count)

        def close(ring: jax.Array, total: jax.Array) -> jax.Array:
            filled = lax.dynamic_update_index_in_dim(ring, total / length, slot, 0)
            return lax.select(ends, filled, ring)

        mean = jax.tree.map(lambda m, x: m + (x - m) / number, state.mean, new)
        square = jax.tree.map(
            lambda s, x, old, now: s + (x - old) * (x - now), state.square, new, state.mean, mean
        )
        total = jax.tree.map(jnp.add, state.partial, new)
        blocks = jax.tree.map(close, state.blocks, total)
        partial = jax.tree.map(lambda p: lax.select(ends, jnp.zeros_like(p), p), total)
        return RunningMeasureState(count, mean, square, partial, blocks)

    def read(self, state: RunningMeasureState) -> Tree:
        """What is known after the last step.

        Args:
          state: from ``init`` or ``update``.

        Returns:
          A tree like the scalars, with a ``Measured`` for each; zeros before the first step.
        """
        complete = state.count // jnp.int32(self.window // self.blocks)
        held = numerics.scalar(jnp.clip(complete, 1, self.blocks))
        number = numerics.scalar(jnp.maximum(state.count, 1))

        def one(mean: jax.Array, square: jax.Array, ring: jax.Array) -> Measured:
            earlier, later = jnp.split(jnp.roll(ring, -complete), 2)
            drift = jnp.mean(later) - jnp.mean(earlier)
            spread = jnp.var(later, ddof=1) + jnp.var(earlier, ddof=1)
            error = jnp.sqrt(2.0 * spread / self.blocks)
            settled = (complete >= self.blocks) & (jnp.abs(drift) <= 2.0 * error)
            return Measured(mean, square / number, jnp.sum(ring) / held, drift, error, settled)

        return jax.tree.map(one, state.mean, state.square, state.blocks)

    def _check(self, state: RunningMeasureState, scalars: Tree) -> None:
        expected, found = jax.tree.structure(state.mean), jax.tree.structure(scalars)
        shapes = [jnp.shape(x) for x in jax.tree.leaves(scalars)]
        if expected != found or any(shapes):
            raise ValueError(
                f"scalars must be like those given to init, {expected}; got {found} of shapes "
                f"{shapes}."
            )
