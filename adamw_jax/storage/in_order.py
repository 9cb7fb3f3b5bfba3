"""One parameter after the other: a step whose scratch is that of its largest array.

A scale needs the largest element of its block before the first code can be written, so XLA keeps
whole moments in float32 between the two, and left alone it does so for all parameters at once. Here
a traced step is put in the order of the parameters, each waiting for the scales of the one before:
the same operations on the same values.

>>> import jax, jax.numpy as jnp
>>> double = jax.make_jaxpr(lambda x, y: (2 * x, 2 * y))(1.0, 2.0)
>>> evaluate(double, [jnp.float32(1), jnp.float32(2)], [Group((), (0,), ()), Group((), (1,), ())])
[Array(2., dtype=float32), Array(4., dtype=float32)]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, Literal, jaxpr_as_fun

from adamw_jax.numerics import owner_in
from adamw_jax.storage.encoded import is_encoded

Tree = Any


def parameter_by_parameter(
    step: Callable[[Tree], tuple[Tree, Tree]], updates: Tree, state: Tree
) -> tuple[Tree, Tree]:
    """``step(state) -> updates, state``, traced and evaluated in the order of the parameters."""
    traced, shape = jax.make_jaxpr(step, return_shape=True)(state)
    ends = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
    owners = {end: i for i, end in enumerate(ends)}
    members: dict[int, list[int]] = {}
    scales: dict[int, list[int]] = {}
    place = 0
    for path, node in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded):
        leaves = len(jax.tree.leaves(node))
        start = owner_in(path, owners)
        if start is not None and is_encoded(node):
            owner = owners[path[start:]]
            members.setdefault(owner, []).extend(range(place, place + leaves))
            scales.setdefault(owner, []).extend(range(place + 1, place + leaves))
        place += leaves
    groups = []
    for owner in sorted(members):
        outputs = [len(ends) + i for i in members[owner]]
        awaited = [len(ends) + i for i in scales[owner]]
        groups.append(Group(tuple(scales[owner]), (owner, *outputs), tuple(awaited)))
    flat = evaluate(traced, jax.tree.leaves(state), groups)
    return jax.tree.unflatten(jax.tree.structure(shape), flat)


class Group(NamedTuple):
    """What belongs to one parameter, as positions among the inputs and outputs of a traced step.

    Attributes:
      waiting: inputs, small ones, that the first use of waits for the group before.
      outputs: what is computed together.
      awaited: those of the outputs that the next group waits for.
    """

    waiting: tuple[int, ...]
    outputs: tuple[int, ...]
    awaited: tuple[int, ...]


def evaluate(
    traced: ClosedJaxpr, inputs: Sequence[jax.Array], groups: Sequence[Group]
) -> list[jax.Array]:
    """The outputs of a traced function, computed group by group."""
    jaxpr = traced.jaxpr
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, traced.consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))
    maker = {var: i for i, equation in enumerate(jaxpr.eqns) for var in equation.outvars}
    ran: set[int] = set()

    def known(atom: Any) -> bool:
        return isinstance(atom, Literal) or atom in values

    def compute(atoms: Sequence[Any], effects: bool = False) -> None:
        wanted = {i for i, e in enumerate(jaxpr.eqns) if effects and e.effects and i not in ran}
        left = [*atoms, *(var for i in wanted for var in jaxpr.eqns[i].invars)]
        while left:
            atom = left.pop()
            if known(atom) or maker[atom] in wanted:
                continue
            wanted.add(maker[atom])
            left += jaxpr.eqns[maker[atom]].invars
        if wanted:
            ran.update(wanted)
            _run(jaxpr, [jaxpr.eqns[i] for i in sorted(wanted)], values)

    before: list[jax.Array] = []
    for group in groups:
        for i in group.waiting if before else ():
            values[jaxpr.invars[i]] = _after(values[jaxpr.invars[i]], before)
        compute([jaxpr.outvars[i] for i in group.outputs])
        before = [values[jaxpr.outvars[i]] for i in group.awaited] or before
    compute(jaxpr.outvars, effects=True)
    return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]


def _run(jaxpr: Jaxpr, equations: list[Any], values: dict[Any, Any]) -> None:
    """Adds to ``values`` what some of the equations compute."""
    made = [var for equation in equations for var in equation.outvars]
    made = [var for var in made if not isinstance(var, DropVar)]
    read = [v for equation in equations for v in equation.invars if not isinstance(v, Literal)]
    inputs = [var for var in dict.fromkeys(read) if var in values]
    names = jaxpr.debug_info.with_unknown_names()
    part = Jaxpr((), inputs, made, equations, jaxpr.effects, names)
    results = jaxpr_as_fun(ClosedJaxpr(part, ()))(*(values[var] for var in inputs))
    values.update(zip(made, results, strict=True))


def _after(x: jax.Array, readers: Sequence[jax.Array]) -> jax.Array:
    """``x``, once ``readers``, arrays without NaN, are known.

    The select always takes ``x``, since no scale is negative, but XLA does not know that.
    """
    total = functools.reduce(lax.add, [r.ravel()[0] for r in readers])
    return lax.select(lax.ge(total, lax.full_like(total, -1.0)), x, lax.full_like(x, 0))
