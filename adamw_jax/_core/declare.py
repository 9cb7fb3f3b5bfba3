"""Declare hyperparameters and check their values.

A hyperparameter is a number, an array, a tracer, or a schedule: a function of the step count
(0 at the first update). Concrete numbers are checked when the optimizer is built. Tracers and
values of schedules cannot be checked: a schedule with a negative learning rate ascends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adamw_jax._core import numerics

ScalarOrSchedule: TypeAlias = (
    float | jax.Array | np.ndarray | np.number | Callable[[jax.Array], jax.typing.ArrayLike]
)
"""A number, a scalar array or tracer, or a function of the step count."""


class Schedules(Protocol):
    """An object that holds several schedules, such as the result of ``one_cycle``."""

    @property
    def learning_rate(self) -> ScalarOrSchedule:
        """The learning rate; ``momentum``, ``b2``, ``weight_decay`` and ``l2`` are optional."""
        ...


LearningRate: TypeAlias = ScalarOrSchedule | Schedules
"""The types that an optimizer takes as learning rate."""


class Domain(NamedTuple):
    """The interval of allowed values; call it on a value, and pass the result to ``declare``.

    Attributes:
      low: the lower end.
      high: the upper end.
      brackets: starts with ``"["`` if the lower end is allowed, ends with ``"]"`` if the upper is.
      infinite: whether infinity is allowed, for a bound that may be switched off.
      remedy: a sentence at the end of the error.
      reshapes_step: whether the step of SGD with this hyperparameter is another than the learning
        rate times the momentum; ``learn_rates`` then refuses it.
    """

    low: float = -math.inf
    high: float = math.inf
    brackets: str = "[]"
    infinite: bool = False
    remedy: str = ""
    reshapes_step: bool = False

    def __call__(self, value: ScalarOrSchedule) -> Ranged:
        """Return the value with this range, for ``declare``."""
        return Ranged(value, self)

    def if_given(self, value: ScalarOrSchedule | None) -> Ranged | None:
        """Do the same, but return None for None, which ``declare`` leaves out."""
        return None if value is None else self(value)

    def contains(self, x: float) -> bool:
        """Return whether a number is inside, without regard to ``infinite``."""
        above = x >= self.low if self.brackets[0] == "[" else x > self.low
        return above and (x <= self.high if self.brackets[1] == "]" else x < self.high)

    @property
    def words(self) -> str:
        """What a value must be, in words for an error."""
        if self.high < math.inf:
            return f"a number in {self.brackets[0]}{self.low:g}, {self.high:g}{self.brackets[1]}"
        if self.low > -math.inf:
            return f"a number {'>=' if self.brackets[0] == '[' else '>'} {self.low:g}"
        return "a finite number"


class Ranged(NamedTuple):
    """A value or schedule, and its range."""

    value: ScalarOrSchedule
    domain: Domain


nonnegative = Domain(0)
length = Domain(0, remedy=" To climb, negate the loss or the gradients.")
positive = Domain(0, brackets="(]")
bound = positive._replace(infinite=True)
decay_rate = Domain(0, 1, "[)")
fraction = Domain(0, 1)
up_to_half = Domain(0, 0.5)
exponent = Domain(0, 1, "(]")
at_least_one = Domain(1, infinite=True)
real = Domain()


class Hyperparameter(NamedTuple):
    """A declared hyperparameter.

    Attributes:
      name: its name.
      value: its value or schedule.
      domain: its range.
      shared: whether stages that declare it with the same value share it under this name.
    """

    name: str
    value: ScalarOrSchedule
    domain: Domain
    shared: bool = False

    def at(self, count: jax.Array) -> jax.Array:
        """Return the value at step ``count``, a scalar of the default float dtype."""
        if not callable(self.value):
            return numerics.scalar(self.value)
        return numerics.scalar(real_number(self.value(count), f"the schedule of {self.name} gave"))

    def __str__(self) -> str:
        """Return the name and the value, ``learning_rate=0.001``."""
        return f"{self.name}={'schedule' if callable(self.value) else self.value}"

    def same_as(self, other: Hyperparameter) -> bool:
        """Return whether both are the same number or schedule, so that stages can share it."""
        mine, theirs = self.value, other.value
        if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
            return mine == theirs
        return mine is theirs


def declare(**values: Ranged | None) -> dict[str, Hyperparameter]:
    """Check hyperparameters and return them by name; each value comes with its range.

    >>> declare(b1=decay_rate(1.5))
    Traceback (most recent call last):
    ValueError: b1 must be a number in [0, 1) or a schedule, got 1.5.
    """
    return {name: _checked(name, *ranged) for name, ranged in values.items() if ranged}


def _checked(name: str, value: Any, domain: Domain) -> Hyperparameter:
    """Make a hyperparameter; check its value as far as it is known now."""
    hyper = Hyperparameter(name, value, domain)
    if callable(value):
        return hyper
    expected = f"{name} must be {domain.words} or a schedule"
    if value is None or isinstance(value, (bool, np.bool_, str)):
        raise TypeError(f"{expected}, got {value!r}.")
    if isinstance(value, jax.core.Tracer):
        _check_array(name, value, domain)
        return hyper
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        _check_array(name, value, domain)
    elif not isinstance(value, (int, float)):
        raise TypeError(f"{expected}, got {value!r} of type {type(value).__name__}.")
    in_domain(value, domain, expected)
    return hyper


def in_domain(value: Any, domain: Domain, expected: str) -> None:
    """Raise if a number is outside its range, also after rounding to the dtype of scalars."""
    concrete = float(value)
    if math.isnan(concrete) or not domain.contains(concrete):
        raise ValueError(f"{expected}, got {concrete!r}.{domain.remedy}")
    dtype = numerics.default_float()
    with np.errstate(over="ignore"):
        rounded = float(np.asarray(concrete, dtype))
    if math.isinf(concrete) and not domain.infinite:
        raise ValueError(f"{expected}, got {concrete!r}, which is not finite.")
    if not domain.contains(rounded) or math.isinf(rounded) > math.isinf(concrete):
        raise ValueError(f"{expected}, got {concrete!r}, which {dtype} rounds out of that range.")


def _check_array(name: str, value: Any, domain: Domain) -> None:
    if value.shape != ():
        raise ValueError(
            f"{name} must be a scalar, got an array of shape {value.shape}; to run several values "
            "at once, map the whole optimizer with jax.vmap."
        )
    if jnp.issubdtype(value.dtype, jnp.complexfloating) or value.dtype == jnp.bool_:
        raise TypeError(f"{name} must be {domain.words}, got an array of dtype {value.dtype}.")
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    if domain == decay_rate and narrow:
        raise TypeError(
            f"{name} has dtype {value.dtype}, in which a decay rate near 1 rounds to 1 and stops "
            "the average. Pass it in float32; with optax.inject_hyperparams, give "
            "hyperparam_dtype=jnp.float32."
        )


def real_number(value: Any, what: str, shape: tuple[int, ...] = ()) -> Any:
    """Return ``value`` if it is a real number, or an array that is a scalar or of ``shape``.

    ``what`` is the beginning of the error: ``"learning_rate must be a number, got"``.
    """
    array = isinstance(value, (np.ndarray, np.generic, jax.Array))
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain and not array:
        raise TypeError(f"{what} {value!r}, which is not a number.")
    if array and (value.dtype == jnp.bool_ or jnp.issubdtype(value.dtype, jnp.complexfloating)):
        raise TypeError(f"{what} an array of dtype {value.dtype}, which is not a real number.")
    if array and value.shape not in ((), shape):
        raise ValueError(f"{what} an array of shape {value.shape}, expected shape {shape}.")
    return value


def storage_dtype(name: str, dtype: Any) -> Any:
    """Check the argument ``name``: a real floating-point dtype, or None."""
    if dtype is None:
        return None
    try:
        made = jnp.dtype(dtype)
    except TypeError:
        made = None
    if made is None or not jnp.issubdtype(made, jnp.floating):
        raise TypeError(f"{name} must be a real floating-point dtype or None, got {dtype!r}.")
    return made
