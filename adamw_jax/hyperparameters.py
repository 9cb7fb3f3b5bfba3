"""What a hyperparameter may be, and the error when it is something else.

A hyperparameter is a number, an array, a tracer, or a schedule: a function of the step count
(0 at the first update). Concrete numbers are checked where the optimizer is built; tracers and
the values of schedules cannot be, so that a schedule that gives a negative learning rate climbs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from adamw_jax import numerics

ScalarOrSchedule = Any
"""A number, a scalar array or tracer, or a function of the step count."""


class Domain(NamedTuple):
    """The numbers a hyperparameter may take."""

    words: str
    contains: Callable[[float], bool]
    infinite: bool = False  # whether infinity is a value, as that of a bound that bounds nothing
    remedy: str = ""


NONNEGATIVE = Domain("a number >= 0", lambda x: x >= 0)
LENGTH = NONNEGATIVE._replace(remedy=" To climb, negate the loss or the gradients.")
POSITIVE = Domain("a number > 0", lambda x: x > 0)
BOUND = POSITIVE._replace(infinite=True)
DECAY_RATE = Domain("a number in [0, 1)", lambda x: 0 <= x < 1)
FRACTION = Domain("a number in [0, 1]", lambda x: 0 <= x <= 1)
HALF = Domain("a number in [0, 0.5]", lambda x: 0 <= x <= 0.5)
EXPONENT = Domain("a number in (0, 1]", lambda x: 0 < x <= 1)
AT_LEAST_ONE = Domain("a number >= 1", lambda x: x >= 1, infinite=True)
REAL = Domain("a finite number", math.isfinite)

DOMAINS: dict[str, Domain] = {
    "learning_rate": LENGTH,
    "base_learning_rate": POSITIVE,
    "weight_decay": NONNEGATIVE,
    "l2": NONNEGATIVE,
    "b1": DECAY_RATE,
    "b2": DECAY_RATE,
    "b3": DECAY_RATE,
    "b0": REAL,
    "partial": HALF,
    "max_grad_norm": BOUND,
    "clip_eps": NONNEGATIVE,
    "max_step": BOUND,
    "decay_rate": EXPONENT,
    "max_b2": DECAY_RATE,
    "clipping_threshold": AT_LEAST_ONE,
    "min_scale": NONNEGATIVE,
    "max_scale": BOUND,
    "eps": NONNEGATIVE,
    "eps_root": NONNEGATIVE,
    "momentum": FRACTION,
    "dampening": FRACTION,
    "threshold": NONNEGATIVE,
    "slow_step_size": FRACTION,
    "average_decay": DECAY_RATE,
    "average_weight": NONNEGATIVE,
    "trust_coefficient": POSITIVE,
    "min_norm": NONNEGATIVE,
    "min_weight_norm": NONNEGATIVE,
    "max_weight_norm": BOUND,
    "min_ratio": NONNEGATIVE,
    "max_ratio": BOUND,
    "beta": DECAY_RATE,
    "floor": NONNEGATIVE,
    "sigma": NONNEGATIVE,
    "q": NONNEGATIVE,
    "r": NONNEGATIVE,
    "alpha_r": DECAY_RATE,
    "target": REAL,
    "kappa": FRACTION,
    "sw": NONNEGATIVE,
    "sv": NONNEGATIVE,
    "sc": REAL,
    "qw": NONNEGATIVE,
    "qv": NONNEGATIVE,
}
"""What each hyperparameter may be, wherever it appears: a new name is a new row."""


class Hyperparameter(NamedTuple):
    """A declared hyperparameter: its name, its value or schedule, and its domain."""

    name: str
    value: ScalarOrSchedule
    domain: Domain

    def at(self, count: jax.Array) -> jax.Array:
        """The value at step ``count``, a scalar of the default float dtype."""
        if not callable(self.value):
            return numerics.scalar(self.value)
        return numerics.scalar(real_number(self.value(count), f"the schedule of {self.name} gave"))

    def same_as(self, other: Hyperparameter) -> bool:
        """Whether both are one number or one schedule, so that two stages may share it."""
        mine, theirs = self.value, other.value
        if isinstance(mine, (int, float)) and isinstance(theirs, (int, float)):
            return mine == theirs
        return mine is theirs


def declare(**values: ScalarOrSchedule) -> dict[str, Hyperparameter]:
    """Checked hyperparameters by name.

    >>> declare(b1=1.5)
    Traceback (most recent call last):
    ValueError: b1 must be a number in [0, 1) or a schedule, got 1.5.
    """
    return {name: check(name, value) for name, value in values.items()}


def domain_of(name: str) -> Domain:
    """The domain of a hyperparameter by its name in the live record, ``stage.name`` or path."""
    return DOMAINS.get(re.split(r"[./]", name)[-1], REAL)


def check(name: str, value: ScalarOrSchedule) -> Hyperparameter:
    """A hyperparameter whose value lies in its domain as far as that can be known now."""
    if name not in DOMAINS:
        raise ValueError(
            f"{name!r} is no hyperparameter of this library, whose range is known: make "
            f"Hyperparameter({name!r}, value, domain) instead."
        )
    domain = DOMAINS[name]
    if callable(value):
        return Hyperparameter(name, value, domain)
    expected = f"{name} must be {domain.words} or a schedule"
    if value is None or isinstance(value, (bool, np.bool_, str)):
        raise TypeError(f"{expected}, got {value!r}.")
    if isinstance(value, jax.core.Tracer):
        _check_array(name, value, domain)
        return Hyperparameter(name, value, domain)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        _check_array(name, value, domain)
    elif not isinstance(value, (int, float)):
        raise TypeError(f"{expected}, got {value!r} of type {type(value).__name__}.")
    in_domain(value, domain, expected)
    return Hyperparameter(name, value, domain)


def in_domain(value: Any, domain: Domain, expected: str) -> None:
    """Raises where a concrete number is outside, also once it is rounded to the scalars' dtype."""
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
            "side by side, map the whole optimizer with jax.vmap."
        )
    if jnp.issubdtype(value.dtype, jnp.complexfloating) or value.dtype == jnp.bool_:
        raise TypeError(f"{name} must be {domain.words}, got an array of dtype {value.dtype}.")
    narrow = jnp.issubdtype(value.dtype, jnp.floating) and value.dtype.itemsize < 4
    if domain is DECAY_RATE and narrow:
        raise TypeError(
            f"{name} arrived as {value.dtype}, in which a decay rate near 1 rounds to 1 and stops "
            "the average. Pass it in float32; with optax.inject_hyperparams, give "
            "hyperparam_dtype=jnp.float32."
        )


def real_number(value: Any, what: str, shape: tuple[int, ...] = ()) -> Any:
    """``value`` if it is a real number or an array of the given shape, else an error.

    ``what`` begins the message: ``"learning_rate must be a number, got"``.
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
    """A floating storage dtype, or None, or the error that says what it must be."""
    if dtype is None:
        return None
    try:
        made = jnp.dtype(dtype)
    except TypeError:
        made = None
    if made is None or not jnp.issubdtype(made, jnp.floating):
        raise TypeError(f"{name} must be a real floating-point dtype or None, got {dtype!r}.")
    return made
