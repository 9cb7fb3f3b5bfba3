"""Per-parameter rules by name: learning-rate multiplier, decay multiplier, freezing, in one table.

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
    """What a pattern does to the leaves it matches.

    Attributes:
      learning_rate: multiplier of the learning rate, >= 0, and so of a decay that is multiplied by
        it (the forms ``"learning_rate"`` and ``"proximal"``).
      weight_decay: multiplier of the coefficients of decay and L2, >= 0; 0 switches both off.
      freeze: the leaves do not move and have no optimizer state.

    Raises:
      ValueError: a multiplier is negative or not finite, or ``freeze`` is no bool.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    freeze: bool = False

    def __post_init__(self) -> None:
        """Checks the multipliers."""
        for name in ("learning_rate", "weight_decay"):
            number(name, getattr(self, name), least=0, below=math.inf)
        switch("freeze", self.freeze)


@dataclasses.dataclass(frozen=True)
class ParameterRules:
    """A table of patterns on leaf names, each with its rule; ``parameter_rules`` makes one.

    Attributes:
      table: rules by shell-style pattern.
    """

    table: Mapping[str, Rule]

    def for_tree(self, tree: Tree) -> Tree:
        """The rule of every leaf.

        Args:
          tree: parameters or gradients.

        Returns:
          A tree of ``Rule``s like ``tree``.

        Raises:
          ValueError: a leaf matches no pattern or more than one, or a pattern no leaf.
        """
        names = numerics.leaf_names(tree)
        hits = {n: [p for p in self.table if masks.matches(n, p)] for n in names}
        unmatched = [n for n, found in hits.items() if not found]
        doubled = {n: found for n, found in hits.items() if len(found) > 1}
        idle = [p for p in self.table if names and not any(p in found for found in hits.values())]
        if unmatched or doubled or idle:
            raise ValueError(
                f"rules must match every parameter exactly once. Unmatched: {unmatched}; "
                f"matched more than once: {doubled}; patterns without a parameter: {idle}."
            )
        return numerics.map_named(lambda name, _: self.table[hits[name][0]], tree)

    def frozen(self, tree: Tree) -> Tree:
        """The mask of frozen leaves.

        Args:
          tree: parameters or gradients.

        Returns:
          A tree of bools like ``tree``.

        Raises:
          ValueError: as ``for_tree``.
        """
        return jax.tree.map(lambda rule: rule.freeze, self.for_tree(tree))

    @property
    def freezes(self) -> bool:
        """Whether any rule freezes."""
        return any(rule.freeze for rule in self.table.values())

    def without_frozen(self) -> ParameterRules:
        """The rules for what is not frozen."""
        return ParameterRules({p: rule for p, rule in self.table.items() if not rule.freeze})

    def of_decay(self) -> ParameterRules:
        """The multipliers of the decay alone."""
        return ParameterRules({p: Rule(weight_decay=r.weight_decay) for p, r in self.table.items()})


def parameter_rules(table: Mapping[str, Rule]) -> ParameterRules:
    """Rules for an optimizer's ``rules=``, from patterns on leaf names.

    Args:
      table: a ``Rule`` for every pattern. Patterns are shell-style, on slash-separated names, where
        ``*`` crosses slashes, too: ``"encoder/*/kernel"``. Every parameter must match one of them
        and no more, and every pattern a parameter, which the first step checks.

    Returns:
      The rules; the table is copied.

    Raises:
      TypeError: a pattern is no string, or its rule no ``Rule``.
    """
    for pattern, rule in table.items():
        if not isinstance(pattern, str) or not isinstance(rule, Rule):
            raise TypeError(f"rules map a pattern to a Rule, got {pattern!r}: {rule!r}.")
    return ParameterRules(dict(table))


def scale_by_rules(rules: ParameterRules) -> Stage:
    """Multiplies each leaf by its rule's ``learning_rate``: *direction -> direction*."""

    def apply(direction: Tree, state: Any, step: Step) -> tuple[Tree, Any]:
        def leaf(rule: Rule, d: jax.Array) -> jax.Array:
            return d if rule.learning_rate == 1 else d * rule.learning_rate

        tree = direction if step.params is None else step.params
        return jax.tree.map(leaf, rules.for_tree(tree), direction), state

    return stage("scale_by_rules", Kind.DIRECTION, Kind.DIRECTION, apply)
