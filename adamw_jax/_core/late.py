"""Late leaves: parameters that joined a running recipe, with clocks of their own.

A moving average needs a clock, and a stage with averages has one for all leaves. A leaf that joins
at step k needs another one, since no start of its moments makes m / W right at every later step: W
is then the sum of the weights of k + n gradients, m that of n. So the state holds, for each group
of leaves that joined together, the scalars of these stages (``clocked``), and the stages from the
first of them to the last run once for each group. All arrays stay where they are, and all other
stages run once, on all leaves.

``migrate_state`` makes such a state. Without late leaves there is no entry, and nothing runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from adamw_jax._core import masks, numerics
from adamw_jax._core.encoded import decode_state
from adamw_jax._core.only import of_chosen, take_facts
from adamw_jax._core.stage import Facts, Kind, Spec

Tree = Any
Run = Callable[[Tree, dict[str, Any], Tree | None, Facts], Tree]

LATE = "late leaves"
"""The entry in the stages of a state: by group, by stage, the state without leaves."""


def clocked(spec: Spec) -> bool:
    """Return whether a stage may have a clock: it is on moments, or averages directions."""
    averages = spec.takes is spec.gives is Kind.DIRECTION and spec.init is not None
    return Kind.MOMENTS in (spec.takes, spec.gives) or averages


def group_of(name: str, groups: Iterable[str]) -> str | None:
    """Return the group of a leaf: the longest that is the leaf or a module around it, or None."""
    around = [group for group in groups if f"{name}/".startswith(f"{group}/" if group else "")]
    return max(around, key=len, default=None)


def groups_for(joining: set[str], names: Iterable[str]) -> list[str]:
    """Return the largest modules whose leaves all join, among the leaves with these names."""
    staying = {*names} - joining

    def whole(name: str) -> str:
        parts = name.split("/")
        starts = ("/".join(parts[:n]) for n in range(len(parts) + 1))
        return next(s for s in starts if not any(group_of(other, [s]) == s for other in staying))

    return sorted({*map(whole, joining)})


def start_group(specs: Iterable[Spec], stages: Mapping[str, Any], params: Tree) -> dict[str, Any]:
    """Return the states of the stages with clocks, as of a run that begins, without leaves."""
    none = masks.hide(params, jax.tree.map(lambda _: True, params))
    found = [spec for spec in specs if clocked(spec) and spec.name in stages]
    return {spec.name: spec.init(none) for spec in found if spec.init is not None}


def by_group(
    run: Run,
    specs: Iterable[Spec],
    flow: Tree,
    memories: dict[str, Any],
    params: Tree | None,
    facts: Facts,
) -> Tree:
    """Run the stages with clocks for each group of leaves; return the direction of all leaves.

    Args:
      run: runs these stages: ``(gradient, memories, params, facts) -> direction``.
      specs: the declarations of these stages.
      flow: the gradient.
      memories: the states of all stages, which change in place.
      params: the parameters, or None.
      facts: the messages between stages, which change in place.
    """
    held = [spec for spec in specs if spec.init is not None and spec.name in memories]
    late, like = dict(memories[LATE]), flow if params is None else params
    whole, gradient, start = flow, flow, dataclasses.replace(facts)
    for group in (None, *late):
        chosen = numerics.map_named(lambda name, _, g=group: group_of(name, late) == g, like)
        scalars = late.get(group, {})
        some = dict(memories)
        for spec in held:
            fresh = jax.eval_shape(_decoded_init(spec), masks.show(like, chosen))
            some[spec.name] = _filled(fresh, memories[spec.name], scalars.get(spec.name))
        shown = {name: of_chosen(chosen, fact) for name, fact in start.trees().items()}
        own = dataclasses.replace(start, **shown)
        before = dict(vars(own))
        theirs = None if params is None else masks.show(params, chosen)
        part = run(masks.show(gradient, chosen), some, theirs, own)
        if group is None:  # averages of weights, which read it, have one clock for all leaves
            facts.rectifier = own.rectifier
        take_facts(facts, dataclasses.replace(own, rectifier=before["rectifier"]), before, chosen)
        whole = masks.merge(chosen, part, whole)
        new = {spec.name: some[spec.name] for spec in held}
        if group is not None:
            late[group] = {name: _filled(x, new[name]) for name, x in scalars.items()}
        for name, after in new.items():
            memories[name] = _filled(memories[name], after, scalars.get(name), keep=True)
    memories[LATE], facts.gradient = late, flow
    return whole


def _decoded_init(spec: Spec) -> Callable[[Tree], Any]:
    return lambda params: decode_state(spec.init(params))  # pyright: ignore[reportOptionalCall]


def _filled(tree: Tree, source: Tree, scalars: Tree = None, *, keep: bool = False) -> Tree:
    """Fill ``tree`` with the arrays of ``source`` by path, scalars with those of ``scalars``.

    With ``keep`` the tree keeps its own scalars, if ``scalars`` has them, and leaves not in source.
    """
    held, own = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (source, scalars))

    def fill(path: Any, x: Any) -> Any:
        if keep:
            return x if path in own else held.get(path, x)
        return own[path] if path in own else held[path]

    return jax.tree_util.tree_map_with_path(fill, tree)
