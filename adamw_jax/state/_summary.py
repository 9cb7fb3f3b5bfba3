"""``summary``: list the stages of a recipe and the size of their state.

>>> import jax.numpy as jnp
>>> from adamw_jax import ema, estimate_moments, no_moment, compose, precondition
>>> sgd = compose(estimate_moments(ema(0.9), no_moment()), precondition(None))
>>> print(summary(sgd, {"w": jnp.zeros((64, 64))}))
stage                      kinds                 hyperparameters  state                 bytes/param
-------------------------  --------------------  ---------------  --------------------  -----------
estimate_moments           gradient -> moments   b1=0.9           float32               4.00
precondition               moments -> direction                                         0.00
sum over 4,096 parameters                                         bool, float32, int32  4.01
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from adamw_jax._core.compose import Composed
from adamw_jax._core.numerics import as_arrays
from adamw_jax._core.stage import transformation

HEADER = ("stage", "kinds", "hyperparameters", "state", "bytes/param")


def summary(tx: optax.GradientTransformation, params: Any) -> str:
    """Make a table of the stages of a recipe, with dtypes and bytes of state per parameter.

    Args:
      tx: a recipe of this library; any other transformation gives one row for its whole state.
      params: parameters, or their ``jax.ShapeDtypeStruct``s. No memory is allocated.

    Returns:
      Plain text, a line per stage and one for the sum. Scalars (counters, hyperparameters, scalars
      of bias correction) are counted in the sum only.
    """
    tx = transformation(tx, "tx")
    shapes = jax.eval_shape(lambda p: p, as_arrays(params))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    state = jax.eval_shape(tx.init, shapes)
    rows = []
    if isinstance(tx, Composed):
        for spec in tx.specs:
            shown = ", ".join(map(str, spec.hyperparams.values()))
            memory = state.stages.get(spec.name)
            rows.append((spec.name, spec.kinds, shown, *_cost(memory, size)))
    else:
        rows.append((type(tx).__name__, "", "", *_cost(state, size)))
    rows.append((f"sum over {size:,} parameters", "", "", *_cost(state, size, scalars=True)))
    return _table([HEADER, *rows])


def _cost(memory: Any, size: int, scalars: bool = False) -> tuple[str, str]:
    leaves = [leaf for leaf in jax.tree.leaves(memory) if scalars or leaf.ndim > 0]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    dtypes = sorted({str(leaf.dtype) for leaf in leaves})
    return ", ".join(dtypes), f"{total / max(size, 1):.2f}"


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])
