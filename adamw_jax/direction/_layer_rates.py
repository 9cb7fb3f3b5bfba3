"""Make rules with a learning rate for each layer, smaller towards the input.

    layer_decay             rate^(L - l)           l = 0 ... L - 1 from input to output; else 1
    discriminative_rates    low^(1 - s) high^s     s = l / (L - 1), as a share of high

>>> layer_decay(0.5, ["embed/*", "blocks/0/*", "blocks/1/*"]).tables[0].rules["embed/*"]
Rule(learning_rate_factor=0.125)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from adamw_jax._core import masks, numerics
from adamw_jax._core.checks import number
from adamw_jax.direction._rule import Rule
from adamw_jax.direction._rules import ParameterRules, parameter_rules

Tree = Any
Groups = str | Sequence[str | Sequence[str]]
"""Patterns from input to output; those in an inner sequence share a multiplier."""


def layer_decay(
    rate: float, layers: Groups, params: Tree = None, *, stacked: masks.Mask = None
) -> ParameterRules:
    """Multiply the learning rate by ``rate`` for each layer from the output down.

    The last layer in ``layers`` has the multiplier ``rate``, the first ``rate ** len(layers)``.
    Parameters that match no pattern (the head, the last norm) have 1. This is the convention of
    BEiT, where the embedding is a layer below the first block. timm counts the last norm with the
    last block: ``("blocks/11/*", "norm/*")``. ELECTRA has one power more in all layers.

    Args:
      rate: multiplier per layer, in (0, 1]; 0.65 to 0.9 are usual for fine-tuning.
      layers: patterns from input to output. A pattern with ``{}`` stands for a pattern for each
        number found there in the names, in order: ``["embed*", "blocks/{}/*"]``.
      params: parameters or their shapes, needed for ``{}`` and ``stacked`` only.
      stacked: the leaves whose first axis counts layers, as for ``kernels_only``. Their pattern
        stands for all these layers, and each slice gets the multiplier of its layer.

    Returns:
      Rules for an optimizer; multiply them by others to combine them.

    Raises:
      ValueError: no name fits a pattern with ``{}``, or a pattern matches stacked leaves of
        different depths.

    Example:
      >>> import adamw_jax as aj
      >>> rules = aj.direction.layer_decay(0.75, ["embed/*", "block/*", "head/*"])
      >>> tx = aj.adamw(1e-3, rules=rules)
    """
    rate = number("rate", rate, above=0, most=1)
    groups = _groups("layers", layers, params)
    depths = [_depth(group, params, stacked) for group in groups]
    above, table = 0, {}
    for group, depth in reversed([*zip(groups, depths, strict=True)]):
        one = tuple(rate ** (above + i) for i in range(depth or 1, 0, -1))
        above += depth or 1
        table = dict.fromkeys(group, Rule(learning_rate_factor=one if depth else one[0])) | table
    return parameter_rules(table, Rule())


def discriminative_rates(
    low: float | None, high: float, groups: Groups, params: Tree = None
) -> ParameterRules:
    """Spread the learning rates of groups of layers from ``low`` to ``high``, as fastai does.

    The rates are a geometric sequence. Give ``high`` as the learning rate of the optimizer, or as
    the peak of ``one_cycle``; the rules multiply it::

        rules = discriminative_rates(1e-5, 1e-3, ["stem/*", "body/*", "head/*"])
        tx = adamw(one_cycle(1e-3, total_steps=1000), rules=rules)

    Args:
      low: learning rate of the first group, in (0, high], as in fastai's ``slice(low, high)``; None
        for ``high / 10`` in all groups but the last, as ``slice(high)``.
      high: learning rate of the last group, > 0.
      groups: patterns from input to output, as for ``layer_decay``. Every parameter must match one.
      params: parameters or their shapes, needed for ``{}`` only.

    Returns:
      Rules for an optimizer whose learning rate is ``high``.

    Raises:
      ValueError: no name fits a pattern with ``{}``, as when the layers are stacked in one leaf.

    Example:
      >>> import adamw_jax as aj
      >>> rules = aj.direction.discriminative_rates(1e-4, 1e-3, ["body/*", "head/*"])
      >>> tx = aj.adamw(1.0, rules=rules)
    """
    high = number("high", high, above=0)
    found = _groups("groups", groups, params)
    last = len(found) - 1
    if low is None:
        factors = [0.1] * last + [1.0]
    else:
        share = number("low", low, above=0, most=high) / high
        factors = [share ** ((last - i) / max(last, 1)) for i in range(len(found))]
    pairs = zip(found, factors, strict=True)
    return parameter_rules(
        {p: Rule(learning_rate_factor=factor) for group, factor in pairs for p in group}
    )


def _depth(group: tuple[str, ...], params: Tree, stacked: masks.Mask) -> int:
    """Return the number of layers in the stacked leaves that a group matches; 0 if none are."""
    if stacked is None:
        return 0
    if params is None:
        raise ValueError("stacked needs params to count the layers: give the parameters as well.")
    layered = jax.tree.leaves(masks.resolve(stacked, params, "stacked"))
    found = {
        sum(np.shape(leaf)[:1]) if own else 0
        for (name, leaf), own in zip(numerics.named_leaves(params), layered, strict=True)
        if any(masks.matches(name, pattern) for pattern in group)
    }
    if len(found) > 1:
        raise ValueError(
            f"the patterns {group} match leaves of {sorted(found)} stacked layers: use a pattern "
            "for each number of layers, and one for leaves that are not stacked."
        )
    return next(iter(found), 0)


def _groups(argument: str, given: Groups, params: Tree) -> list[tuple[str, ...]]:
    """Return the patterns of each group, those with ``{}`` expanded."""
    groups: list[tuple[str, ...]] = []
    for group in (given,) if isinstance(given, str) else given:
        if isinstance(group, str) and "{}" in group:
            groups += [(pattern,) for pattern in _numbered(argument, group, params)]
            continue
        patterns: tuple[Any, ...] = tuple(group) if isinstance(group, list | tuple) else (group,)
        if not patterns or not all(isinstance(p, str) and "{}" not in p for p in patterns):
            raise TypeError(
                f"{argument} must hold patterns or tuples of patterns, {{}} only in a pattern by "
                f"itself, got {group!r}."
            )
        groups.append(patterns)
    if not groups:
        raise ValueError(f"{argument} must hold at least one pattern, got {given!r}.")
    return groups


def _numbered(argument: str, pattern: str, params: Tree) -> list[str]:
    """Return the pattern with each number that it finds in the names of the leaves."""
    if params is None:
        raise ValueError(
            f"{argument} has the pattern {pattern!r}, which needs params to find the numbers: give "
            "the parameters, or their shapes from jax.eval_shape."
        )
    names = numerics.leaf_names(params)
    numbers = {
        digits
        for name in names
        for digits in re.findall(r"\d+", name)
        if masks.matches(name, pattern.replace("{}", digits))
    }
    if not numbers:
        raise ValueError(
            f"{argument} has the pattern {pattern!r}, but no leaf has a number there: the leaves "
            f"are {names}. A pattern is for the whole name of a leaf, such as 'blocks/{{}}/*'. If "
            "the layers are stacked in one leaf (nn.scan, jax.vmap), write layer_decay(..., "
            "['layers/*'], params, stacked='layers/*')."
        )
    return [pattern.replace("{}", digits) for digits in sorted(numbers, key=int)]
