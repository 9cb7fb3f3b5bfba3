"""``only``: apply a stage to some of the leaves.

>>> from adamw_jax import amsgrad_max
>>> only(amsgrad_max(), "*/kernel").spec.name
'amsgrad_max'
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adamw_jax._core import masks, numerics
from adamw_jax._core.record import Moments, leafwise
from adamw_jax._core.stage import Stage, Step, stage_of

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
        shown = {name: _of_chosen(chosen, fact) for name, fact in step.facts.trees().items()}
        facts = dataclasses.replace(step.facts, **shown)
        inner_step = dataclasses.replace(step, params=params, facts=facts)
        moments = isinstance(flow, Moments)
        some = _hide_record(flow, chosen) if moments else masks.show(flow, chosen)
        part, state = spec.apply(some, state, inner_step)
        for name, fact in facts.trees().items():
            if fact is not shown.get(name):
                if name != "leaf_scalars":  # these may cover some leaves only
                    fact = _of_all(chosen, fact, getattr(step.facts, name))
                setattr(step.facts, name, fact)
        step.facts.delayed |= facts.delayed
        merge = _merge_record if moments else masks.merge
        return merge(chosen, part, flow), state

    start = None if spec.init is None else init
    return stage_of(spec.around(apply, start, storage=None, partial=True))


def _of_chosen(chosen: Tree, fact: Any) -> Any:
    """Restrict a fact from earlier stages to the chosen leaves."""
    of_leaves = jax.tree.structure(fact) == jax.tree.structure(chosen)
    return masks.show(fact, chosen) if of_leaves and not isinstance(fact, jax.Array) else fact


def _of_all(chosen: Tree, fact: Any, before: Any) -> Tree:
    """Merge a fact about the chosen leaves with the value that the others had before.

    If they had none, it is False, or a scale of 1.
    """
    default = jnp.ones([], numerics.default_float())
    if isinstance(fact, jax.Array):
        default = jnp.zeros_like(fact)
        fact = jax.tree.map(lambda _: fact, chosen)
    elif all(x.dtype == jnp.bool_ for x in jax.tree.leaves(fact)):
        default = jnp.zeros([], jnp.bool_)
    return masks.merge(chosen, fact, leafwise(default if before is None else before, chosen))


def _over_record(record: Moments, change: Callable[[Tree, str], Tree]) -> Moments:
    def reading(field: str) -> Any:
        old = getattr(record, field)
        return None if old is None else old._replace(raw=change(old.raw, field), inverse_root=None)

    return dataclasses.replace(
        record,
        gradient=change(record.gradient, "gradient"),
        first=reading("first"),
        second=reading("second"),
        prior_second=reading("prior_second"),
        numerator=None if record.numerator is None else change(record.numerator, "numerator"),
        gain=_by_leaf(record.gain, change),
        exceptions=tuple((_by_leaf(where, change), word) for where, word in record.exceptions),
    )


def _by_leaf(fact: Any, change: Callable[[Tree, str], Tree]) -> Any:
    return fact if fact is None or isinstance(fact, jax.Array) else change(fact, "fact")


def _hide_record(record: Moments, chosen: Tree) -> Moments:
    return _over_record(record, lambda tree, _: masks.show(tree, chosen))


def _merge_record(chosen: Tree, part: Moments, whole: Moments) -> Moments:
    """Take the chosen leaves from ``part``; make scalars trees where the two differ."""

    def scalars(new: Any, old: Any, default: Any) -> Any:
        if new is old:
            return old
        if not all(jax.tree.leaves(chosen)):
            old = leafwise(jnp.asarray(default) if old is None else old, chosen)
            return jax.tree.map(
                lambda use, n, o: n.astype(o.dtype) if use else o,
                chosen,
                leafwise(new, chosen),
                old,
            )
        return new

    def values(tree: Tree, field: str) -> Tree:
        if field in ("gradient", "fact"):
            return tree
        if field == "numerator":
            return masks.merge(chosen, part.numerator, tree)
        return masks.merge(chosen, getattr(part, field).raw, tree)

    for field in ("first", "second"):
        before, after = getattr(whole, field), getattr(part, field)
        if before is not None and (
            before.divisor is not after.divisor or before.clock is not after.clock
        ):
            raise ValueError(
                "only() cannot correct the bias of some leaves, or delay it: later stages need one "
                "correction for all. Give the stage to compose() without only()."
            )
        if before is not None and before.pending and not after.pending:
            after_division = before._replace(raw=before.value, pending=False)
            whole = dataclasses.replace(whole, **{field: after_division})
    if whole.numerator is None and part.numerator is not None:
        whole = dataclasses.replace(whole, numerator=whole.first.value)
    one = jnp.ones([], numerics.default_float())
    return dataclasses.replace(
        _over_record(whole, values),
        gain=scalars(part.gain, whole.gain, one),
        exceptions=whole.exceptions
        + tuple(
            (scalars(where, None, False), word)
            for where, word in part.exceptions[len(whole.exceptions) :]
        ),
    )
