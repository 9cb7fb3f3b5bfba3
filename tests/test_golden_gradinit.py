"""The golden replay of GradInit on networks of any depth, with other settings than the recorded."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.golden_cases import Case, discover
from tests.test_golden import check

pytestmark = pytest.mark.quick

Arrays = dict[str, Any]


def cross_entropy(weights: Arrays, scales: Any, batch: Any) -> jax.Array:
    """The loss of a tanh network whose parameters, in the order of their blocks, are scaled."""
    x, y = batch
    scaled = {name: w * s for (name, w), s in zip(weights.items(), scales, strict=True)}
    depth = max(int(name[1:]) for name in scaled)
    for i in range(1, depth + 1):
        x = x @ scaled[f"w{i}"] + (scaled[f"b{i}"][None] if f"b{i}" in scaled else 0.0)
        x = jnp.tanh(x) if i < depth else x
    logits = x - jax.nn.logsumexp(x, axis=1, keepdims=True)
    return -jnp.mean(logits[jnp.arange(len(y)), y])


def searched(
    given: Arrays, weights: Arrays, algorithm: str, normalize: bool, shared: bool
) -> Arrays:
    """The published search, step by step."""
    names, eta = list(weights), given["eta"]
    ones, (b1, b2) = jnp.ones(len(names)), given["betas"]
    least = [given["min_scale_weight" if name[0] == "w" else "min_scale_bias"] for name in names]
    m, v = np.zeros((2, len(names))), np.zeros((2, len(names)))
    taken, squares, scales, used, rows = [0, 0], [0, 0], np.ones(len(names)), 0, []

    def slope_of(scales: Any, batch: Any) -> Any:
        scaled = {name: w * s for (name, w), s in zip(weights.items(), scales, strict=True)}
        return jax.grad(cross_entropy)(scaled, ones, batch)

    def norm(scales: Any, batch: Any) -> Any:
        flat = jnp.concatenate([g.ravel() for g in slope_of(scales, batch).values()])
        return jnp.sum(jnp.abs(flat)) if algorithm == "adam" else jnp.sqrt(jnp.sum(flat**2))

    def after(scales: Any, step: Any, batch: Any) -> Any:
        moved = {
            k: w * s - eta * step[k] for (k, w), s in zip(weights.items(), scales, strict=True)
        }
        return cross_entropy(moved, ones, batch)

    def halves(*numbers: int) -> Any:
        pools = given["x_pool"], given["y_pool"]
        return tuple(np.concatenate([pool[i % len(pool)] for i in numbers]) for pool in pools)

    for _ in range(given["iterations"]):
        batch = halves(used, used + 1)
        size, loss = float(norm(scales, batch)), float(cross_entropy(weights, scales, batch))
        branch = int(size > given["gamma"])
        if branch:
            lowered, slope = np.nan, jax.grad(norm)(scales, batch)
        else:
            g = slope_of(scales, batch)
            over = float(norm(scales, batch)) if normalize else 1.0
            step = {k: jnp.sign(x) if algorithm == "adam" else x / over for k, x in g.items()}
            lowered, slope = jax.value_and_grad(after)(scales, step, halves(used, used + 2))
            slope = slope / eta
        used += 2 if branch else 3
        clipped = np.clip(slope, -given["grad_clip"], given["grad_clip"])
        kind = 0 if shared else branch
        m[branch] = b1 * m[branch] + (1 - b1) * clipped
        v[kind] = b2 * v[kind] + (1 - b2) * clipped**2
        taken[branch] += 1
        squares[kind] += 1
        first, second = m[branch] / (1 - b1 ** taken[branch]), v[kind] / (1 - b2 ** squares[kind])
        scales = np.maximum(scales - given["scale_lr"] * first / (np.sqrt(second) + 1e-8), least)
        rows.append((branch, size, loss, lowered, np.asarray(slope), scales))
    kinds = ("branch", "gradient_norm", "loss_S", "loss_after_step", "scale_gradient", "scales")
    return {f"out__{k}": np.stack(x) for k, x in zip(kinds, zip(*rows, strict=True), strict=True)}


SETTINGS = {"eta": 0.05, "scale_lr": 0.1, "betas": [0.8, 0.95], "grad_clip": 0.7, "iterations": 9}
BOUNDS = {"min_scale_weight": 0.3, "min_scale_bias": 0.6}


def recorded(folder: Path, sizes: list[int], biased: set[int], **told: Any) -> Case:
    """A set with one search on a network of these sizes, with biases in some layers."""
    rng, weights = np.random.default_rng(3), {}
    for i, shape in enumerate(itertools.pairwise(sizes), 1):
        weights[f"w{i}"] = rng.normal(size=shape)
        if i in biased:
            weights[f"b{i}"] = 0.1 * rng.normal(size=shape[1])
    given = {"gamma": told.pop("gamma"), **SETTINGS, **BOUNDS}
    given["x_pool"] = rng.normal(size=(7, 6, sizes[0]))
    given["y_pool"] = rng.integers(sizes[-1], size=(7, 6))
    meta = {"algorithm": told["algorithm"], "normalize_gradient": told["normalize"]}
    meta |= {} if told["shared"] else {"second_moment": "separate accumulators per branch"}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        arrays = searched(given, weights, **told)
    arrays |= {f"in__{name}": np.asarray(value) for name, value in (given | weights).items()}
    np.savez(folder / "case.npz", **arrays)
    entry = {"id": "case", "system": "gradinit_trajectory", "file": "case.npz", "meta": meta}
    entry["tolerance"] = {"rtol_f64": 1e-8, "atol_f64": 1e-10}
    (folder / "manifest.json").write_text(json.dumps({"cases": [entry]}))
    (case,) = discover(folder)
    return case


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "biased", "told"),
    [
        pytest.param(
            [4, 3],
            {1},
            {"algorithm": "sgd", "normalize": True, "shared": True, "gamma": 0.8},
            marks=pytest.mark.slow,
        ),
        (
            [4, 5, 6, 3],
            {1, 3},
            {"algorithm": "sgd", "normalize": False, "shared": False, "gamma": 1.4},
        ),
        pytest.param(
            [3, 4, 4, 4, 2],
            set(),
            {"algorithm": "adam", "normalize": True, "shared": True, "gamma": 2.0},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_networks_of_any_depth(tmp_path: Path, sizes: Any, biased: Any, told: Any) -> None:
    case = recorded(tmp_path, sizes, biased, **told)
    assert 0 < case.arrays["out__branch"].mean() < 1, case.arrays["out__gradient_norm"]
    check(case)
    arrays = dict(case.arrays)
    for name in ("in__iterations", "out__loss_after_step", "out__scale_gradient"):
        del arrays[name]  # which a file may lack
    np.savez(tmp_path / "case.npz", **arrays)
    (other,) = discover(tmp_path)
    check(other)


def test_an_unknown_setting_fails(tmp_path: Path) -> None:
    case = recorded(tmp_path, [4, 3], {1}, algorithm="sgd", normalize=True, shared=True, gamma=1.2)
    for name in ("in__warp", "out__warp"):
        np.savez(tmp_path / "case.npz", **case.arrays, **{name: np.ones(9)})
        (other,) = discover(tmp_path)
        with pytest.raises(AssertionError, match="warp"):
            check(other)
