"""Average scalars over time, and test whether the averages still change.

    mean_t = (1/t) sum of x,      drift = mean of the later half of the window - of the earlier half

Training has settled if its time averages are constant, even if the parameters still move (Zhang,
Li, Sra & Jadbabaie, ICML 2022, arXiv 2110.06256). Successive values are correlated, so the error of
the drift is computed from means over blocks: sqrt(2 / n (s_1^2 + s_2^2)), with n blocks and the
variances s_1^2, s_2^2 of the block means in the two halves.

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
from adamw_jax._core.numerics import increment

Tree = Any


class Measured(NamedTuple):
    """Statistics of one scalar, in the default float dtype; ``settled`` is a bool.

    Attributes:
      mean: mean over all steps.
      variance: variance over all steps, divided by their number.
      window_mean: mean over the complete blocks of the window; 0 before the first.
      drift: mean of the later half of the window minus mean of the earlier half.
      drift_error: standard error of the drift.
      settled: whether the window is full and the drift at most two standard errors.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> measure = aj.diagnostics.RunningMeasure(window=8, blocks=4)
      >>> state = measure.init({"loss": jnp.float32(0.0)})
      >>> for loss in (3.0, 5.0):
      ...     state = measure.update(state, {"loss": jnp.float32(loss)})
      >>> float(measure.read(state)["loss"].mean)
      4.0
    """

    mean: jax.Array
    variance: jax.Array
    window_mean: jax.Array
    drift: jax.Array
    drift_error: jax.Array
    settled: jax.Array


class RunningMeasureState(NamedTuple):
    """State of a ``RunningMeasure``, trees like the scalars.

    Attributes:
      count: number of steps, int32.
      mean: mean over all steps.
      square: sum of squared distances from the mean.
      partial: sum over the current block.
      blocks: means of the last complete blocks, a ring buffer of shape (blocks,) per scalar.
    """

    count: jax.Array
    mean: Tree
    square: Tree
    partial: Tree
    blocks: Tree


@dataclasses.dataclass(frozen=True)
class RunningMeasure:
    """Averages of a tree of scalars; its methods are pure and run under ``jit``.

    Attributes:
      window: number of steps for the drift, a multiple of ``blocks``.
      blocks: number of parts of the window, even, >= 4. A block should be longer than the time over
        which values are correlated.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> measure = aj.diagnostics.RunningMeasure(window=8, blocks=4)
      >>> state = measure.init({"loss": jnp.float32(0.0)})
      >>> state = measure.update(state, {"loss": jnp.float32(3.0)})
      >>> found = measure.read(state)["loss"]
    """

    window: int = 1000
    blocks: int = 20

    def __post_init__(self) -> None:
        """Check the arguments."""
        blocks = whole_number("blocks", self.blocks, least=4)
        window = whole_number("window", self.window, least=blocks)
        if blocks % 2 or window % blocks:
            raise ValueError(
                f"window must be a multiple of blocks, and blocks even, got window={self.window} "
                f"and blocks={self.blocks}."
            )

    def init(self, scalars: Tree) -> RunningMeasureState:
        """Return the state before the first step.

        Args:
          scalars: a tree like those to be measured; its values are ignored.
        """

        def zeros(*shape: int) -> Tree:
            return jax.tree.map(lambda _: jnp.zeros(shape, numerics.default_float()), scalars)

        count = jnp.zeros([], jnp.int32)
        return RunningMeasureState(count, zeros(), zeros(), zeros(), zeros(self.blocks))

    def update(self, state: RunningMeasureState, scalars: Tree) -> RunningMeasureState:
        """Return the state after one more step.

        Args:
          state: from ``init`` or the previous ``update``.
          scalars: the measured values, a tree of scalars like that of ``init``. After a value that
            is not finite, no later mean is finite.
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
        """Return the statistics after the last step.

        Args:
          state: from ``init`` or ``update``.

        Returns:
          A tree like the scalars with a ``Measured`` in each place; zeros before the first step.
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
