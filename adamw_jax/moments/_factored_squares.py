"""Keep Adafactor's second moment, only the row and column means of each matrix.

    b_t = 1 - t^-decay_rate                                  (0 at the first step: no bias)
    R' = b_t R + (1 - b_t) mean over columns of (|g|^2 + eps)
    C' = b_t C + (1 - b_t) mean over rows of (|g|^2 + eps)
    read: V_ij = R_i C_j / mean(R)

An n x m matrix needs n + m values instead of n m. V is exact if |g|^2 has rank one. Leaves that are
not factored keep a second moment of their own size. Shazeer & Stern, ICML 2018, arXiv 1804.04235.

>>> import jax.numpy as jnp
>>> state = factored_squares(min_dim_size_to_factor=2).init({"w": jnp.ones((3, 2))})
>>> state.rows["w"].shape, state.columns["w"].shape
((3,), (2,))
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from adamw_jax._core import numerics
from adamw_jax._core.checks import one_of, switch, whole_number
from adamw_jax._core.declare import (
    ScalarOrSchedule,
    decay_rate as keeping_rate,
    declare,
    exponent,
    nonnegative,
    storage_dtype,
)
from adamw_jax._core.gradients import check_gradient, check_uncut
from adamw_jax._core.numerics import increment
from adamw_jax._core.options import shows_options
from adamw_jax._core.record import Reading
from adamw_jax._core.stage import Step
from adamw_jax.moments._factor_axes import Shape, Split, check_patterns, checked, split_of
from adamw_jax.moments._parts import Part

Tree = Any

EPS_FORMS = ("added", "clamped")


class FactoredSquaresState(NamedTuple):
    """State of ``factored_squares``.

    Attributes:
      rows: means over the second factored axes, shaped like the parameter without those axes. For a
        leaf that is not factored, its second moment.
      columns: means over the first factored axes. For a leaf that is not factored, an unused
        scalar, which keeps the structure of the parameters.
      steps: updates since the start, int32.
    """

    rows: Tree
    columns: Tree
    steps: jax.Array


@shows_options
def factored_squares(
    decay_rate: ScalarOrSchedule = 0.8,
    eps: ScalarOrSchedule | None = 1e-30,
    *,
    min_dim_size_to_factor: int = 128,
    axes: Any = "last",
    eps_form: str = "added",
    factored: bool = True,
    decay_offset: int = 0,
    max_b2: ScalarOrSchedule | None = None,
    b2: ScalarOrSchedule | None = None,
    dtype: Any = None,
) -> Part:
    """Estimate the second moment from row and column means, with a decay rate that tends to 1.

    Args:
      decay_rate: exponent in (0, 1] of ``b_t = 1 - t^-decay_rate``, or a schedule of it; 0.8
        (paper).
      eps: added to the squared gradient, >= 0; 1e-30 (paper's eps1). With ``eps_form="clamped"`` it
        is the lower bound of the root of the second moment; None is then the machine epsilon of the
        gradient.
      min_dim_size_to_factor: least size of both factored axes. The paper factors every matrix: 1.
      axes: ``"last"`` factors over the last two axes (paper's code, PyTorch), ``"largest"`` over
        the two largest (optax, T5X), which suits kernels whose first axes are channels. Or a table
        from patterns on leaf names to one of these words, None (not factored), or the axes of rows
        and columns. Each may be several axes, as in T5X's factor rules:
        ``{"*/query/kernel": (0, (1, 2))}`` treats a kernel of embedding, heads and width as a
        matrix. Other axes are a batch. Leaves that match no pattern use ``"last"``; a pattern that
        matches no leaf is an error.
      eps_form: ``"added"`` (paper), or ``"clamped"``: the mean of the rows is at least eps and the
        second moment at least eps^2 (PyTorch).
      factored: False factors no leaf.
      decay_offset: number of steps after which t starts to count; t is 1 before. After
        ``restart_moments`` it counts from the restart.
      max_b2: upper bound of b_t, in [0, 1), or a schedule of it; Zhai et al., 2106.04560, use
        0.999. None for no bound.
      b2: Adam's decay rate, in [0, 1), or a schedule of it, used instead of ``decay_rate``:
        ``b_t = b2 (1 - b2^(t-1)) / (1 - b2^t)``, an average without bias (an option of the paper's
        code).
      dtype: storage dtype; the default is float32 (float64 under x64).

    Returns:
      A part for the second moment, with n + m values of state for an n x m matrix, and one per
      parameter for a leaf that is not factored.

    Example:
      >>> import adamw_jax as aj
      >>> tx = aj.compose(
      ...     aj.estimate_moments(aj.moments.no_moment(), aj.moments.factored_squares()),
      ...     aj.precondition(None),
      ...     aj.scale_by_learning_rate(1e-3),
      ... )
    """
    axes = checked(axes)
    one_of("eps_form", eps_form, EPS_FORMS)
    switch("factored", factored)
    smallest = whole_number("min_dim_size_to_factor", min_dim_size_to_factor)
    offset = whole_number("decay_offset", decay_offset, least=0)
    dtype = storage_dtype("dtype", dtype)
    clamped = eps_form == "clamped"
    if eps is None and not clamped:
        raise ValueError(
            'eps=None, the machine epsilon, needs eps_form="clamped": give that, or a number eps '
            "to add to the square."
        )
    declared = declare(
        decay_rate=exponent(decay_rate) if b2 is None else None,
        b2=keeping_rate.if_given(b2),
        eps=nonnegative.if_given(eps),
        max_b2=keeping_rate.if_given(max_b2),
    )

    def split_at(name: str, shape: Shape) -> Split:
        return split_of(axes, name, shape, smallest) if factored else Split()

    def splits(tree: Tree) -> Tree:
        return numerics.map_named(lambda name, x: split_at(name, x.shape), tree)

    def init(params: Tree) -> FactoredSquaresState:
        check_patterns(axes, params)
        # A box of Flax NNX would give the factors the parameter's axis names.
        params = numerics.unbox(params)

        def zeros(which: int) -> Tree:
            """Return the rows (0) or the columns (1), sharded like the parameters."""

            def leaf(split: Split, p: Any) -> jax.Array:
                like = p
                if split:
                    lacking = (split.second, split.first)[which]
                    like = jax.eval_shape(lambda x: jnp.sum(x, axis=lacking), p)
                elif which == 1:
                    like = jax.ShapeDtypeStruct((), p.dtype)
                return jnp.zeros_like(like, dtype=dtype or numerics.default_float())

            return jax.tree.map(leaf, splits(params), params)

        return FactoredSquaresState(zeros(0), zeros(1), jnp.zeros([], jnp.int32))

    def update(gradient: Tree, state: FactoredSquaresState, step: Step, first: Reading | None):
        gradient = numerics.unbox(gradient)
        for g, columns in zip(*map(jax.tree.leaves, (gradient, state.columns)), strict=False):
            if columns.ndim:
                check_uncut(g, "a factored second moment", "give factored=False")
        check_gradient(gradient, fitting(gradient, state))
        entry = gradient if first is None or first.entry is None else numerics.unbox(first.entry)
        count = increment(state.steps)
        span = span_of(count, step)
        before = span - 1.0
        floor = None if clamped else step["eps"]

        def averaged(old: jax.Array, new: jax.Array) -> jax.Array:
            if floor is not None:
                new = lax.add(new, floor)
            # The division stops XLA from computing the average again for each reader, which would
            # need a copy of the old average.
            mixed = lax.add(numerics.scaled(before, numerics.widen(old)), new)
            return numerics.cast_nonnegative(lax.div(mixed, span), old.dtype)

        def leaf(split: Split, g: jax.Array, rows: jax.Array, columns: jax.Array) -> Any:
            if not split:
                return averaged(rows, numerics.abs_square(numerics.widen(g))), columns
            # Compute the squares twice: XLA would store squares that both sums read.
            along_rows = mean_square(g, split.second)
            along_columns = mean_square(lax.optimization_barrier(g), split.first)
            return averaged(rows, along_rows), averaged(columns, along_columns)

        both = jax.tree.map(leaf, splits(entry), entry, state.rows, state.columns)
        rows, columns = (jax.tree.map(lambda g, x, i=i: x[i], entry, both) for i in (0, 1))
        return FactoredSquaresState(rows, columns, count)

    def read(state: FactoredSquaresState, gradient: Tree, step: Step) -> Reading:
        def leaf(
            split: Split, g: jax.Array, rows: jax.Array, columns: jax.Array
        ) -> tuple[jax.Array, Any]:
            rows, columns = numerics.widen(rows), numerics.widen(columns)
            least = least_root(g, step) if clamped else None
            if not split:
                return (rows if least is None else lax.max(rows, least * least)), ()
            places = split.in_rows
            number = math.prod(rows.shape[place] for place in places)
            mean = numerics.scaled(numerics.scalar(1.0 / number), lax.reduce_sum(rows, places))
            under = numerics.nonzero(mean) if least is None else lax.max(mean, least)
            row_shares = lax.div(rows, spread(under, rows.shape, places))
            second = lax.mul(
                spread(row_shares, g.shape, split.second), spread(columns, g.shape, split.first)
            )
            if least is not None:
                return lax.max(second, least * least), ()
            # With the roots of rows and columns, each element takes two multiplications, so XLA
            # does not store the matrix. A row or column without any gradient has factor 1, because
            # two inverse roots of 0 would overflow.
            row_factor = lax.div(
                spread(numerics.root(mean), rows.shape, places),
                numerics.root(numerics.nonzero(rows)),
            )
            column_root = numerics.root(numerics.nonzero(columns))
            column_factor = lax.div(lax.full_like(column_root, 1), column_root)
            return second, (
                spread(row_factor, g.shape, split.second),
                spread(column_factor, g.shape, split.first),
            )

        plain = numerics.unbox(gradient)
        both = jax.tree.map(leaf, splits(plain), plain, state.rows, state.columns)
        raw, factors = (jax.tree.map(lambda g, x, i=i: x[i], plain, both) for i in (0, 1))
        raw, factors = (numerics.boxed_as(gradient, tree) for tree in (raw, factors))
        return Reading(raw, inverse_root=factors)

    def span_of(count: jax.Array, step: Step) -> jax.Array:
        """Return the effective window of the average, 1 / (1 - b_t) steps."""
        counted = lax.max(count - jnp.asarray(offset, count.dtype), jnp.ones_like(count))
        counted = numerics.scalar(counted)
        if b2 is None:
            span = lax.pow(counted, step["decay_rate"])
        else:
            share = 1.0 - step["b2"]
            span = -jnp.expm1(counted * jnp.log1p(-share)) / share
        return span if max_b2 is None else lax.min(span, 1.0 / (1.0 - step["max_b2"]))

    def least_root(g: jax.Array, step: Step) -> jax.Array:
        return numerics.scalar(jnp.finfo(g.dtype).eps) if eps is None else step["eps"]

    def fitting(gradient: Tree, state: FactoredSquaresState) -> Tree:
        """Return the shapes of the parameters given to ``init``, inferred from the factors."""

        def leaf(name: str, g: jax.Array, rows: jax.Array, columns: jax.Array) -> Any:
            have = (rows.shape, columns.shape)
            candidates = [
                g.shape,  # first, since two shapes may have the same factors
                rows.shape,
                *(
                    (*rows.shape[:i], n, *rows.shape[i:])
                    for i in range(rows.ndim + 1)
                    for n in columns.shape
                ),
            ]
            for shape in candidates:
                if len(shape) == g.ndim and split_at(name, shape).shapes(shape) == have:
                    return jax.ShapeDtypeStruct(shape, rows.dtype)
            raise ValueError(
                f"the state has factors of shapes {have} for {name!r}, which do not fit its "
                f"gradient of shape {g.shape}: keep min_dim_size_to_factor, axes and factored "
                "as they were, or start with tx.init(params)."
            )

        if jax.tree.structure(gradient) != jax.tree.structure(state.rows):
            return state.rows
        return numerics.map_named(leaf, gradient, state.rows, state.columns)

    return Part("factored_squares", declared, init, update, read, kind=FactoredSquaresState)


def mean_square(g: jax.Array, axes: Shape) -> jax.Array:
    """Return the mean of |g|^2 over ``axes``."""
    total = lax.reduce_sum(numerics.abs_square(numerics.widen(g)), axes)
    return numerics.scaled(numerics.scalar(1.0 / math.prod(g.shape[axis] for axis in axes)), total)


def spread(x: jax.Array, shape: Shape, missing: Shape) -> jax.Array:
    """Repeat ``x`` along the axes that it lacks."""
    kept = tuple(axis for axis in range(len(shape)) if axis not in missing)
    return lax.broadcast_in_dim(x, shape, kept)
