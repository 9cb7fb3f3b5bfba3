"""Say what is special about some parameters: their learning rate, their decay, or that they stay.

>>> Rule(learning_rate=1e-4, weight_decay=0.0)
Rule(learning_rate=0.0001, weight_decay=0.0)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import number, switch
from adamw_jax._core.declare import Hyperparameter, ScalarOrSchedule, declare, nonnegative
from adamw_jax._core.stage import Step

Factor = float | jax.Array
"""A number that is known when a step is traced, or a scalar that changes from step to step, or a
vector with an entry for each layer of a stacked leaf."""

FIELDS = ("learning_rate", "weight_decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Settings for the leaves that a pattern matches.

    Attributes:
      learning_rate: their own learning rate, >= 0, in place of that of the recipe: a number or a
        schedule. None for that of the recipe. Decay that follows the learning rate follows theirs.
      weight_decay: their own coefficient of decay, >= 0, in place of those of the recipe
        (``weight_decay`` and ``l2``): a number or a schedule. The number 0 switches both off. None
        for those of the recipe.
      learning_rate_factor: multiplier of the learning rate, >= 0, or a schedule of it, or a tuple
        with a number for each layer of leaves whose first axis counts layers.
      weight_decay_factor: multiplier of the coefficients of decay, >= 0, or a schedule of it.
      freeze: the leaves do not move and have no optimizer state.
      name: name of a live group; None for values that only the code changes. A live group has two
        hyperparameters, which ``set_hyperparams`` pins: ``name.learning_rate`` if the rule has a
        learning rate, else ``name.learning_rate_factor``; likewise for the decay. Several patterns
        may share a rule and so a name.
      base_learning_rate: peak of a ``learning_rate`` that is a schedule, > 0, for
        ``decay="schedule"`` and ``"corrected"``. A number is its own peak.

    Example:
      >>> import adamw_jax as aj
      >>> slow = aj.Rule(learning_rate_factor=0.1, weight_decay=0.0)
      >>> tx = aj.adamw(1e-3, rules=aj.parameter_rules({"*bias": slow}, default=aj.Rule()))
    """

    learning_rate: ScalarOrSchedule | None = None
    weight_decay: ScalarOrSchedule | None = None
    learning_rate_factor: ScalarOrSchedule | tuple[float, ...] = 1.0
    weight_decay_factor: ScalarOrSchedule = 1.0
    freeze: bool = False
    name: str | None = None
    base_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Check the values and the name."""
        for field in FIELDS:
            if (given := getattr(self, field)) is not None:
                object.__setattr__(self, field, _value(field, given))
            factor = f"{field}_factor"
            object.__setattr__(self, factor, _value(factor, getattr(self, factor)))
        if self.base_learning_rate is not None:
            number("base_learning_rate", self.base_learning_rate, above=0)
        switch("freeze", self.freeze)
        if self.name is not None and not (isinstance(self.name, str) and self.name.isidentifier()):
            raise ValueError(
                f"name must be an identifier such as 'head', or None, got {self.name!r}."
            )
        factors = self.learning_rate_factor
        if isinstance(factors, tuple) and self.name and self.learning_rate is None:
            raise ValueError(
                f"learning_rate_factor is a tuple, {factors}, which a live group cannot have: "
                f"leave out name={self.name!r}."
            )

    def __repr__(self) -> str:
        """Show what differs from the defaults."""
        given = [
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
        ]
        return f"Rule({', '.join(given)})"


def live_attribute(rule: Rule, field: str) -> str:
    """Return which of two attributes a live group can change: the value or the factor."""
    return field if getattr(rule, field) is not None else f"{field}_factor"


def hyperparameter(rule: Rule, attribute: str) -> Hyperparameter:
    """Return a value of a rule as a hyperparameter."""
    name = f"{rule.name}.{attribute}" if rule.name else f"{attribute} of a Rule"
    (made,) = declare(**{name: nonnegative(getattr(rule, attribute))}).values()
    return made._replace(shared=True)


def value_at(rule: Rule, attribute: str, step: Step) -> Factor:
    """Return a value of a rule at a step: a number if it is constant and has no name."""
    given = getattr(rule, attribute)
    if isinstance(given, tuple):
        return jnp.asarray(given, numerics.default_float())
    if not _changes(rule, attribute):
        return given
    hyper = hyperparameter(rule, attribute)
    return step[hyper.name] if _is_live(rule, attribute) else hyper.at(step.count)


def _is_live(rule: Rule, attribute: str) -> bool:
    return bool(rule.name) and any(live_attribute(rule, field) == attribute for field in FIELDS)


def _changes(rule: Rule, attribute: str) -> bool:
    """Return whether a value may change from step to step."""
    return _is_live(rule, attribute) or callable(getattr(rule, attribute))


def _shown(rule: Rule, attribute: str) -> str:
    """Return a value in words, for ``summary``."""
    given = getattr(rule, attribute)
    if isinstance(given, tuple):
        return f"({', '.join(f'{one:.4g}' for one in given)})"
    value = "schedule" if callable(given) else f"{given:.4g}"
    live = _is_live(rule, attribute)
    return f"{value} ({hyperparameter(rule, attribute).name})" if live else value


def _value(attribute: str, given: Any) -> Any:
    """Check a value of a rule; return numbers as floats."""
    if callable(given):
        return given
    if hasattr(given, "learning_rate"):
        raise TypeError(
            f"{attribute} must be a number or one schedule, got {given!r}, which has several: give "
            "its .learning_rate."
        )
    check = functools.partial(number, attribute, least=0, below=math.inf)
    if attribute == "learning_rate_factor" and isinstance(given, tuple) and given:
        return tuple(map(check, given))
    return check(given)


@dataclasses.dataclass(frozen=True)
class LeafRules:
    """The rules of one leaf, one from each table.

    Attributes:
      patterns: the pattern of each rule; None for the default of a table.
      rules: the rules.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> rules = aj.parameter_rules({"bias": aj.Rule(freeze=True)}, default=aj.Rule())
      >>> rules.for_tree({"bias": jnp.zeros(2), "kernel": jnp.ones((2, 2))})["bias"].freeze
      True
    """

    patterns: tuple[str | None, ...]
    rules: tuple[Rule, ...]

    @property
    def freeze(self) -> bool:
        """Whether any of the rules freezes the leaf."""
        return any(rule.freeze for rule in self.rules)

    def own(self, field: str) -> Rule | None:
        """Return the rule that replaces the recipe's value, or None.

        Args:
          field: ``"learning_rate"`` or ``"weight_decay"``.

        Raises:
          ValueError: the rules of two tables do.
        """
        found = [rule for rule in self.rules if getattr(rule, field) is not None]
        if len(found) > 1:
            raise ValueError(
                f"{field} is given by two tables for the same parameter, {found[0]} and "
                f"{found[1]}: give one of them a {field}_factor instead."
            )
        return found[0] if found else None

    def shown(self, field: str) -> str:
        """Return the value, or the product of the multipliers, in words, for ``summary``.

        Args:
          field: ``"learning_rate"`` or ``"weight_decay"``.
        """
        factor, own = f"{field}_factor", self.own(field)
        words = [_shown(rule, factor) for rule in self.rules if not _known(rule, factor)]
        known = math.prod(getattr(rule, factor) for rule in self.rules if _known(rule, factor))
        if known != 1 or not (words or own):
            words = [f"{known:.4g}", *words]
        return " x ".join(words if own is None else [_shown(own, field), *words])


def _known(rule: Rule, factor: str) -> bool:
    return isinstance(getattr(rule, factor), float) and not _changes(rule, factor)


def product(factors: list[Factor]) -> Factor:
    """Return the product; the number 0 wins, and the number 1 costs nothing."""
    known = math.prod(x for x in factors if not isinstance(x, jax.Array))
    moving = [x for x in factors if isinstance(x, jax.Array)]
    if known == 0 or not moving:
        return float(known)
    return times(functools.reduce(lax.mul, moving), known)


def times(x: jax.Array, factor: Factor) -> jax.Array:
    """Return ``x * factor``, and ``x`` itself for the number 1."""
    if isinstance(factor, jax.Array):
        return numerics.scaled(factor, numerics.widen(x))
    return x if factor == 1 else x * factor


def is_off(factor: Factor) -> bool:
    """Return whether a factor is the number 0, not a scalar that may change."""
    return not isinstance(factor, jax.Array) and factor == 0
