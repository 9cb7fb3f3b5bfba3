"""The golden cases of GradInit: recorded results, compared through the public functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax.initialization import GradInit, first_step, gradient_norm
from tests.golden_cases import Case, assert_recorded

BRANCHES = (
    ("objective", math.inf, True),
    ("objective", math.inf, False),
    ("constraint", 0.0, False),
)
"""Which quantity is lowered, the gamma that brings it about, whether through the inner step."""


SETTINGS = {
    **{name: name for name in ("eta", "gamma", "scale_lr", "grad_clip", "betas", "max_scale")},
    "min_scale_weight": "min_scale",
    "min_scale_bias": "min_bias_scale",
}
"""Recorded inputs -> arguments of the search."""
META = {"algorithm": "algorithm", "normalize_gradient": "normalize"}
DATA = re.compile(r"(x|y)_(half\d|pool)|iterations")


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Mean cross-entropy of a tanh network of any depth, with biases or without."""
    outputs, y = batch
    depth = sum(name.startswith("w") for name in params)
    for layer in range(1, depth + 1):
        outputs = outputs @ params[f"w{layer}"]
        if f"b{layer}" in params:
            outputs = outputs + params[f"b{layer}"][None]
        outputs = outputs if layer == depth else jnp.tanh(outputs)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()


def blocks_of(case: Case) -> list[str]:
    """The parameters in the recorded order: w1, b1, w2, b2, ..."""
    given = (re.fullmatch(r"in__([wb]\d+)", name) for name in case.arrays)
    return case.entry["meta"].get("block_order") or [found[1] for found in given if found]


def params_of(case: Case) -> dict[str, jax.Array]:
    return {name: jnp.asarray(case.arrays[f"in__{name}"]) for name in blocks_of(case)}


def search_of(case: Case, **changed: Any) -> GradInit:
    meta, settings = case.entry["meta"], {}
    for name, array in case.arrays.items():
        key = name.removeprefix("in__")
        if key == name or key in blocks_of(case) or DATA.fullmatch(key):
            continue
        assert key in SETTINGS, f"{case.label}: no argument for the input {key!r}"
        settings[SETTINGS[key]] = array.tolist() if array.ndim == 0 else tuple(array.tolist())
    settings |= {argument: meta[key] for key, argument in META.items() if key in meta}
    return GradInit(
        loss_fn,
        **settings
        | {
            "shared_second_moment": "separate" not in meta.get("second_moment", ""),
            "is_bias": {name: name.startswith("b") for name in blocks_of(case)},
        }
        | changed,
    )


def in_order(case: Case, search: GradInit, by_block: Any) -> np.ndarray:
    """Values per block in the order of the recorded ones."""
    names = search.blocks(params_of(case)).names
    return np.asarray(by_block)[..., [names.index(name) for name in blocks_of(case)]]


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
    eta = float(case.arrays["in__eta"])
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
    step = first_step(gradient, search.algorithm, search.normalize)
    for name in params:
        got[f"grad_{name}"] = gradient[name]
        got[f"updated_{name}"] = params[name] - eta * step[name]
    np.testing.assert_allclose(gradient_norm(gradient, search.algorithm), got["gradient_norm"])
    measured = {name for name in case.arrays if name.endswith("_fd")}
    assert_recorded(case, got, *measured)
    for name in measured:  # by finite differences
        atol = case.entry["tolerance"]["atol_fd"]
        np.testing.assert_allclose(got[name[5:-3]], case.arrays[name], atol=atol, rtol=0)


def iterations_of(case: Case) -> int:
    """As told, or as many as are recorded."""
    recorded = (len(array) for name, array in case.arrays.items() if name.startswith("out__"))
    return int(case.arrays.get("in__iterations", max(recorded)))


def check_trajectory(case: Case) -> None:
    """Branches, norms, losses, slopes and scales of every step."""
    search, params = search_of(case), params_of(case)
    step, state, records, used = jax.jit(search.step), search.init(params), [], 0
    x, y = (jnp.asarray(case.arrays[f"in__{kind}_pool"]) for kind in "xy")

    def halves(*numbers: int) -> tuple[jax.Array, jax.Array]:
        return tuple(jnp.concatenate([pool[i % len(x)] for i in numbers]) for pool in (x, y))

    for _ in range(iterations_of(case)):
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
    assert_recorded(case, got)


CHECKS: dict[str, Callable[[Case], None]] = {
    "gradinit_first": check_first,
    "gradinit_trajectory": check_trajectory,
}
