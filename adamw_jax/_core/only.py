"""``only``: apply a stage to some of the leaves.

>>> from adamw_jax import amsgrad_max
>>> only(amsgrad_max(), "*/kernel").spec.name
'amsgrad_max'
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax._core import masks, numerics
from adamw_jax._core.record import Moments, Reading, leafwise
from adamw_jax._core.stage import Facts, Stage, Step, stage_of

Tree = Any


def only(inner: Any, where: masks.Mask) -> Stage:
    """Apply a stage to some leaves; the others pass it unchanged and have no state in it.

    Args:
      inner: a stage that gives the kind that it takes: ``amsgrad_max()``, ``rectify_variance()``,
        decay, ...
      where: mask of the leaves, see ``decoupled_decay``; it may depend on names and shapes only.

    Returns:
      A stage of the kind and name of ``inner``, with state for the chosen leaves alone.

    Raises:
      ValueError: ``inner`` gives another kind than it takes, or (in ``init`` and ``update``) the
        mask does not fit the leaves, or ``inner`` corrects the bias or delays the moments.

    Example:
      >>> import adamw_jax as aj
      >>> clip = aj.only(aj.clip_gradient(1.0), where="kernel")
      >>> tx = aj.compose(clip, aj.adamw(1e-3))
    """
    if not isinstance(inner, Stage):
        raise TypeError(
            f"only() takes a stage of adamw_jax, got {inner!r}; for others use optax.masked."
        )
    spec = inner.spec
    if spec.takes is not spec.gives:
        raise ValueError(
            f"only() takes a stage that keeps the kind, but {spec.name} is {spec.kinds}; to leave "
            "parameters out of a whole recipe, use optax.masked or rules=."
        )

    def init(params: Tree) -> Any:
        assert spec.init is not None
        return spec.init(masks.show(params, masks.resolve(where, params, "where")))

    def apply(flow: Any, state: Any, step: Step) -> tuple[Any, Any]:
        tree = flow.gradient if isinstance(flow, Moments) else flow
        chosen = masks.resolve(where, tree if step.params is None else step.params, "where")
        params = None if step.params is None else masks.show(step.params, chosen)
        shown = {name: of_chosen(chosen, fact) for name, fact in step.facts.trees().items()}
        facts = dataclasses.replace(step.facts, **shown)
        before = dict(vars(facts))
        inner_step = dataclasses.replace(step, params=params, facts=facts)
        if isinstance(flow, Moments):
            some = flow.map_leaves(lambda tree: masks.show(tree, chosen))
            part, state = spec.apply(some, state, inner_step)
            flow = _merge_record(chosen, part, flow)
        else:
            part, state = spec.apply(masks.show(flow, chosen), state, inner_step)
            flow = masks.merge(chosen, part, flow)
        take_facts(step.facts, facts, before, chosen)
        return flow, state

    def settings(params: Tree) -> dict[str, Tree]:
        chosen = masks.resolve(where, params, "where")
        words = {spec.name: jax.tree.map(lambda _: "yes", params)}
        if spec.settings is not None:
            words = spec.settings(masks.show(params, chosen))
        return {
            column: jax.tree.map(lambda use, word: word if use else "no", chosen, tree)
            for column, tree in words.items()
        }

    start = None if spec.init is None else init
    return stage_of(spec.around(apply, start, storage=None, partial=True, settings=settings))


def take_facts(facts: Facts, part: Facts, before: dict[str, Any], chosen: Tree) -> None:
    """Add to ``facts`` those of ``part``, about the chosen leaves, that are not as ``before``."""
    for field in dataclasses.fields(part):
        fact, elsewhere = getattr(part, field.name), field.metadata.get("elsewhere")
        if fact is before[field.name]:
            continue
        if elsewhere is not None:
            fact = _of_all(chosen, fact, getattr(facts, field.name), elsewhere)
        setattr(facts, field.name, fact)


def of_chosen(chosen: Tree, fact: Any) -> Any:
    """Restrict a fact from earlier stages to the chosen leaves."""
    of_leaves = jax.tree.structure(fact) == jax.tree.structure(chosen)
    return masks.show(fact, chosen) if of_leaves and not isinstance(fact, jax.Array) else fact


def _of_all(chosen: Tree, fact: Any, before: Any, elsewhere: bool | float) -> Tree:
    """Merge a fact about the chosen leaves with the one before, or ``elsewhere`` if it is None."""
    dtype = jnp.bool_ if isinstance(elsewhere, bool) else numerics.default_float()
    rest = jnp.asarray(elsewhere, dtype) if before is None else before
    return masks.merge(chosen, leafwise(fact, chosen), leafwise(rest, chosen))


def _merge_record(chosen: Tree, part: Moments, whole: Moments) -> Moments:
    """Take the chosen leaves from ``part``; make scalars trees where the two differ."""
    for name, before in vars(whole).items():
        if not isinstance(before, Reading):
            continue
        after = getattr(part, name)
        if before.divisor is not after.divisor or before.clock is not after.clock:
            raise ValueError(
                "only() cannot correct the bias of some leaves, or delay it: later stages need one "
                "correction for all. Give the stage to compose() without only()."
            )
        if before.pending and not after.pending:
            divided = before._replace(raw=before.value, pending=False)
            whole = dataclasses.replace(whole, **{name: divided})
    if all(jax.tree.leaves(chosen)):
        return part
    if whole.numerator is None and part.numerator is not None:
        whole = dataclasses.replace(whole, numerator=whole.first.value)
    if part.gain is not whole.gain:
        one = jnp.ones([], numerics.default_float())
        gain = leafwise(one if whole.gain is None else whole.gain, chosen)
        whole = dataclasses.replace(whole, gain=gain)
        part = dataclasses.replace(part, gain=leafwise(part.gain, chosen))
    known = len(whole.exceptions)
    new = [(leafwise(where, chosen), word) for where, word in part.exceptions[known:]]
    none = leafwise(jnp.zeros([], jnp.bool_), chosen)
    whole = dataclasses.replace(
        whole, exceptions=(*whole.exceptions, *((none, word) for _, word in new))
    )
    part = dataclasses.replace(part, exceptions=(*part.exceptions[:known], *new))
    return whole.map_leaves(lambda old, new: masks.merge(chosen, new, old), part)
