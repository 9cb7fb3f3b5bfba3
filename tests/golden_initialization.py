"""The golden cases of GradInit: recorded results, compared through the public functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.initialization import GradInit, first_step, gradient_norm
from tests.golden_cases import Case, assert_arrays

BRANCHES = (
    ("objective", math.inf, True),
    ("objective", math.inf, False),
    ("constraint", 0.0, False),
)
"""Which quantity is lowered, the gamma that brings it about, whether through the inner step."""


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy of a tanh network with one hidden layer."""
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
    logits = hidden @ params["w2"] + params["b2"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def params_of(case: Case) -> dict[str, jax.Array]:
    return {
        name: jnp.asarray(case.arrays[f"in__{name}"]) for name in case.entry["meta"]["block_order"]
    }


def search_of(case: Case, **changed: Any) -> GradInit:
    given = {name[4:]: case.arrays[name] for name in case.arrays if name.startswith("in__")}
    settings = {
        name: float(given[name])
        for name in ("eta", "gamma", "scale_lr", "grad_clip")
        if name in given
    }
    if "betas" in given:
        settings["betas"] = tuple(given["betas"].tolist())
    if "min_scale_weight" in given:
        settings["min_scale"] = float(given["min_scale_weight"])
    meta = case.entry["meta"]
    return GradInit(
        loss_fn,
        **settings
        | {
            "algorithm": meta["algorithm"],
            "normalize": meta["normalize_gradient"],
            "shared_second_moment": "separate" not in meta.get("second_moment", ""),
            "is_bias": ("b1", "b2"),
        }
        | changed,
    )


def in_order(case: Case, search: GradInit, by_block: Any) -> np.ndarray:
    """Values per block in the order of the recorded ones."""
    names = search.blocks(params_of(case)).names
    return np.asarray(by_block)[
        ..., [names.index(name) for name in case.entry["meta"]["block_order"]]
    ]


def together(case: Case, *halves: int) -> tuple[jax.Array, jax.Array]:
    """Recorded half batches, one after the other."""
    return tuple(
        jnp.concatenate([jnp.asarray(case.arrays[f"in__{kind}_half{i}"]) for i in halves])
        for kind in "xy"
    )


def check_first(case: Case) -> None:
    """Every quantity of the first step, in both branches."""
    params, pair = params_of(case), (together(case, 0, 1), together(case, 0, 2))
    got: dict[str, Any] = {}
    eta, meta = float(case.arrays["in__eta"]), case.entry["meta"]
    for branch, gamma, full in BRANCHES:
        search = search_of(case, gamma=gamma, differentiate_inner=full)
        state, record = jax.jit(search.step)(params, search.init(params), pair)
        slope = in_order(case, search, record.slope)
        if branch == "objective":
            got["loss_after_step"] = record.lowered
            got[f"dscale_loss_after_step_{'full' if full else 'stopgrad'}"] = eta * slope
        else:
            got["dscale_gradient_norm"] = slope
        got["loss_S"], got["gradient_norm"] = record.loss, record.gradient_norm
        got[f"scales_after_{branch}_step"] = in_order(case, search, state.scales)
    gradient = jax.grad(loss_fn)(params, pair[0])
    step = first_step(gradient, meta["algorithm"], meta["normalize_gradient"])
    for name in params:
        got[f"grad_{name}"] = gradient[name]
        got[f"updated_{name}"] = params[name] - eta * step[name]
    np.testing.assert_allclose(gradient_norm(gradient, meta["algorithm"]), got["gradient_norm"])
    recorded = {name[5:] for name in case.arrays if name.startswith("out__")}
    measured = {name for name in recorded if name.endswith("_fd")}
    assert set(got) == recorded - measured
    assert_arrays(case, {f"out__{name}": value for name, value in got.items()})
    for name in measured:  # by finite differences
        atol = case.entry["tolerance"]["atol_fd"]
        np.testing.assert_allclose(got[name[:-3]], case.arrays[f"out__{name}"], atol=atol, rtol=0)


def check_trajectory(case: Case) -> None:
    """Branches, norms, losses, slopes and scales of every step."""
    search, params = search_of(case), params_of(case)
    step, state, records, used = jax.jit(search.step), search.init(params), [], 0
    x, y = (jnp.asarray(case.arrays[f"in__{kind}_pool"]) for kind in "xy")

    def halves(*numbers: int) -> tuple[jax.Array, jax.Array]:
        return tuple(jnp.concatenate([pool[i % len(x)] for i in numbers]) for pool in (x, y))

    for _ in range(int(case.arrays["in__iterations"])):
        pair = halves(used, used + 1), halves(used, used + 2)
        state, record = step(params, state, pair)
        records.append(record)
        used += 2 if record.constrained else 3  # a step on the norm takes no batch to test on
    history = jax.tree.map(lambda *values: np.stack(values), *records)
    got = {
        "branch": history.constrained,
        "gradient_norm": history.gradient_norm,
        "loss_S": history.loss,
        "loss_after_step": np.where(history.constrained, np.nan, history.lowered),
        "scale_gradient": in_order(case, search, history.slope),
        "scales": in_order(case, search, history.scales),
    }
    assert {f"out__{name}" for name in got} == {n for n in case.arrays if n.startswith("out__")}
    assert_arrays(case, {f"out__{name}": value for name, value in got.items()})


CHECKS: dict[str, Callable[[Case], None]] = {
    "gradinit_first": check_first,
    "gradinit_trajectory": check_trajectory,
}
