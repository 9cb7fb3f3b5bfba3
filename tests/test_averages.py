"""Averages of weights: of mapped states, in boxes, and how an exponential one starts."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import adamw_jax as aj
from adamw_jax.averaging.iterates import KINDS
from tests.catalogue import assert_close

WINDOW = 5
AVERAGES: dict[str, Any] = {
    **{
        kind: lambda kind=kind: aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 1, kind))
        for kind in KINDS
    },
    "debiased ema": lambda: aj.compose(
        aj.sgdw(0.1), aj.average_iterates(1, 2, "ema", debias=True, warm_up=True)
    ),
    "last, now and then": lambda: aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 3, "last")),
    "lookahead": lambda: aj.compose(aj.sgdw(0.1), aj.lookahead()),
    "lookahead around": lambda: aj.lookahead(optax.sgd(0.1), inner_state="reset"),
    "gadam": lambda: aj.gadam(0.1, kind="last"),
}
MAPPED = {
    "vmap, as many as the window": (jax.vmap, (WINDOW,)),
    "vmap": (jax.vmap, (3,)),
    "vmap, nested, as many": (lambda f: jax.vmap(jax.vmap(f)), (WINDOW, WINDOW)),
    "pmap, as many as the window": (jax.pmap, (WINDOW,)),
    "pmap of vmap": (lambda f: jax.pmap(jax.vmap(f)), (2, WINDOW)),
}


@pytest.mark.parametrize(
    "mapped",
    [pytest.param(x, marks=pytest.mark.devices if "pmap" in x else ()) for x in MAPPED],
)
@pytest.mark.parametrize("name", AVERAGES)
def test_weights_of_a_mapped_state_are_those_of_its_members(name: str, mapped: str) -> None:
    tx, (over, shape) = AVERAGES[name](), MAPPED[mapped]
    matrix = jnp.arange(WINDOW * math.prod(shape), dtype=jnp.float32).reshape(*shape, 1, WINDOW)
    params = {"w": matrix, "s": matrix[..., 0, 0], "b": matrix.astype(jnp.bfloat16)}

    def trajectory(params: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry
            updates, state = tx.update(jax.tree.map(jnp.sin, params), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state, aj.eval_params(state, params))

        return jax.lax.scan(step, (params, tx.init(params)), None, 8)[1]

    params, state, expected = jax.device_get(over(trajectory)(params))
    for t in (0, 3, 7):
        now, after, members = jax.tree.map(
            lambda x, t=t: jnp.take(x, t, len(shape)), (params, state, expected)
        )
        got = aj.eval_params(after, now)
        assert_close(got.pop("b"), members.pop("b"), rtol=0.01)  # a bit of bfloat16
        assert_close(got, members)
