"""``gradinit`` over a stream of batches: what it reads, tells, returns and refuses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.initialization import GradInit, GradInitRecord, gradinit, overlapping_pair

pytestmark = [pytest.mark.slow, pytest.mark.quick]

SETTINGS: dict[str, Any] = {"eta": 0.1, "gamma": 1.0, "scale_lr": 0.05}


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Least squares through two layers."""
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["w1"]) @ params["w2"] - y) ** 2)


def params_of(scale: float = 3.0) -> Any:
    rng = np.random.default_rng(0)
    return {
        "w1": jnp.asarray(scale * rng.normal(size=(4, 8)), jnp.float32),
        "w2": jnp.asarray(scale * rng.normal(size=(8, 1)), jnp.float32),
    }


def pairs(seed: int = 1) -> Any:
    """Pairs without end."""
    rng = np.random.default_rng(seed)
    while True:
        x = rng.normal(size=(12, 4)).astype(np.float32)
        yield overlapping_pair((x, x.sum(1, keepdims=True)))


def test_the_norm_falls_below_gamma_and_training_gains() -> None:
    """From a bad scale the constraint is met, and the first steps of SGD lower the loss."""
    params = params_of()
    new, info = gradinit(params, loss_fn, pairs(), num_steps=150, **SETTINGS)
    history = info.history
    assert history.gradient_norm[0] > 5
    assert np.median(history.gradient_norm[-20:]) < 1.2
    assert history.constrained[0]
    assert not history.constrained.all()
    batch, _ = next(pairs(seed=2))
    assert loss_fn(new, batch) < 0.3 * loss_fn(params, batch)
    for name, leaf in params.items():
        np.testing.assert_allclose(new[name], info.scales[name] * leaf, rtol=1e-6)
    index = {name: i for i, name in enumerate(info.blocks)}
    assert all(info.scales[name] == history.scales[-1, i] for name, i in index.items())


def test_a_stream_is_read_lazily_traced_once_and_reported() -> None:
    traces, read, told = [], [], []

    def traced(params: Any, batch: Any) -> jax.Array:
        traces.append(batch)
        return loss_fn(params, batch)

    def stream() -> Any:
        for i, pair in enumerate(pairs()):
            read.append((i, len(told)))
            yield pair

    def progress(done: int, record: GradInitRecord) -> None:
        told.append((done, float(record.loss), len(traces)))

    _, info = gradinit(params_of(), traced, stream(), num_steps=5, progress=progress, **SETTINGS)
    assert {seen for *_, seen in told} == {len(traces)}
    assert info.history.slope.shape == (5, 2)
    assert all(isinstance(x, np.ndarray) for x in info.history)
    assert read == [(i, i) for i in range(5)]
    assert [done for done, *_ in told] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([loss for _, loss, _ in told], info.history.loss)


def test_pairs_share_half_of_their_examples() -> None:
    one, other = overlapping_pair({"x": np.arange(20).reshape(10, 2), "y": np.arange(10)})
    np.testing.assert_array_equal(one["y"], np.arange(6))
    np.testing.assert_array_equal(other["y"], np.arange(3, 9))
    assert one["x"].shape == other["x"].shape == (6, 2)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"algorithm": "rmsprop"}, ValueError, r"algorithm must be one of .* got 'rmsprop'"),
        ({"eta": 0.0}, ValueError, r"eta must be a number > 0, got 0\.0"),
        ({"gamma": -1.0}, ValueError, r"gamma must be a number >= 0, got -1\.0"),
        ({"gamma": math.nan}, ValueError, "gamma must be a number >= 0, got nan"),
        ({"scale_lr": "fast"}, ValueError, "scale_lr must be a number >= 0, got 'fast'"),
        ({"min_scale": 1.5}, ValueError, r"min_scale must be a number >= 0 and <= 1, got 1\.5"),
        ({"min_bias_scale": -0.1}, ValueError, r"min_bias_scale must be .* got -0\.1"),
        ({"max_scale": 0.5}, ValueError, r"max_scale must be a number >= 1, got 0\.5"),
        ({"grad_clip": 0}, ValueError, "grad_clip must be a number > 0, got 0"),
        ({"betas": 0.9}, ValueError, r"betas must be a pair of numbers, got 0\.9"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be a number >= 0 and < 1, got 1\.0"),
        ({"normalize": 1}, ValueError, "normalize must be True or False, got 1"),
        ({"block_fn": lambda name, leaf: None}, ValueError, "no parameter has a scale"),
        ({"block_fn": lambda name, leaf: []}, TypeError, r"hashable key or None, got \[\] for"),
        ({"is_bias": "bais"}, ValueError, "is_bias has the pattern 'bais'"),
        ({"num_steps": 0}, ValueError, "num_steps must be a whole number .* got 0"),
        ({"warp": 9}, TypeError, "warp"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings(changed: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        gradinit(params_of(), loss_fn, pairs(), **{**SETTINGS, "num_steps": 1, **changed})


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "ran out after 0 of 3 pairs"),
        (itertools.islice(pairs(), 2), ValueError, "ran out after 2 of 3 pairs.*itertools.cycle"),
        ([np.zeros((2, 4))], TypeError, r"pairs \(S, S~\), got ndarray.*overlapping_pair"),
        ([(1, 2, 3)], TypeError, "pairs"),
    ],
    ids=["none", "few", "array", "three"],
)
def test_bad_batches(batches: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        gradinit(params_of(), loss_fn, batches, num_steps=3, **SETTINGS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda params, batch: jnp.sum(params["w1"], axis=0),
        lambda params, batch: (jnp.sum(params["w1"]), {"accuracy": jnp.ones([])}),
        lambda params, batch: jnp.sum(params["w1"]).astype(jnp.int32),
        lambda params, batch: 1.0,
    ],
    ids=["vector", "aux", "int", "float"],
)
def test_bad_losses(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"loss_fn must return a real scalar.*got"):
        gradinit(params_of(), wrong, pairs(), num_steps=1, **SETTINGS)


def test_other_bad_input() -> None:
    with pytest.raises(TypeError, match=r"loss_fn must be a function.*got 3"):
        GradInit(3, **SETTINGS)  # pyright: ignore
    with pytest.raises(TypeError, match="'eta'"):
        gradinit(params_of(), loss_fn, pairs(), gamma=1.0, scale_lr=0.1)
    search = GradInit(loss_fn, **SETTINGS)
    with pytest.raises(ValueError, match=r"scales of shape \(1,\), the parameters 2 blocks"):
        search.step(params_of(), search.init({"w": jnp.ones(2)}), next(pairs()))
    for batch in ({"x": np.zeros((2, 4))}, (np.zeros(6), np.zeros(5)), [], np.float32(1)):
        with pytest.raises(ValueError, match="batch must hold arrays with the same number"):
            overlapping_pair(batch)
