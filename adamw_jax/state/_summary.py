"""``summary``: list the stages of a recipe, the size of their state, and what each leaf gets.

>>> import jax.numpy as jnp
>>> from adamw_jax import ema, estimate_moments, no_moment, compose, precondition
>>> sgd = compose(estimate_moments(ema(0.9), no_moment()), precondition(None))
>>> print(summary(sgd, {"w": jnp.zeros((64, 64))}))
stage                      kinds                 hyperparameters  state                 bytes/param
-------------------------  --------------------  ---------------  --------------------  -----------
estimate_moments           gradient -> moments   b1=0.9           float32               4.00
precondition               moments -> direction                                         0.00
sum over 4,096 parameters                                         bool, float32, int32  4.00
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from adamw_jax._core import masks
from adamw_jax._core.compose import Composed
from adamw_jax._core.foreign import name_of
from adamw_jax._core.numerics import as_arrays, named_leaves
from adamw_jax._core.stage import RULE, transformation
from adamw_jax._core.wrapper import Wrapper

GROUPS = ("leaves", "parameters")
HEADER = ("stage", "kinds", "hyperparameters", "state", "bytes/param")


def summary(tx: optax.GradientTransformation, params: Any) -> str:
    """Make tables of the stages of a recipe and their state, and of what each leaf gets.

    Args:
      tx: a recipe of this library, also in ``skip_bad_steps`` and the like; any other
        transformation gives one row for its whole state.
      params: parameters, or their ``jax.ShapeDtypeStruct`` objects. No memory is allocated.

    Returns:
      Plain text. The first table has a line per stage, with dtypes and bytes of state per
      parameter, and one for the sum. Scalars (counters, hyperparameters, scalars of bias
      correction) are counted in the sum only. The second table, for a recipe that can treat leaves
      differently, has a line for all leaves that get the same: rule and multipliers, decay,
      freezing, trust ratio.

    Example:
      >>> import jax.numpy as jnp, adamw_jax as aj
      >>> params = {"kernel": jnp.ones((128, 64))}
      >>> text = aj.summary(aj.adamw(1e-3, storage="bfloat16"), params)
      >>> [line.split()[-1] for line in text.splitlines() if line.startswith("sum over")]
      ['4.01']
    """
    tx = transformation(tx, "tx")
    shapes = jax.eval_shape(lambda p: p, as_arrays(params))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    state = whole = jax.eval_shape(tx.init, shapes)
    rows = []
    while isinstance(tx, Wrapper):
        own = state._replace(inner=None)
        rows.append((tx.declaration.name, "around all", "", *_cost(own, size)))
        tx, state = tx.inner, state.inner
    if isinstance(tx, Composed):
        for spec in tx.specs:
            shown = ", ".join(map(str, spec.hyperparams.values()))
            memory = state.stages.get(spec.name)
            rows.append((spec.name, spec.kinds, shown, *_cost(memory, size)))
    else:
        rows.append((name_of(tx), "", "", *_cost(state, size)))
    rows.append((f"sum over {size:,} parameters", "", "", *_cost(whole, size, scalars=True)))
    groups = _groups(tx, shapes) if isinstance(tx, Composed) else []
    return "\n\n".join(_table(table) for table in ([HEADER, *rows], groups) if table)


def _groups(tx: Composed, params: Any) -> list[tuple[str, ...]]:
    """Return the table of what each leaf gets; empty if no stage treats leaves differently."""
    columns: dict[str, Any] = {}
    for spec in tx.specs:
        columns |= {} if spec.settings is None else spec.settings(params)
    if tx.frozen is not None:
        frozen = masks.resolve(tx.frozen, params, "frozen")
        columns = {
            column: words if column == RULE else _unless(frozen, words)
            for column, words in columns.items()
        }
        columns["frozen"] = jax.tree.map(lambda out: "yes" if out else "no", frozen)
    if not columns:
        return []
    words = [jax.tree.leaves(tree) for tree in columns.values()]
    alike: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for (name, leaf), *got in zip(named_leaves(params), *words, strict=True):
        alike.setdefault(tuple(got), []).append((name, leaf.size))
    rows = [
        (_names([name for name, _ in found]), f"{sum(size for _, size in found):,}", *got)
        for got, found in alike.items()
    ]
    return [(*GROUPS, *columns), *rows]


def _unless(frozen: Any, words: Any) -> Any:
    return jax.tree.map(lambda out, word: "" if out else word, frozen, words)


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _cost(memory: Any, size: int, scalars: bool = False) -> tuple[str, str]:
    leaves = [leaf for leaf in jax.tree.leaves(memory) if scalars or leaf.ndim > 0]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    dtypes = sorted({str(leaf.dtype) for leaf in leaves})
    return ", ".join(dtypes), f"{total / max(size, 1):.2f}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
