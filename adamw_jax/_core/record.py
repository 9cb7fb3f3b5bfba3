"""The moments record: what flows between ``estimate_moments`` and ``precondition``.

The record is deliberately *not* a pytree. Were it one, an ordinary transformation placed between
two stages would scale the moments and their masses alike and so be silently without effect.
Opaque, it makes such a recipe fail, and the message says what to write instead.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics

Tree = Any

_MISPLACED = (
    "the moments record reached a transformation that does not know it. Between "
    "estimate_moments(...) and precondition() only stages of adamw_jax may stand; put clipping, "
    "scaling and the like before estimate_moments or after precondition, and end the moments with "
    "precondition()."
)


class Clock(NamedTuple):
    """Two scalars that make bias correction exact, also for a moving decay rate b.

        mass' = b mass + (1 - b),    age' = b (age + mass)

    Near their limits both would stop short, of 1 by 3e-8 / (1 - b) in float32. So what is stored of
    a mass near 1 is what is missing, 1 - mass' = b (1 - mass), and an age never stands still.

    Attributes:
      level: the mass below 1/2, mass - 1 from there on; 0 for an empty average.
      age: the weighted sum of the ages of what it holds, in the default float dtype as the other.
    """

    level: jax.Array
    age: jax.Array

    @staticmethod
    def start() -> Clock:
        """The clock of an empty average."""
        dtype = numerics.default_float()
        return Clock(jnp.zeros([], dtype), jnp.zeros([], dtype))

    @staticmethod
    def of(mass: jax.Array, age: jax.Array, missing: jax.Array | None = None) -> Clock:
        """The clock of a mass, or of what is missing to 1 where that is known better.

        Args:
          mass: the sum of the weights.
          age: the weighted sum of their ages.
          missing: 1 - mass; None to compute it.
        """
        missing = 1.0 - mass if missing is None else missing
        least = jnp.finfo(mass.dtype).tiny  # 0 is an empty average
        return Clock(jnp.where(missing > 0.5, mass, -jnp.maximum(missing, least)), age)

    @property
    def mass(self) -> jax.Array:
        """The sum of the weights of the average."""
        return jnp.where(self.level < 0, 1.0 + self.level, self.level)

    def tick(self, b: jax.Array) -> Clock:
        """The clock after one more entry.

        Args:
          b: decay rate of the average in this step, a scalar in [0, 1).
        """
        mass, rest = self.mass, 1.0 - b
        missing = b * jnp.where(self.level < 0, -self.level, 1.0 - self.level)
        more = b * mass - rest * self.age
        age = self.age + more
        # What rounding would lose for ever: one unit in the last place towards the limit.
        unit = jnp.sign(more) * self.age * jnp.finfo(mass.dtype).eps
        age = jnp.where(age == self.age, self.age + unit, age)
        return Clock.of(b * mass + rest, age, missing)

    def mixed(self, old: Clock, share: jax.Array) -> Clock:
        """The clock of ``share`` of this average and the rest of an older one.

        Args:
          old: the clock of the other.
          share: in [0, 1].
        """
        mass, age = (
            share * x + (1.0 - share) * y for x, y in ((self.mass, old.mass), (self.age, old.age))
        )
        return Clock.of(mass, age)


class Reading(NamedTuple):
    """A moment as the stages see it.

    Bias correction is one scalar for all leaves, so it is kept beside the arrays until someone
    needs them divided: ``precondition`` folds it into its own scalars, which saves two
    multiplications an element.

    Attributes:
      raw: params-shaped tree in the compute dtype, not divided yet where ``pending``.
      clock: the clock of the average, or None where nothing is to be corrected.
      rate: the decay rate of this step, or None.
      divisor: what bias correction divides by, or None before it.
      pending: whether ``raw`` is still to be divided by ``divisor``.
      count: updates in the average, where they are not those of the recipe; else None.
      entry: what a second moment is to square in place of the gradient, or None.
      inverse_root: of a second moment that is known by factors, its root's inverse, leaf by leaf a
        tuple of arrays to multiply by; empty for a leaf that is to be divided by the root of raw.
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
        """The moment itself, divided where a division is due."""
        if not self.pending:
            return self.raw
        assert self.divisor is not None
        return divided(self.raw, self.divisor)

    @property
    def due(self) -> jax.Array | None:
        """The divisor that ``raw`` still lacks, or None."""
        return self.divisor if self.pending else None


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Gradient, first and second moment of one step.

    Attributes:
      gradient: the gradient as it arrived, in its own dtype.
      count: updates of the moments including this one, int32: 1 at the first, and after a restart.
      first: reading of the first moment.
      second: reading of the second moment, or None where there is none.
      prior_second: reading of the second moment of the step before, or None.
      magnitude: True where ``second`` is on the scale of |g|, not of g^2 (infinity norm).
      numerator: what is divided by the root of ``second`` in place of ``first``, or None.
      gain: factor on the direction, a scalar, or a tree of scalars or arrays, or None.
      exceptions: where the direction is not divided by the second moment (a scalar or a tree of
        scalars), and what it is there: ``"momentum"``, ``"numerator"`` or ``"zero"``. Of several
        that hold the first decides.
      restarted: whether the moments were emptied before this step, or None where they never are.
    """

    is_moments_record: ClassVar[bool] = True

    gradient: Tree
    count: jax.Array
    first: Reading
    second: Reading | None
    prior_second: Reading | None
    magnitude: bool = False
    numerator: Tree | None = None
    gain: Any = None
    exceptions: tuple[tuple[Any, str], ...] = ()
    restarted: jax.Array | None = None

    def with_first(self, value: Tree, divisor: jax.Array | None = None) -> Moments:
        """A record with another first moment.

        Args:
          value: params-shaped tree in the compute dtype; nothing is still to be divided in it.
          divisor: what it was divided by to correct its bias; None for that of the old one.
        """
        return dataclasses.replace(self, first=_changed(self.first, value, divisor))

    def with_second(self, value: Tree, divisor: jax.Array | None = None) -> Moments:
        """A record with another second moment.

        Args:
          value: as for ``with_first``.
          divisor: as for ``with_first``.
        """
        return dataclasses.replace(self, second=_changed(self.second, value, divisor))

    def scaled(self, factor: Any) -> Moments:
        """A record whose direction is multiplied by one factor more.

        Args:
          factor: a scalar, or a tree of scalars or arrays like the gradient.
        """
        if self.gain is not None:
            old, new = (leafwise(gain, self.gradient) for gain in (self.gain, factor))
            factor = jax.tree.map(lax.mul, old, new)
        return dataclasses.replace(self, gain=factor)

    def only_where(self, adaptive: jax.Array, fallback: str) -> Moments:
        """A record whose direction is divided only where a condition holds.

        Args:
          adaptive: the condition, a scalar or a tree of scalars.
          fallback: the direction elsewhere, ``"momentum"``, ``"numerator"`` or ``"zero"``, but
            where an earlier condition does not hold, either: its own fallback stays there.
        """
        other = jax.tree.map(lax.bitwise_not, adaptive), fallback
        return dataclasses.replace(self, exceptions=(*self.exceptions, other))

    @property
    def adaptive(self) -> Any:
        """Where no exception holds, leaf by leaf; True where there is none."""
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
        """Names the mistake where a foreign transformation asks for ``.dtype`` or ``.shape``."""
        raise AttributeError(f"Moments has no attribute {name!r}: {_MISPLACED}")

    def __repr__(self) -> str:
        """A short text: the error messages of JAX quote it."""
        return "<adamw_jax Moments record: put precondition() after the stages on moments>"


def _changed(reading: Reading | None, value: Tree, divisor: jax.Array | None) -> Reading:
    assert reading is not None
    divisor = reading.divisor if divisor is None else divisor
    return reading._replace(raw=value, divisor=divisor, pending=False, inverse_root=None)


def emptied(tree: Tree, when: jax.Array | None) -> Tree:
    """``tree``, all zeros where ``when`` holds; ``tree`` itself where ``when`` is None."""
    if when is None:
        return tree
    return jax.tree.map(lambda x: lax.select(when, lax.full_like(x, 0), x), tree)


def divided(tree: Tree, divisor: jax.Array) -> Tree:
    """``tree / divisor`` for a scalar divisor: one division, then a multiplication an element."""
    factor = jnp.ones([], divisor.dtype) / divisor
    return jax.tree.map(lambda x: numerics.scaled(factor, x), tree)


def leafwise(x: Any, tree: Tree) -> Tree:
    """``x`` as a tree shaped like ``tree``: a scalar array is repeated for every leaf."""
    if isinstance(x, jax.Array | bool):
        return jax.tree.map(lambda _: x, tree)
    return x
