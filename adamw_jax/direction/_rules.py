"""Scale the learning rate or decay of parameters, or freeze them, by a table of names.

>>> import jax.numpy as jnp
>>> table = parameter_rules({
...     "embed*": Rule(freeze=True),
...     "*/bias": Rule(weight_decay=0.0),
...     "*/kernel": Rule(learning_rate=0.1),
... })
>>> params = {"embed": jnp.zeros(2), "head": {"bias": jnp.zeros(2), "kernel": jnp.zeros((2, 2))}}
>>> table.for_tree(params)["head"]["bias"].weight_decay
0.0
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import number, switch
from adamw_jax._core.stage import Kind, Stage, Step, stage

Tree = Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """Settings for the leaves that a pattern matches.

    Attributes:
      learning_rate: multiplier of the learning rate, >= 0. In the forms ``"learning_rate"``,
        ``"corrected"`` and ``"proximal"`` it also multiplies the decay.
      weight_decay: multiplier of the coefficients of decay and L2, >= 0; 0 switches both off.
      freeze: the leaves do not move and have no optimizer state.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    freeze: bool = False

    def __post_init__(self) -> None:
        """Check the multipliers."""
        for name in ("learning_rate", "weight_decay"):
            number(name, getattr(self, name), least=0, below=math.inf)
        switch("freeze", self.freeze)


@dataclasses.dataclass(frozen=True)
class ParameterRules:
    """Rules by pattern on leaf names, as made by ``parameter_rules``.

    Attributes:
      table: the rule of each shell-style pattern.
      default: the rule of the leaves that match no pattern; None if every leaf must match one.
    """

    table: Mapping[str, Rule]
    default: Rule | None = None

    def for_tree(self, tree: Tree) -> Tree:
        """Return the rule of each leaf.

        Args:
          tree: parameters or gradients.

        Returns:
          A tree of ``Rule``s with the structure of ``tree``.

        Raises:
          ValueError: a leaf does not match exactly one pattern, or a pattern matches no leaf.
        """
        names = numerics.leaf_names(tree)
        hits = {n: [p for p in self.table if masks.matches(n, p)] for n in names}
        unmatched = [n for n, found in hits.items() if not found and self.default is None]
        doubled = {n: found for n, found in hits.items() if len(found) > 1}
        idle = [p for p in self.table if names and not any(p in found for found in hits.values())]
        if unmatched or doubled or idle:
            raise ValueError(
                f"rules must match every parameter exactly once. Not matched: {unmatched}; "
                f"matched more than once: {doubled}; patterns that match nothing: {idle}. "
                "parameter_rules(..., default=Rule()) is for the parameters that match none."
            )
        rules = {n: self.table[found[0]] if found else self.default for n, found in hits.items()}
        return numerics.map_named(lambda name, _: rules[name], tree)

    def frozen(self, tree: Tree) -> Tree:
        """Return the mask of frozen leaves, a tree of bools.

        Args:
          tree: parameters or gradients.
        """
        return jax.tree.map(lambda rule: rule.freeze, self.for_tree(tree))

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.table) or self.default is not None

    @property
    def freezes(self) -> bool:
        """Whether any rule freezes leaves."""
        return any(rule.freeze for rule in (*self.table.values(), self.default) if rule)

    def without_frozen(self) -> ParameterRules:
        """Return the rules that do not freeze."""
        moving = {p: rule for p, rule in self.table.items() if not rule.freeze}
        return ParameterRules(
            moving, None if self.default and self.default.freeze else self.default
        )

    def of_decay(self) -> ParameterRules:
        """Return the rules with only their multipliers of the decay."""
        default = self.default and Rule(weight_decay=self.default.weight_decay)
        decays = {p: Rule(weight_decay=r.weight_decay) for p, r in self.table.items()}
        return ParameterRules(decays, default)


def parameter_rules(table: Mapping[str, Rule], default: Rule | None = None) -> ParameterRules:
    """Make the ``rules=`` of an optimizer from patterns on leaf names.

    Args:
      table: a ``Rule`` for each pattern. Patterns are shell-style, on slash-separated names; ``*``
        also matches slashes: ``"encoder/*/kernel"``. Every parameter must match exactly one
        pattern, and every pattern at least one parameter. The first step checks this.
      default: the rule of the parameters that match no pattern, ``Rule()`` to leave them as they
        are; None if every parameter must match one.

    Returns:
      The rules, with a copy of the table.
    """
    for pattern, rule in table.items():
        if not isinstance(pattern, str) or not isinstance(rule, Rule):
            raise TypeError(f"rules must map patterns to Rule(...), got {pattern!r}: {rule!r}.")
    if default is not None and not isinstance(default, Rule):
        raise TypeError(f"default must be a Rule(...) or None, got {default!r}.")
    return ParameterRules(dict(table), default)


def scale_by_rules(rules: ParameterRules) -> Stage:
    """Multiply each leaf by its rule's ``learning_rate``: *direction -> direction*."""

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        def leaf(rule: Rule, d: jax.Array) -> jax.Array:
            return d if rule.learning_rate == 1 else d * rule.learning_rate

        tree = direction if step.params is None else step.params
        return jax.tree.map(leaf, rules.for_tree(tree), direction), state

    return stage("scale_by_rules", Kind.DIRECTION, Kind.DIRECTION, apply)
