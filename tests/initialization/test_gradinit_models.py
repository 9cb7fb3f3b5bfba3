"""GradInit on Flax models with batch norm: statistics of the batch, none of them kept."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from adamw_jax.initialization import GradInitInfo, gradinit, overlapping_pair

pytestmark = [pytest.mark.slow, pytest.mark.quick]

WIDTH, GAIN, STEPS = 8, 6.0, 40
SETTINGS: dict[str, Any] = {"eta": 0.1, "gamma": 0.5, "scale_lr": 0.1, "num_steps": STEPS}


def batches() -> Any:
    """Pairs of inputs far from standardised, and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 5.0, (30, WIDTH)).astype(np.float32)
    y = (x.sum(1) > 24).astype(np.int32)
    return itertools.repeat(overlapping_pair((x, y)))


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        init = nn.initializers.normal(GAIN)
        x = nn.Dense(WIDTH, kernel_init=init)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.5, deterministic=True)(x)
        return nn.Dense(2, kernel_init=init)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.normal(GAIN)
        self.first = nnx.Linear(WIDTH, WIDTH, kernel_init=init, rngs=rngs)
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(WIDTH, 2, kernel_init=init, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.dropout(nnx.relu(self.norm(self.first(x))))
        return self.last(x)


@pytest.fixture(autouse=True)
def rank_promotion() -> Any:
    """Flax's own layers promote ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def check(before: Any, after: Any, info: GradInitInfo, trained: Any, evaluated: Any) -> None:
    """The search saw statistics of the batch, and brought the gradient's norm down to gamma."""
    history = info.history
    np.testing.assert_allclose(history.loss[0], trained, rtol=1e-4)
    assert abs(evaluated - trained) > 0.1  # with the running statistics it is another loss
    assert history.gradient_norm[0] > 2 * SETTINGS["gamma"]
    assert np.median(history.gradient_norm[-10:]) < 1.2 * SETTINGS["gamma"]
    assert history.loss[-1] < history.loss[0]
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
    assert len(info.blocks) == 6  # kernels, biases, and the scale and bias of the normalisation


def test_linen() -> None:
    model = Linen()
    init = jax.jit(lambda: model.init(jax.random.key(0), jnp.ones((2, WIDTH)), train=False))
    variables = init()
    params, stats = variables["params"], variables["batch_stats"]

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        state = {"params": params, "batch_stats": stats}
        logits, _ = model.apply(state, x, train=True, mutable=["batch_stats"])
        return cross_entropy(logits, y)

    new, info = gradinit(params, loss_fn, batches(), **SETTINGS)
    (x, y), _ = next(batches())
    evaluated = cross_entropy(model.apply(variables, x, train=False), y)
    check(params, new, info, loss_fn(params, (x, y)), evaluated)
    jax.tree.map(np.testing.assert_array_equal, stats, init()["batch_stats"])


def test_nnx() -> None:
    model = Nnx(nnx.Rngs(0))
    definition, params, rest = nnx.split(model, nnx.Param, ...)
    kept = jax.tree.map(lambda x: x, rest)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x, y = batch
        copy = nnx.merge(definition, params, rest, copy=True)
        copy.set_attributes(use_running_average=False, deterministic=True, raise_if_not_found=False)
        return cross_entropy(copy(x), y)

    new, info = gradinit(params, loss_fn, batches(), **SETTINGS)
    (x, y), _ = next(batches())
    model.eval()
    check(params, new, info, loss_fn(params, (x, y)), cross_entropy(model(x), y))
    kernel = model.last.kernel[...]
    nnx.update(model, new)
    found = model.last.kernel[...] / kernel
    np.testing.assert_allclose(found, info.scales["last"]["kernel"][...], rtol=1e-5)
    stats = nnx.state(model, nnx.BatchStat)
    assert jax.tree.leaves(stats)
    jax.tree.map(np.testing.assert_array_equal, stats, nnx.filter_state(kept, nnx.BatchStat))
