"""A traced function whose outputs are computed one by one, in an order of the caller's.

>>> import jax, jax.numpy as jnp
>>> double = jax.make_jaxpr(lambda x, y: (2 * x, 2 * y))(1.0, 2.0)
>>> Calls(double, [jnp.float32(1), jnp.float32(2)]).outputs([1])
[Array(4., dtype=float32)]
"""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, Literal, jaxpr_as_fun


class Calls:
    """A traced function of which outputs are computed as they are asked for.

    Args:
      traced: the function.
      inputs: its arguments; in the attribute of this name one may be replaced as long as nothing
        has read it.
    """

    def __init__(self, traced: ClosedJaxpr, inputs: Sequence[jax.Array]) -> None:
        self.inputs = list(inputs)
        self._jaxpr = traced.jaxpr
        self._values: dict[Any, Any] = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        self._places = {var: i for i, var in enumerate(traced.jaxpr.invars)}
        self._makers = {
            var: i for i, equation in enumerate(traced.jaxpr.eqns) for var in equation.outvars
        }
        self._has_effects = any(equation.effects for equation in traced.jaxpr.eqns)

    def outputs(self, places: Iterable[int]) -> list[Any]:
        """Some outputs. Of a function with effects all are computed at once, in its own order.

        Args:
          places: where they stand among all.
        """
        atoms = [self._jaxpr.outvars[i] for i in places]
        self._run(self._wanted(atoms))
        return [self._value(atom) for atom in atoms]

    def apart(self, parts: Iterable[Iterable[int]]) -> list[Calls]:
        """A function of its own for each group of outputs; what two of them need is computed now.

        Args:
          parts: the places of each group.
        """
        wanted = [self._wanted([self._jaxpr.outvars[i] for i in places]) for places in parts]
        uses = collections.Counter(itertools.chain.from_iterable(wanted))
        self._run({equation for equation, number in uses.items() if number > 1})
        made = []
        for _ in wanted:
            own = copy.copy(self)
            own._values = dict(self._values)
            made.append(own)
        return made

    def _wanted(self, atoms: Iterable[Any]) -> set[int]:
        """The equations that are still to be evaluated for some atoms."""
        equations, wanted, left = self._jaxpr.eqns, set[int](), list(atoms)
        if self._has_effects:
            wanted, left = set(range(len(equations))), list(self._jaxpr.invars)
        while left:
            atom = left.pop()
            if self._known(atom) or self._makers[atom] in wanted:
                continue
            wanted.add(self._makers[atom])
            left += equations[self._makers[atom]].invars
        return wanted

    def _known(self, atom: Any) -> bool:
        if isinstance(atom, Literal) or atom in self._values:
            return True
        if atom in self._places:
            self._values[atom] = self.inputs[self._places[atom]]
            return True
        return False

    def _value(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else self._values[atom]

    def _run(self, wanted: set[int]) -> None:
        """Adds to the values what some of the equations compute."""
        if not wanted:
            return
        self._has_effects = False
        equations = [self._jaxpr.eqns[i] for i in sorted(wanted)]
        made = [var for equation in equations for var in equation.outvars]
        made = [var for var in made if not isinstance(var, DropVar)]
        read = [v for equation in equations for v in equation.invars if not isinstance(v, Literal)]
        inputs = [var for var in dict.fromkeys(read) if var in self._values]
        names = self._jaxpr.debug_info.with_unknown_names()
        part = Jaxpr((), inputs, made, equations, self._jaxpr.effects, names)
        results = jaxpr_as_fun(ClosedJaxpr(part, ()))(*(self._values[var] for var in inputs))
        self._values.update(zip(made, results, strict=True))
