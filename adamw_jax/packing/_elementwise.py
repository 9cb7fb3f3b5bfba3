"""Find out whether an update is element-wise, and which leaves it treats alike.

An update is traced on abstract leaves. Each of its values becomes an expression in the gradient,
parameter and state of a leaf, and in scalars. An update is element-wise if every result of a leaf
depends on that leaf alone, through element-wise operations. Leaves with equal expressions are
treated alike.

>>> import jax, jax.numpy as jnp, optax
>>> leaf = jax.ShapeDtypeStruct((3,), jnp.float32)
>>> tx = optax.masked(optax.scale(2.0), {"a": True, "b": False})
>>> [[a, b]] = programs(tx, {"a": leaf, "b": leaf})
>>> a == b
False
>>> programs(optax.clip_by_global_norm(1.0), {"a": leaf})
Traceback (most recent call last):
ValueError: the update of 'a' is not element-wise: it uses reduce_sum
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.extend.core as jex
import numpy as np
import optax
from jax.core import Tracer

from adamw_jax._core import numerics
from adamw_jax._core.sequential import switched

Tree = Any
Program = tuple[Hashable, ...]

_NAMES = """
    abs add add_any and atan2 cbrt ceil clamp complex conj convert_element_type copy cos cosh div eq
    erf exp exp2 expm1 floor ge gt imag integer_pow is_finite le log log1p logistic lt max min mul
    ne neg nextafter not optimization_barrier or pow real reduce_precision rem round rsqrt select_n
    sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
ELEMENTWISE = frozenset(_NAMES.split())
"""Primitives in which an element of the result reads one element of each operand."""

CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call")
"""Primitives that run another program, in the parameter ``jaxpr`` or ``call_jaxpr``."""


class Value(NamedTuple):
    """The value of a traced variable.

    Attributes:
      leaf: the leaf from which it was computed, or None if it is the same for all leaves.
      expression: a number; equal numbers mean equal expressions.
      uniform: whether all its elements are one scalar.
    """

    leaf: int | None
    expression: int
    uniform: bool = False


class _LikeParams(NamedTuple):
    """A part of a state with the structure of the parameters."""

    tree: Tree


def programs(tx: optax.GradientTransformation, *trees: Tree) -> list[list[Program]]:
    """Return a program for every leaf of every tree; leaves with equal programs are treated alike.

    Args:
      tx: any transformation.
      *trees: parameters, as arrays or ``ShapeDtypeStruct``s; ``tx`` is traced once for each tree.

    Raises:
      ValueError: an update is not element-wise, it needs more than gradients and parameters, or the
        state of a leaf has another shape.
    """
    numbers: dict[Hashable, int] = {}
    return [_programs(tx, tree, numbers) for tree in trees]


def _programs(
    tx: optax.GradientTransformation, params: Tree, numbers: dict[Hashable, int]
) -> list[Program]:
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    try:
        state = jax.eval_shape(tx.init, params)
        with switched(False):
            make = jax.make_jaxpr(tx.update, return_shape=True)
            traced, (_, new_state) = make(params, state, params)
    except Exception as error:
        names = ", ".join(map(repr, numerics.leaf_names(params)))
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"it does not update {names} from gradients and parameters alone "
            f"({type(error).__name__}: {reason})"
        ) from error
    trace = _Trace(params, numbers)
    results = trace.run(
        traced.jaxpr,
        [trace.constant(x) for x in traced.consts],
        [*trace.tree("gradient"), *trace.state(tx, state), *trace.tree("parameter")],
    )
    places = [*trace.tree("update"), *trace.state(tx, new_state)]
    found: list[list[Hashable]] = [[] for _ in trace.names]
    for place, result in zip(places, results, strict=True):
        if result.leaf != place.leaf and result.leaf is not None:
            trace.refuse(result.leaf, "its values go to another leaf or to shared state")
        if place.leaf is not None:
            found[place.leaf].append((place.expression, result.expression))
    return [tuple(program) for program in found]


