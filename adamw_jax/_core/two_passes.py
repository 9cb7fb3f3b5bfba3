"""Compute a step twice: first only what decides about it, then the step, if it is not refused.

The results of a refused step are the old state and an update of 0. To select them after one
evaluation, all new arrays would have to stay in memory until every leaf is known. In two
evaluations the first writes no array, and the second overwrites the state in place: XLA fuses each
select into the kernel that makes the array. What a step computes from an array of the new state is
computed from the selected array, which is the same unless the step is refused; else XLA would need
a copy of the old one.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from adamw_jax._core import numerics

Tree = Any
Step = Callable[[Tree, Tree], tuple[Tree, Tree]]


def step_unless(
    step: Step, refuse: Callable[[Tree, Tree], jax.Array], updates: Tree, state: Tree
) -> tuple[Tree, Tree, jax.Array]:
    """Run ``step(updates, state) -> moved, state`` unless it is refused.

    Args:
      step: the step. If it has effects, or nothing is traced, it is evaluated once.
      refuse: ``(moved, new state) -> code``, an int32 that is 0 unless the step is refused.
      updates: the gradients.
      state: the state, with the structure, shapes and dtypes of the new one.

    Returns:
      The update, or zeros; the new state, or the old one; the code.
    """
    traced = any(isinstance(x, Tracer) for x in jax.tree.leaves((updates, state)))
    closed, shapes = (
        jax.make_jaxpr(step, return_shape=True)(updates, state) if traced else (None,) * 2
    )
    if closed is None or closed.effects:
        moved, new = step(updates, state)
        code = refuse(moved, new)
        moved = jax.tree.map(lambda x: _unless(code, lax.full_like(x, 0), x), moved)
        return moved, jax.tree.map(lambda old, x: _unless(code, old, x), state, new), code
    arguments, inputs = jax.tree.flatten((updates, state))
    outputs = jax.tree.structure(shapes)
    code = refuse(*jax.tree.unflatten(outputs, jaxpr_as_fun(closed)(*arguments)))
    if axes := numerics.varying_axes(code):  # each device decides: the whole state may differ
        arguments = [_varying(x, axes) for x in arguments]
        closed = jax.make_jaxpr(step)(*jax.tree.unflatten(inputs, arguments))
    arguments, code = lax.optimization_barrier((arguments, code))  # XLA would join the two passes
    held = arguments[len(jax.tree.leaves(updates)) :]
    old = [None] * (len(closed.jaxpr.outvars) - len(held)) + held
    results = _evaluate(closed, arguments, old, code)
    return *jax.tree.unflatten(outputs, results), code


def _unless(code: jax.Array, old: Any, new: Any) -> jax.Array:
    axes = numerics.varying_axes(code)
    if axes:  # inside ``shard_map`` a select needs equal types
        old, new = (_varying(x, axes) for x in (old, new))
    return lax.select(lax.ne(code, lax.full_like(code, 0)), old, new)


def _varying(x: Any, axes: frozenset[str]) -> Any:
    more = tuple(sorted(axes - numerics.varying_axes(x)))
    return lax.pcast(x, more, to="varying") if more else x


def _evaluate(
    closed: ClosedJaxpr, arguments: Sequence[Any], old: Sequence[Any], code: jax.Array
) -> list[Any]:
    """Evaluate a step whose outputs are ``old``, None for zeros, if it is refused."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)
    keep = _made_once(jaxpr, old)

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        params = eqn.primitive.get_bind_params(eqn.params)
        with jax.named_scope(str(eqn.source_info.name_stack)), eqn.ctx.manager:
            made = eqn.primitive.bind(*map(value, eqn.invars), **params)
        for var, x in zip(
            eqn.outvars, made if eqn.primitive.multiple_results else [made], strict=True
        ):
            values[var] = _unless(code, keep[var], x) if var in keep else x
    results = []
    for atom, before in zip(jaxpr.outvars, old, strict=True):
        x = value(atom)
        before = lax.full_like(x, 0) if before is None else before
        held = not isinstance(atom, Literal) and atom in keep
        results.append(x if held else _unless(code, before, x))
    return results


def _made_once(jaxpr: Any, old: Sequence[Any]) -> Mapping[Any, Any]:
    """Return the old value of each variable that is one new array of the state and nothing else."""
    made = {var for eqn in jaxpr.eqns for var in eqn.outvars}
    outputs = collections.Counter(x for x in jaxpr.outvars if not isinstance(x, Literal))
    pairs = zip(jaxpr.outvars, old, strict=True)
    return {
        atom: before
        for atom, before in pairs
        if before is not None
        and not isinstance(atom, Literal)
        and atom in made
        and outputs[atom] == 1
    }
