"""Rows of the golden table for KOALA: set b, the authors' code.

The recorded parameters of KOALA-M are those after a measurement; ours are the predicted ones, and
``eval_params`` gives the recorded. So the rows replay an optimizer by what ``eval_params`` makes
of its steps, and give it the recorded losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import eval_params
from adamw_jax.optimizers.koala import koala_m, koala_v
from tests.golden_cases import Case
from tests.golden_rows import Name, Options, Row, per_step


def evaluated(make: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer whose steps are those of its evaluated parameters, with recorded losses."""

    def build(loss: Any, mean_square: Any, **options: Any) -> optax.GradientTransformation:
        tx = make(**options)

        def init(params: Any) -> Any:
            return tx.init(params), params

        def update(gradient: Any, state: Any, _: Any = None) -> Any:
            inner, held = state
            extra = {"value": loss(inner.count), "value_sq_mean": mean_square(inner.count)}
            updates, after = tx.update(gradient, inner, held, **extra)
            moved = jax.tree.map(
                lambda u, new, old: u + (new - old),
                updates,
                offset(after, held),
                offset(inner, held),
            )
            return moved, (after, optax.apply_updates(held, updates))

        def offset(state: Any, like: Any) -> Any:
            # Small numbers: in float32 their difference is exact where that of the parameters is
            # rounded once more.
            return eval_params(state, jax.tree.map(jnp.zeros_like, like))

        return optax.GradientTransformation(init, update)

    return build


def losses(seed: int, case: Case) -> Options:
    """The recorded losses; the seed is a label."""
    del seed
    loss, mean_square = (np.asarray(case.arrays[name]) for name in ("loss", "loss_var"))
    return {"loss": per_step(loss), "mean_square": per_step(mean_square)}


V: dict[str, Name] = {
    "_seed": losses,
    **{name: name for name in ("sigma", "q", "r", "weight_decay")},
}
M: dict[str, Name] = {
    "_seed": losses,
    "a": "kappa",
    **{name: name for name in ("sw", "sc", "sv", "qw", "qv", "r", "weight_decay")},
}
CLASS_DEFAULT = {"sigma": 1.0}
"""The class of the authors, where ours is that of their training script."""
SCHEDULED = {"learning_rate": "lr"}

ROWS: dict[tuple[str, str], list[Row]] = {
    ("KOALA-V", ""): [
        Row(evaluated(koala_v), V, CLASS_DEFAULT, SCHEDULED, says="lr factor"),
        Row(evaluated(koala_v), V, CLASS_DEFAULT),
    ],
    ("KOALA-M", ""): [
        Row(evaluated(koala_m), M, {}, SCHEDULED, says="lr factor"),
        Row(evaluated(koala_m), M),
    ],
}
