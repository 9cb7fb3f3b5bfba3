"""Give parameters their own learning rate or decay, or freeze them, by tables of names.

>>> import jax.numpy as jnp
>>> rates = parameter_rules({"head/*": Rule(learning_rate=1e-2)}, default=Rule())
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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adamw_jax._core import masks, numerics
from adamw_jax._core.declare import Hyperparameter
from adamw_jax._core.stage import RULE, Step
from adamw_jax.direction._rule import (
    FIELDS,
    Factor,
    LeafRules,
    Rule,
    hyperparameter,
    is_off,
    live_attribute,
    product,
    times,
    value_at,
)

Tree = Any


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
                f"matched more than once: {doubled}; patterns that match nothing: {idle} "
                f"(names are {', '.join(names[:4])}{', ...' if names[4:] else ''}). "
                "parameter_rules(..., default=Rule()) is for the parameters that match none. To "
                "set the learning rate by one pattern and the decay by another, multiply two "
                "tables: parameter_rules(...) * parameter_rules(...)."
            )
        return {n: found[0] if found else None for n, found in hits.items()}


@dataclasses.dataclass(frozen=True)
class ParameterRules:
    """Rules by pattern on leaf names, as made by ``parameter_rules``.

    ``a * b`` is the rules of both: multipliers are multiplied, and a leaf is frozen if one of them
    freezes it. Each table keeps its ``default`` and its own check of the names. Only one of them
    may give a parameter its own learning rate, or its own decay.

    Attributes:
      tables: the tables.

    Example:
      >>> import adamw_jax as aj
      >>> fast, still = aj.Rule(learning_rate_factor=10.0), aj.Rule(weight_decay=0.0)
      >>> head = aj.parameter_rules({"head": fast}, default=aj.Rule())
      >>> tx = aj.adamw(1e-3, rules=head * aj.parameter_rules({"bias": still}, default=aj.Rule()))
    """

    tables: tuple[Table, ...]

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
        return ParameterRules((*self.tables, *other.tables))

    def for_tree(self, tree: Tree) -> Tree:
        """Return the rules of each leaf.

        Args:
          tree: parameters or gradients.

        Returns:
          A tree of ``LeafRules`` with the structure of ``tree``.

        Raises:
          ValueError: in one of the tables a leaf does not match exactly one pattern, or a pattern
            matches no leaf, or two tables give a leaf its own learning rate or decay.
        """
        found = [(table, table.patterns_of(tree)) for table in self.tables]

        def of_leaf(name: str, leaf: Any) -> LeafRules:
            patterns = tuple(patterns[name] for _, patterns in found)
            rules = (
                table.default if pattern is None else table.rules[pattern]
                for (table, _), pattern in zip(found, patterns, strict=True)
            )
            rules = tuple(rule for rule in rules if rule is not None)
            for factors in (rule.learning_rate_factor for rule in rules):
                if isinstance(factors, tuple) and np.shape(leaf)[:1] != (len(factors),):
                    raise ValueError(
                        f"the rule of {name} has a tuple of {len(factors)} multipliers, but the "
                        f"leaf has shape {np.shape(leaf)}: the first axis must count the layers. "
                        "Give one number for all layers, or another pattern."
                    )
            found_rules = LeafRules(patterns, rules)
            for field in FIELDS:
                found_rules.own(field)
            return found_rules

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
        return any(rule.freeze for rule in self.all)

    @property
    def all(self) -> tuple[Rule, ...]:
        """The rules of all tables."""
        return tuple(rule for table in self.tables for rule in table.all)

    def declared(self, field: str) -> dict[str, Hyperparameter]:
        """Return the hyperparameters of the live groups, for a stage that calls ``values_of``.

        Args:
          field: ``"learning_rate"`` or ``"weight_decay"``.
        """
        live = [rule for rule in self.all if rule.name and not rule.freeze]
        made = [hyperparameter(rule, live_attribute(rule, field)) for rule in live]
        return {hyper.name: hyper for hyper in made}

    def settings(self, params: Tree) -> dict[str, Tree]:
        """Say which rule and which learning rate each leaf gets, for ``summary``.

        Args:
          params: parameters or their shapes.

        Returns:
          A tree of words for each column.
        """

        def words(leaf: LeafRules) -> str:
            return ("x " if leaf.own("learning_rate") is None else "") + leaf.shown("learning_rate")

        found = self.for_tree(params)
        rule = numerics.map_named(lambda name, _, leaf: _matched(name, leaf), params, found)
        return {RULE: rule, "learning rate": jax.tree.map(words, found)}


def rules_of(rules: ParameterRules | None, tree: Tree) -> Tree:
    """Return the ``LeafRules`` of each leaf, empty ones without rules."""
    if rules is None:
        return jax.tree.map(lambda _: LeafRules((), ()), tree)
    return rules.for_tree(tree)


def values_of(
    rules: ParameterRules | None,
    field: str,
    step: Step,
    tree: Tree,
    name: str = "",
    change: Callable[[jax.Array], jax.Array] = lambda value: value,
) -> Tree:
    """Return the learning rate, or the coefficient of decay, of each leaf at a step.

    Args:
      rules: the rules; the stage must have ``declared(field)`` among its hyperparameters.
      field: ``"learning_rate"`` or ``"weight_decay"``.
      step: the step.
      tree: parameters or gradients.
      name: name in the stage of the value of the recipe; that of the field if it is empty.
      change: applied to the value before it is multiplied.

    Returns:
      A tree of scalars, vectors with an entry for each layer of a stacked leaf, and the number 0
      where it is known to be 0 (a frozen leaf, one that does not decay).
    """

    @functools.cache  # once for all leaves
    def factor(rule: Rule) -> Factor:
        return value_at(rule, f"{field}_factor", step)

    @functools.cache
    def value(rule: Rule | None) -> Factor:
        found = step[name or field] if rule is None else value_at(rule, field, step)
        return 0.0 if is_off(found) else change(numerics.scalar(found))

    def of_leaf(leaf: LeafRules) -> Factor:
        if leaf.freeze:
            return 0.0
        found, many = value(leaf.own(field)), product([*map(factor, leaf.rules)])
        return times(found, many) if isinstance(found, jax.Array) and not is_off(many) else 0.0

    return jax.tree.map(of_leaf, rules_of(rules, tree))


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

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}
      >>> rules = aj.parameter_rules({"bias": aj.Rule(learning_rate_factor=0.1)}, default=aj.Rule())
      >>> state = aj.adamw(1e-3, rules=rules).init(params)
    """
    for pattern, rule in table.items():
        if not isinstance(pattern, str) or not isinstance(rule, Rule):
            raise TypeError(f"rules must map patterns to Rule(...), got {pattern!r}: {rule!r}.")
    if default is not None and not isinstance(default, Rule):
        raise TypeError(f"default must be a Rule(...) or None, got {default!r}.")
    return ParameterRules((Table(dict(table), default),))
