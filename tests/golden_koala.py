"""Rows of the golden table for KOALA, from the authors' code.

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
from adamw_jax.optimizers import koala_m, koala_v
from tests.golden_cases import Case
from tests.golden_rows import Name, Recorded, Row, labels, same


def evaluated(make: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer whose steps are those of its evaluated parameters, with recorded losses."""

    def build(loss: Any, mean_square: Any = None, **options: Any) -> optax.GradientTransformation:
        tx = make(**options)

        def init(params: Any) -> Any:
            return tx.init(params), params

        def update(gradient: Any, state: Any, _: Any = None) -> Any:
            inner, held = state
            extra = {"value": loss(inner.count)}
            if mean_square is not None:
                extra["value_sq_mean"] = mean_square(inner.count)
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


SCALAR: dict[str, Name] = {
    **labels("_seed", "lr"),
    **same("r", "alpha_r", "weight_decay"),
}
V: dict[str, Name] = {**SCALAR, **same("sigma", "q")}
M: dict[str, Name] = {**SCALAR, "a": "kappa", **same("sw", "sc", "sv", "qw", "qv")}


def scheduled(case: Case) -> np.ndarray:
    """The learning rate at each step, or one for all."""
    return case.arrays.get("lr", np.full(case.steps, case.hyperparameters["lr"]))


def koala(make: Callable[..., Any], names: dict[str, Name], **defaults: Any) -> Row:
    recorded: dict[str, Recorded] = {
        "learning_rate": scheduled,
        "loss": "loss",
        "mean_square": "loss_var",
    }
    return Row(evaluated(make), names, {}, {"lr": 1.0, **defaults}, recorded)


ROWS: dict[tuple[str, str], list[Row]] = {
    # The class of the authors starts at 1, where ours does as their training script.
    ("KOALA-V", ""): [koala(koala_v, V, sigma=1.0)],
    ("KOALA-M", ""): [koala(koala_m, M)],
}