class _Trace:
    """Evaluate a traced update on ``Value``s."""

    def __init__(self, params: Tree, numbers: dict[Hashable, int]):
        self.names, self.structure = numerics.leaf_names(params), jax.tree.structure(params)
        self.shapes = [p.shape for p in jax.tree.leaves(params)]
        self.numbers = numbers

    def refuse(self, leaf: int, why: str) -> NoReturn:
        raise ValueError(f"the update of {self.names[leaf]!r} is not element-wise: {why}")

    def number(self, *expression: Hashable) -> int:
        return self.numbers.setdefault(expression, len(self.numbers))

    def tree(self, what: Hashable) -> list[Value]:
        """Return the leaves of a tree like the parameters."""
        return [Value(leaf, self.number(what)) for leaf in range(len(self.names))]

    def state(self, tx: optax.GradientTransformation, state: Any) -> list[Value]:
        """Return the leaves of a state, each with the parameter that it belongs to."""
        values = []
        marked = optax.tree.map_params(tx, _LikeParams, state, is_leaf=lambda _: True)
        parts = jax.tree.leaves(marked, is_leaf=lambda x: isinstance(x, _LikeParams))
        for place, part in enumerate(parts):
            if not isinstance(part, _LikeParams):
                values.append(Value(None, self.number("state", place), part.ndim == 0))
                continue
            for leaf, x in enumerate(self.structure.flatten_up_to(part.tree)):
                if isinstance(x, optax.MaskedNode):
                    continue
                if getattr(x, "shape", None) != self.shapes[leaf]:
                    stored = getattr(x, "shape", type(x).__name__)
                    self.refuse(leaf, f"its state has another form, {stored}")
                values.append(Value(leaf, self.number("state", place)))
        return values

    def constant(self, x: Any) -> Value:
        known = None if isinstance(x, Tracer) else np.asarray(x).tobytes()
        expression = self.number("constant", str(x.dtype), id(x) if known is None else known)
        return Value(None, expression, x.ndim == 0)

    def run(self, jaxpr: Any, constants: Sequence[Value], inputs: Sequence[Value]) -> list[Value]:
        """Return the results of a program."""
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *inputs), strict=True))

        def read(x: Any) -> Value:
            return self.constant(np.asarray(x.val, x.aval.dtype)) if _is_literal(x) else known[x]

        for equation in jaxpr.eqns:
            operands, name = [read(x) for x in equation.invars], equation.primitive.name
            if name in CALLS:
                inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
                given = [self.constant(x) for x in inner.consts]
                results = self.run(inner.jaxpr, given, operands)
            else:
                results = self.apply(equation, name, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(x) for x in jaxpr.outvars]

    def apply(self, equation: Any, name: str, operands: list[Value]) -> list[Value]:
        """Return the results of one operation."""
        leaves = {x.leaf for x in operands if x.leaf is not None}
        uniform = all(x.uniform for x in operands)
        if name == "broadcast_in_dim" and uniform:
            return operands[:1]
        # Omit options that depend on the shape, so that all shapes have one expression.
        options = {k: v for k, v in equation.params.items() if k != "sharding"}
        leaf = min(leaves, default=None)
        if leaf is not None:
            if name not in ELEMENTWISE:
                self.refuse(leaf, f"it uses {name}")
            if len(leaves) > 1:
                self.refuse(leaf, f"it reads {self.names[max(leaves)]!r}")
            if any(x.leaf is None and not x.uniform for x in operands):
                self.refuse(leaf, "it reads an array that is not a leaf")
        read = tuple(x.expression for x in operands)
        number = [self.number(name, str(options), read, i) for i in range(len(equation.outvars))]
        uniform = leaf is None and uniform and name in ELEMENTWISE
        return [
            Value(leaf, n, uniform or (leaf is None and out.aval.ndim == 0))
            for n, out in zip(number, equation.outvars, strict=True)
        ]


def _is_literal(x: Any) -> bool:
    return isinstance(x, jex.Literal)
