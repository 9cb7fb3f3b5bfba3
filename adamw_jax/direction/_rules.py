"""Scale the learning rate or decay of parameters, or freeze them, by tables of names.

>>> import jax.numpy as jnp
>>> rates = parameter_rules({"head/*": Rule(learning_rate=10.0)}, default=Rule())
>>> decays = parameter_rules({"*/bias": Rule(weight_decay=0.0)}, default=Rule())
>>> params = {"head": {"bias": jnp.zeros(2), "kernel": jnp.zeros((2, 2))}}
>>> both = rates * decays
>>> both.for_tree(params)["head"]["bias"].patterns
('head/*', '*/bias')
"""

from __future__ import annotations

import dataclasses
import functools
import glob
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import number, switch
from adamw_jax._core.declare import Hyperparameter, ScalarOrSchedule, declare, nonnegative
from adamw_jax._core.stage import RULE, Kind, Stage, Step, stage

Tree = Any
Factor = float | jax.Array
"""A factor that is known when a step is traced, or a scalar that changes from step to step, or a
constant vector with a factor for each layer of a stacked leaf."""

FIELDS = ("learning_rate", "weight_decay")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Settings for the leaves that a pattern matches.

    Attributes:
      learning_rate: multiplier of the learning rate, >= 0, or a schedule of it, or a tuple with a
        number for each layer of leaves whose first axis counts layers. In the forms
        ``"learning_rate"``, ``"corrected"`` and ``"proximal"`` it also multiplies the decay.
      weight_decay: multiplier of the coefficients of decay and L2, >= 0, or a schedule of it; the
        number 0 switches both off.
      freeze: the leaves do not move and have no optimizer state.
      name: name of a live group; None for multipliers that only the code changes. The multipliers
        of a live group are hyperparameters, ``name.learning_rate_factor`` and
        ``name.weight_decay_factor``, which ``set_hyperparams`` pins. Several patterns may share a
        rule and so a name.
    """

    learning_rate: ScalarOrSchedule | tuple[float, ...] = 1.0
    weight_decay: ScalarOrSchedule = 1.0
    freeze: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        """Check the multipliers and the name."""
        if isinstance(self.learning_rate, tuple) and self.name:
            raise ValueError(
                f"learning_rate is a tuple, {self.learning_rate}, which a live group cannot have: "
                f"leave out name={self.name!r}."
            )
        for field in FIELDS:
            given, check = getattr(self, field), functools.partial(number, field)
            if field == "learning_rate" and isinstance(given, tuple) and given:
                given = tuple(check(one, least=0, below=math.inf) for one in given)
            elif not callable(given):
                given = check(given, least=0, below=math.inf)
            object.__setattr__(self, field, given)
        switch("freeze", self.freeze)
        if self.name is not None and not (isinstance(self.name, str) and self.name.isidentifier()):
            raise ValueError(
                f"name must be an identifier such as 'head', or None, got {self.name!r}."
            )


def _hyperparameter(rule: Rule, field: str) -> Hyperparameter:
    """Return a multiplier as a hyperparameter."""
    name = f"{rule.name}.{field}_factor" if rule.name else f"{field} of a Rule"
    (made,) = declare(**{name: nonnegative(getattr(rule, field))}).values()
    return made._replace(shared=True)


def _factor(field: str, step: Step, rule: Rule) -> Factor:
    """Return a multiplier at a step: a number if it is constant and has no name."""
    given = getattr(rule, field)
    if isinstance(given, tuple):
        return jnp.asarray(given, numerics.default_float())
    if not _moves(rule, field):
        return given
    hyper = _hyperparameter(rule, field)
    return step[hyper.name] if rule.name else hyper.at(step.count)


def _moves(rule: Rule, field: str) -> bool:
    return rule.name is not None or not isinstance(getattr(rule, field), float)


def _shown(rule: Rule, field: str) -> str:
    """Return a multiplier in words, for ``summary``."""
    given = getattr(rule, field)
    if isinstance(given, tuple):
        return f"({', '.join(f'{one:.4g}' for one in given)})"
    value = "schedule" if callable(given) else f"{given:.4g}"
    return f"{value} ({_hyperparameter(rule, field).name})" if rule.name else value


@dataclasses.dataclass(frozen=True)
class LeafRules:
    """The rules of one leaf, one from each table.

    Attributes:
      patterns: the pattern of each rule; None for the default of a table.
      rules: the rules.
    """

    patterns: tuple[str | None, ...]
    rules: tuple[Rule, ...]

    @property
    def freeze(self) -> bool:
        """Whether any of the rules freezes the leaf."""
        return any(rule.freeze for rule in self.rules)

    def shown(self, field: str) -> str:
        """Return the product of the multipliers in words, for ``summary``.

        Args:
          field: ``"learning_rate"`` or ``"weight_decay"``.
        """
        moving = [_shown(rule, field) for rule in self.rules if _moves(rule, field)]
        known = math.prod(getattr(rule, field) for rule in self.rules if not _moves(rule, field))
        return " x ".join(moving if moving and known == 1 else [f"{known:.4g}", *moving])


def _matched(name: str, leaf: LeafRules) -> str:
    """Return the patterns that a leaf matched in words, for ``summary``."""
    found = [pattern for pattern in leaf.patterns if pattern is not None]
    words = ["its name" if pattern == glob.escape(name) else pattern for pattern in found]
    return " x ".join(words) or "default"


class Table(NamedTuple):
    """One table of rules.

    Attributes:
      rules: the rule of each shell-style pattern.
      default: the rule of the leaves that match no pattern; None if every leaf must match one.
    """

    rules: Mapping[str, Rule]
    default: Rule | None

    @property
    def all(self) -> tuple[Rule, ...]:
        """The rules, with the default if there is one."""
        return (*self.rules.values(), *([] if self.default is None else [self.default]))

    def patterns_of(self, tree: Tree) -> dict[str, str | None]:
        """Return the pattern that each leaf matches, None for the default; check the table."""
        names = numerics.leaf_names(tree)
        hits = {n: [p for p in self.rules if masks.matches(n, p)] for n in names}
        unmatched = [n for n, found in hits.items() if not found and self.default is None]
        doubled = {n: found for n, found in hits.items() if len(found) > 1}
        idle = masks.idle_patterns(self.rules, tree)
        if unmatched or doubled or idle:
            raise ValueError(
                f"rules must match every parameter exactly once. Not matched: {unmatched}; "
                f"matched more than once: {doubled}; patterns that match nothing: {idle}. "
                "parameter_rules(..., default=Rule()) is for the parameters that match none. To "
                "set the learning rate by one pattern and the decay by another, multiply two "
                "tables: parameter_rules(...) * parameter_rules(...)."
            )
        return {n: found[0] if found else None for n, found in hits.items()}


@dataclasses.dataclass(frozen=True)
class ParameterRules:
    """Rules by pattern on leaf names, as made by ``parameter_rules``.

    ``a * b`` is the rules of both: multipliers are multiplied, and a leaf is frozen if one of them
    freezes it. Each table keeps its ``default`` and its own check of the names.

    Attributes:
      tables: the tables.
      decay_only: whether the multipliers of the learning rate are left out.
    """

    tables: tuple[Table, ...]
    decay_only: bool = False

    def __post_init__(self) -> None:
        """Check that each name stands for one rule, in one table."""
        named: dict[str, tuple[int, Rule]] = {}
        for i, table in enumerate(self.tables):
            for rule in table.all:
                if rule.name is None:
                    continue
                where, other = named.setdefault(rule.name, (i, rule))
                if other != rule:
                    raise ValueError(
                        f"name {rule.name!r} stands for two rules, {other} and {rule}: give one "
                        "of them another name."
                    )
                if where != i:
                    raise ValueError(
                        f"name {rule.name!r} is in two tables, so its multipliers would count "
                        "twice: give the rule of one table another name."
                    )

    def __mul__(self, other: ParameterRules) -> ParameterRules:
        """Return the rules of both."""
        if not isinstance(other, ParameterRules):
            return NotImplemented
        return ParameterRules((*self.tables, *other.tables), self.decay_only)

    def for_tree(self, tree: Tree) -> Tree:
        """Return the rules of each leaf.

        Args:
          tree: parameters or gradients.

        Returns:
          A tree of ``LeafRules`` with the structure of ``tree``.

        Raises:
          ValueError: in one of the tables a leaf does not match exactly one pattern, or a pattern
            matches no leaf.
        """
        found = [(table, table.patterns_of(tree)) for table in self.tables]

        def of_leaf(name: str, leaf: Any) -> LeafRules:
            patterns = tuple(patterns[name] for _, patterns in found)
            rules = (
                table.default if pattern is None else table.rules[pattern]
                for (table, _), pattern in zip(found, patterns, strict=True)
            )
            rules = tuple(rule for rule in rules if rule is not None)
            for rates in (rule.learning_rate for rule in rules):
                if isinstance(rates, tuple) and np.shape(leaf)[:1] != (len(rates),):
                    raise ValueError(
                        f"the rule of {name} has a tuple of {len(rates)} multipliers, but the leaf "
                        f"has shape {np.shape(leaf)}: the first axis must count the layers. Give "
                        "one number for all layers, or another pattern."
                    )
            return LeafRules(patterns, rules)

        return numerics.map_named(of_leaf, tree)

    def frozen(self, tree: Tree) -> Tree:
        """Return the mask of frozen leaves, a tree of bools.

        Args:
          tree: parameters or gradients.
        """
        return jax.tree.map(lambda rules: rules.freeze, self.for_tree(tree))

    @property
    def freezes(self) -> bool:
        """Whether any rule freezes leaves."""
        return any(rule.freeze for table in self.tables for rule in table.all)

    def of_decay(self) -> ParameterRules:
        """Return the rules without the multipliers of the learning rate."""
        return dataclasses.replace(self, decay_only=True)

    def declared(self, field: str) -> dict[str, Hyperparameter]:
        """Return the hyperparameters of the live groups, for a stage that reads ``factors``.

        Args:
          field: ``"learning_rate"`` or ``"weight_decay"``.
        """
        if self.decay_only and field == "learning_rate":
            return {}
        live = [rule for table in self.tables for rule in table.all if rule.name]
        made = [_hyperparameter(rule, field) for rule in live if not rule.freeze]
        return {hyper.name: hyper for hyper in made}

    def factors(self, field: str, tree: Tree, step: Step) -> Tree:
        """Return the product of the multipliers of each leaf at a step; 0 if it is frozen.

        Args:
          field: ``"learning_rate"`` or ``"weight_decay"``.
          tree: parameters or gradients.
          step: the step; its stage must have ``declared(field)`` among its hyperparameters.

        Returns:
          A tree of numbers, scalars that change from step to step, and vectors with an entry for
          each layer of a stacked leaf.
        """
        if self.decay_only and field == "learning_rate":
            return jax.tree.map(lambda _: 1.0, self.for_tree(tree))
        value = functools.cache(functools.partial(_factor, field, step))  # once for all leaves

        def of_leaf(leaf: LeafRules) -> Factor:
            return 0.0 if leaf.freeze else product([*map(value, leaf.rules)])

        return jax.tree.map(of_leaf, self.for_tree(tree))

    def settings(self, params: Tree) -> dict[str, Tree]:
        """Say which rule and which learning rate each leaf gets, for ``summary``.

        Args:
          params: parameters or their shapes.

        Returns:
          A tree of words for each column.
        """
        found = self.for_tree(params)
        rates = jax.tree.map(lambda leaf: f"x {leaf.shown('learning_rate')}", found)
        rule = {RULE: numerics.map_named(lambda name, _, leaf: _matched(name, leaf), params, found)}
        return rule if self.decay_only else rule | {"learning rate": rates}


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


def parameter_rules(table: Mapping[str, Rule], default: Rule | None = None) -> ParameterRules:
    """Make the ``rules=`` of an optimizer from patterns on leaf names.

    Args:
      table: a ``Rule`` for each pattern. Patterns are shell-style, on slash-separated names; ``*``
        also matches slashes: ``"encoder/*/kernel"``. Every parameter must match exactly one
        pattern, and every pattern at least one parameter. ``init`` and every new trace check this.
      default: the rule of the parameters that match no pattern, ``Rule()`` to leave them as they
        are; None if every parameter must match one.

    Returns:
      The rules, with a copy of the table. Multiply two to combine them:
      ``parameter_rules(rates) * parameter_rules(decays)``.
    """
    for pattern, rule in table.items():
        if not isinstance(pattern, str) or not isinstance(rule, Rule):
            raise TypeError(f"rules must map patterns to Rule(...), got {pattern!r}: {rule!r}.")
    if default is not None and not isinstance(default, Rule):
        raise TypeError(f"default must be a Rule(...) or None, got {default!r}.")
    return ParameterRules((Table(dict(table), default),))


def scale_by_rules(rules: ParameterRules) -> Stage:
    """Multiply each leaf by its rules' ``learning_rate``: *direction -> direction*."""

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        tree = direction if step.params is None else step.params
        return jax.tree.map(times, direction, rules.factors("learning_rate", tree, step)), state

    return stage(
        "scale_by_rules",
        Kind.DIRECTION,
        Kind.DIRECTION,
        apply,
        hyperparams=rules.declared("learning_rate"),
        settings=rules.settings,
    )
