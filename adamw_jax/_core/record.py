"""The moments record, which flows from ``estimate_moments`` to ``precondition``.

The record is deliberately *not* a pytree. If it were, an ordinary transformation between two stages
would scale the moments and the sums of their weights alike, and would silently have no effect. With
an opaque record such a recipe fails, and the error says what to write instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics

Tree = Any
Change = Callable[..., Tree]

_MISPLACED = (
    "the moments record reached a transformation that cannot read it. Between "
    "estimate_moments(...) and precondition() only stages of adamw_jax are allowed; put clipping, "
    "scaling and the like before estimate_moments or after precondition, and add precondition() if "
    "it is missing."
)


class Clock(NamedTuple):
    """Two scalars of a moving average that make bias correction exact, also if b changes.

        W' = b W + (1 - b),    A' = b (A + W)

    b is the decay rate, W = ``weight_sum`` the sum of the weights of all entries, A =
    ``weighted_age`` the sum of weight times age in steps. Stored directly, both would stop before
    their limits, W at a distance of 3e-8 / (1 - b) from 1 in float32. So W near 1 is stored as its
    difference from 1, which follows 1 - W' = b (1 - W), and a step that rounding would lose changes
    A by one unit in the last place.

    Attributes:
      level: W if it is below 1/2, otherwise W - 1; 0 for an empty average.
      weighted_age: A, or None if nothing reads it. Both have the default float dtype.
    """

    level: jax.Array
    weighted_age: jax.Array | None = None

    @staticmethod
    def start(*, aged: bool = False) -> Clock:
        """Return the clock of an empty average.

        Args:
          aged: whether to keep A, which ``rectify_variance`` reads.
        """
        zero = jnp.zeros([], numerics.default_float())
        return Clock(zero, jnp.copy(zero) if aged else None)

    @staticmethod
    def of(weight_sum: jax.Array, weighted_age: jax.Array | None = None) -> Clock:
        """Make a clock from its two sums.

        Args:
          weight_sum: the sum of the weights.
          weighted_age: the sum of weight times age, or None.
        """
        return Clock(_level(weight_sum, 1.0 - weight_sum), weighted_age)

    @property
    def weight_sum(self) -> jax.Array:
        """The sum of the weights of the average."""
        return _weight_sum(self.level)

    def tick(self, b: jax.Array) -> Clock:
        """Return the clock after one more entry.

        Args:
          b: decay rate of the average in this step, a scalar in [0, 1).
        """
        return Clock(*_ticked(self.level, self.weighted_age, b))

    def mixed(self, old: Clock, share: jax.Array) -> Clock:
        """Return the clock of the average ``share * new + (1 - share) * old``, this being the new.

        Args:
          old: the clock of the other average.
          share: a scalar in [0, 1].
        """
        rest, age = 1.0 - share, None
        if self.weighted_age is not None and old.weighted_age is not None:
            age = share * self.weighted_age + rest * old.weighted_age
        return Clock.of(share * self.weight_sum + rest * old.weight_sum, age)


def _level(weight_sum: jax.Array, missing: jax.Array) -> jax.Array:
    least = jnp.finfo(weight_sum.dtype).tiny  # 0 means an empty average
    return jnp.where(missing > 0.5, weight_sum, -jnp.maximum(missing, least))


@numerics.kernel
def _weight_sum(level: jax.Array) -> jax.Array:
    return jnp.where(level < 0, 1.0 + level, level)


@numerics.kernel
def _ticked(
    level: jax.Array, old: jax.Array | None, b: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    weight_sum, rest = _weight_sum(level), 1.0 - b
    new = _level(b * weight_sum + rest, b * jnp.where(level < 0, -level, 1.0 - level))
    if old is None:
        return new, None
    more = b * weight_sum - rest * old
    age = old + more
    # If rounding loses the change, move by one unit in the last place towards the limit.
    unit = jnp.sign(more) * old * jnp.finfo(weight_sum.dtype).eps
    return new, jnp.where(age == old, old + unit, age)


class Reading(NamedTuple):
    """A moment as the stages see it.

    Bias correction divides all leaves by one scalar. The scalar is kept next to the arrays until a
    stage needs the quotient: ``precondition`` combines it with its own scalars, which saves two
    multiplications per element.

    Attributes:
      raw: tree of arrays like the parameters, in the compute dtype; undivided if ``pending``.
      clock: the clock of the average, or None if it needs no bias correction.
      rate: the decay rate of this step, or None.
      divisor: the divisor of bias correction; None before that stage.
      pending: whether ``raw`` is still to be divided by ``divisor``.
      count: number of updates in the average if it differs from that of the recipe, else None.
      entry: the values that a second moment squares instead of the gradient, or None.
      inverse_root: for a factored second moment the factors of 1 / root, a tuple of arrays for each
        leaf; an empty tuple for a leaf that is to be divided by the root of ``raw``.
    """

    raw: Tree
    clock: Clock | None = None
    rate: jax.Array | None = None
    divisor: jax.Array | None = None
    pending: bool = False
    count: jax.Array | None = None
    entry: Tree | None = None
    inverse_root: Tree | None = None

    @property
    def value(self) -> Tree:
        """The moment itself, after any pending division."""
        if not self.pending:
            return self.raw
        assert self.divisor is not None
        return divided(self.raw, self.divisor)

    @property
    def due(self) -> jax.Array | None:
        """The divisor of the pending division, or None."""
        return self.divisor if self.pending else None


def _map_tree(change: Change, *trees: Tree | None) -> Tree | None:
    return None if trees[0] is None else change(*trees)


def _map_moment(change: Change, *moments: Reading | None) -> Reading | None:
    if moments[0] is None:
        return None
    raw = change(*(moment.raw for moment in moments if moment is not None))
    return moments[0]._replace(raw=raw, inverse_root=None)


def _map_factor(change: Change, *factors: Any) -> Any:
    is_scalar = factors[0] is None or isinstance(factors[0], jax.Array)
    return factors[0] if is_scalar else change(*factors)


def _map_pairs(change: Change, *pairs: Any) -> Any:
    return tuple(
        (_map_factor(change, *(where for where, _ in alike)), alike[0][1])
        for alike in zip(*pairs, strict=True)
    )


# How ``Moments.map_leaves`` finds the trees in a field.
_TREE, _MOMENT, _FACTOR, _PAIRS = (
    {"map": mapping} for mapping in (_map_tree, _map_moment, _map_factor, _map_pairs)
)


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Gradient, first and second moment of one step.

    Attributes:
      gradient: the gradient as it arrived, in its own dtype.
      count: updates of the moments including this one, int32: 1 at the first, and after a restart.
      first: the first moment.
      second: the second moment, or None.
      prior_second: the second moment of the previous step, or None.
      magnitude: True if ``second`` has the scale of |g|, not of g^2 (infinity norm).
      numerator: divided by the root of ``second`` instead of ``first``, or None.
      gain: factor on the direction: a scalar, or a tree of scalars or arrays, or None.
      exceptions: pairs of a condition (a scalar or a tree of scalars) and the direction where it
        holds instead of the quotient: ``"momentum"``, ``"numerator"`` or ``"zero"``. If several
        conditions hold, the first pair counts.
      restarted: whether the moments were reset before this step, or None if they never are.
    """

    is_moments_record: ClassVar[bool] = True

    gradient: Tree = field(metadata=_TREE)
    count: jax.Array
    first: Reading = field(metadata=_MOMENT)
    second: Reading | None = field(metadata=_MOMENT)
    prior_second: Reading | None = field(metadata=_MOMENT)
    magnitude: bool = False
    numerator: Tree | None = field(default=None, metadata=_TREE)
    gain: Any = field(default=None, metadata=_FACTOR)
    exceptions: tuple[tuple[Any, str], ...] = field(default=(), metadata=_PAIRS)
    restarted: jax.Array | None = None

    def map_leaves(self, change: Change, *others: Moments) -> Moments:
        """Return a record with ``change`` applied to every tree that has an entry for each leaf.

        Args:
          change: a function of such a tree, and of the trees at its place in the other records.
          *others: records with the same fields given, as scalars or trees.
        """
        changed = {
            entry.name: entry.metadata["map"](
                change, *(getattr(record, entry.name) for record in (self, *others))
            )
            for entry in dataclasses.fields(self)
            if "map" in entry.metadata
        }
        return dataclasses.replace(self, **changed)

    def with_first(self, value: Tree, divisor: jax.Array | None = None) -> Moments:
        """Return a record with another first moment.

        Args:
          value: tree of arrays like the parameters, in the compute dtype, with bias corrected.
          divisor: the divisor of its bias correction; None for that of the old moment.
        """
        return dataclasses.replace(self, first=_changed(self.first, value, divisor))

    def with_second(self, value: Tree, divisor: jax.Array | None = None) -> Moments:
        """Return a record with another second moment.

        Args:
          value: as for ``with_first``.
          divisor: as for ``with_first``.
        """
        return dataclasses.replace(self, second=_changed(self.second, value, divisor))

    def scaled(self, factor: Any) -> Moments:
        """Return a record whose direction has an additional factor.

        Args:
          factor: a scalar, or a tree of scalars or arrays like the gradient.
        """
        if self.gain is not None:
            old, new = (leafwise(gain, self.gradient) for gain in (self.gain, factor))
            factor = jax.tree.map(lax.mul, old, new)
        return dataclasses.replace(self, gain=factor)

    def only_where(self, adaptive: jax.Array, fallback: str) -> Moments:
        """Return a record whose direction is divided only where a condition holds.

        Args:
          adaptive: the condition, a scalar or a tree of scalars.
          fallback: the direction elsewhere, ``"momentum"``, ``"numerator"`` or ``"zero"``. Where an
            earlier condition does not hold either, the earlier fallback stays.
        """
        other = jax.tree.map(lax.bitwise_not, adaptive), fallback
        return dataclasses.replace(self, exceptions=(*self.exceptions, other))

    @property
    def adaptive(self) -> Any:
        """Where no exception holds, leaf by leaf; True if there are no exceptions."""
        adaptive = leafwise(True, self.gradient)
        for where, _ in self.exceptions:
            adaptive = jax.tree.map(
                lambda use, no: lax.bitwise_not(no) if use is True else use & ~no,
                adaptive,
                leafwise(where, self.gradient),
            )
        return adaptive

    def _refuse(self, *_: Any) -> NoReturn:
        raise TypeError(_MISPLACED)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __neg__ = __pow__ = __abs__ = __lt__ = __gt__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        """Explain the mistake if a foreign transformation reads ``.dtype`` or ``.shape``."""
        raise AttributeError(f"Moments has no attribute {name!r}: {_MISPLACED}")

    def __repr__(self) -> str:
        """Keep it short: JAX quotes it in error messages."""
        return "<adamw_jax Moments record: put precondition() after the stages on moments>"


def _changed(reading: Reading | None, value: Tree, divisor: jax.Array | None) -> Reading:
    assert reading is not None
    divisor = reading.divisor if divisor is None else divisor
    return reading._replace(raw=value, divisor=divisor, pending=False, inverse_root=None)


def emptied(tree: Tree, when: jax.Array | None) -> Tree:
    """Return ``tree``, or zeros if ``when`` is true; ``when=None`` means never."""
    if when is None:
        return tree
    return jax.tree.map(lambda x: lax.select(when, lax.full_like(x, 0), x), tree)


def divided(tree: Tree, divisor: jax.Array) -> Tree:
    """Return ``tree / divisor`` for a scalar: one division, then one product per element."""
    factor = jnp.ones([], divisor.dtype) / divisor
    return jax.tree.map(lambda x: numerics.scaled(factor, x), tree)


def leafwise(x: Any, tree: Tree) -> Tree:
    """Return ``x`` as a tree like ``tree``; a scalar is repeated for every leaf."""
    if isinstance(x, jax.Array | bool):
        return jax.tree.map(lambda _: x, tree)
    return x
