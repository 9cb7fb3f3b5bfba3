"""One array after the other: a step whose scratch is that of its largest array.

A scale needs the largest element of its block before the first code can be written, so XLA keeps
whole moments in float32 between the two, and left alone it does so for all of them at once. Here a
traced step is put in order: each array waits for the scales of the one before, parameter by
parameter. The operations and the values are the same.

>>> import jax, jax.numpy as jnp
>>> double = jax.make_jaxpr(lambda x, y: (2 * x, 2 * y))(1.0, 2.0)
>>> Calls(double, [jnp.float32(1), jnp.float32(2)]).outputs([1])
[Array(4., dtype=float32)]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, Literal, jaxpr_as_fun

from adamw_jax.numerics import owner_in
from adamw_jax.storage.encoded import Noise, encoded_as, is_encoded

Tree = Any


def parameter_by_parameter(
    step: Callable[[Tree], tuple[Tree, Tree]], state: Tree, noise: Noise | None
) -> tuple[Tree, Tree]:
    """``step(state) -> updates, state``, traced, and the new state encoded like the old one."""
    traced, (moved, new) = jax.make_jaxpr(step, return_shape=True)(state)
    ends = [path for path, _ in jax.tree_util.tree_leaves_with_path(moved)]
    owners = {end: i for i, end in enumerate(ends)}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state, is_leaf=is_encoded)]
    nodes, structure = jax.tree.flatten(state, is_leaf=is_encoded)
    results = structure.flatten_up_to(new)
    inputs, outputs = _places(nodes, 0), _places(results, len(ends))

    held: dict[int, list[int]] = {}
    for number, (path, node) in enumerate(zip(paths, nodes, strict=True)):
        start = owner_in(path, owners)
        if start is not None and is_encoded(node):
            held.setdefault(owners[path[start:]], []).append(number)

    calls = Calls(traced, jax.tree.leaves(state))
    before: list[jax.Array] = []

    def result(number: int) -> Any:
        arrays = calls.outputs(outputs[number])
        made = jax.tree.unflatten(jax.tree.structure(results[number]), arrays)
        if is_encoded(nodes[number]) and not is_encoded(made):
            made = encoded_as(nodes[number], _after(made, before), number, noise)
        return made

    done: dict[int, Any] = {}
    for owner in sorted(held):
        for i in (i for number in held[owner] for i in inputs[number][1:]):
            calls.inputs[i] = _after(calls.inputs[i], before)
        for number in held[owner]:
            done[number] = result(number)
            before = jax.tree.leaves(done[number].scales) or before
        calls.outputs([owner])
    rest = [done[number] if number in done else result(number) for number in range(len(nodes))]
    whole = calls.outputs(range(len(ends)), effects=True)
    return jax.tree.unflatten(jax.tree.structure(moved), whole), jax.tree.unflatten(structure, rest)


class Calls:
    """A traced function of which outputs are computed as they are asked for.

    Attributes:
      inputs: its arguments; one may be replaced as long as nothing has read it.
    """

    def __init__(self, traced: ClosedJaxpr, inputs: Sequence[jax.Array]) -> None:
        self.inputs = list(inputs)
        self._jaxpr = traced.jaxpr
        self._values: dict[Any, Any] = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        self._places = {var: i for i, var in enumerate(traced.jaxpr.invars)}
        self._makers = {
            var: i for i, equation in enumerate(traced.jaxpr.eqns) for var in equation.outvars
        }
        self._ran: set[int] = set()

    def outputs(self, places: Iterable[int], *, effects: bool = False) -> list[Any]:
        """The outputs at these places; with ``effects``, after whatever has an effect."""
        equations = self._jaxpr.eqns
        atoms = [self._jaxpr.outvars[i] for i in places]
        wanted = set[int]()
        if effects:
            wanted = {i for i, e in enumerate(equations) if e.effects and i not in self._ran}
        left = [*atoms, *(var for i in wanted for var in equations[i].invars)]
        while left:
            atom = left.pop()
            if self._known(atom) or self._makers[atom] in wanted:
                continue
            wanted.add(self._makers[atom])
            left += equations[self._makers[atom]].invars
        if wanted:
            self._ran |= wanted
            self._run([equations[i] for i in sorted(wanted)])
        return [self._value(atom) for atom in atoms]

    def _known(self, atom: Any) -> bool:
        if isinstance(atom, Literal) or atom in self._values:
            return True
        if atom in self._places:
            self._values[atom] = self.inputs[self._places[atom]]
            return True
        return False

    def _value(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else self._values[atom]

    def _run(self, equations: list[Any]) -> None:
        """Adds to the values what some of the equations compute."""
        made = [var for equation in equations for var in equation.outvars]
        made = [var for var in made if not isinstance(var, DropVar)]
        read = [v for equation in equations for v in equation.invars if not isinstance(v, Literal)]
        inputs = [var for var in dict.fromkeys(read) if var in self._values]
        names = self._jaxpr.debug_info.with_unknown_names()
        part = Jaxpr((), inputs, made, equations, self._jaxpr.effects, names)
        results = jaxpr_as_fun(ClosedJaxpr(part, ()))(*(self._values[var] for var in inputs))
        self._values.update(zip(made, results, strict=True))


def _places(nodes: Sequence[Any], start: int) -> list[range]:
    """Where in a flat list the leaves of each node are."""
    places = []
    for node in nodes:
        stop = start + len(jax.tree.leaves(node))
        places.append(range(start, stop))
        start = stop
    return places


def _after(x: jax.Array, readers: Sequence[jax.Array]) -> jax.Array:
    """``x``, once ``readers``, arrays without NaN, are known.

    The select always takes ``x``, since no scale is negative, but XLA does not know that.
    """
    if not readers:
        return x
    total = functools.reduce(lax.add, [r.ravel()[0] for r in readers])
    return lax.select(lax.ge(total, lax.full_like(total, -1.0)), x, lax.full_like(x, 0))
