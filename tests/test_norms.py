"""Norms whose squares overflow: right wherever a stage or an optimizer takes one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamw_jax as aj
from adamw_jax._core.gradients import norm_of_tree, norms_of_leaves
from adamw_jax._core.sequential import compiled_for
from adamw_jax.diagnostics import layer_gradient_norms
from tests.catalogue import (
    EXTRA,
    PLAIN,
    VARIANTS,
    Entry,
    assert_close,
    assert_finite,
    at,
    label,
    sample_gradients,
    sample_params,
)

SIZES = [1.0, 1e20, 1e38]
WAYS = {"eager": lambda f: f, "jit": jax.jit}


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest) -> Iterator[None]:
    """The form for a CPU, and the one for other devices, which runs on a CPU, too."""
    with compiled_for(request.param):
        yield


def tree(size: Any, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Of norm 3 ``size``; complex where the dtype is."""
    turn = 1j if jnp.issubdtype(dtype, jnp.complexfloating) else 1
    values = {"a": np.array([[2.0, 0.0], [-1.0 * turn, 0.0]]), "b": np.array([-2.0 * turn])}
    return {k: jnp.asarray(x * size, dtype) for k, x in values.items()}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_of_a_tree(size: float, way: str, dtype: Any) -> None:
    x = tree(size, dtype)
    wide = [np.asarray(v).astype(complex) for v in jax.tree.leaves(x)]
    exact = np.linalg.norm(np.concatenate([v.ravel() for v in wide]))
    got = WAYS[way](lambda tree: norm_of_tree(tree))(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, rtol=1e-6)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_lanes_of_every_size_with_their_gradients(dtype: Any) -> None:
    """Under ``vmap`` both ways are computed; no lane spoils another, nor its derivative."""
    sizes = np.array([*SIZES, 0.0, np.inf, np.nan], np.float32)
    lanes = np.stack([2 * sizes, np.zeros_like(sizes), -sizes], 1)
    lanes = jnp.asarray(lanes, dtype)
    got, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda x: norm_of_tree([x]))))(lanes)
    np.testing.assert_allclose(got[:4], np.sqrt(5.0) * sizes[:4], rtol=1e-6)
    assert not np.any(np.isfinite(got[4:]))
    expected = np.array([[2.0, 0.0, -1.0]] * 3 + [[0.0] * 3]) / np.sqrt(5.0)
    np.testing.assert_allclose(slopes[:4], expected, rtol=1e-6)


@pytest.mark.usefixtures("device")
def test_leaves_do_not_share_their_fate() -> None:
    """All share a branch; each has its own norm, those of zeros and of nothing, too."""
    sizes = {"usual": 1.0, "large": 1e30, "small": 1e-15, "zero": 0.0}
    leaves = {k: jnp.full(4, v, jnp.float32) for k, v in sizes.items()}
    leaves |= {"big": jnp.full((64, 64), 2.0**83, jnp.float32), "empty": jnp.zeros([0])}
    expected = {k: 2 * v for k, v in sizes.items()} | {"big": 64 * 2.0**83, "empty": 0.0}
    for norms in (norms_of_leaves(leaves), jax.jit(lambda x: norms_of_leaves(x))(leaves)):
        for name, exact in expected.items():
            np.testing.assert_allclose(norms[name], np.float32(exact), rtol=1e-6)
    assert norm_of_tree({}) == 0


# One step in float32 against the same in float64, where no such square leaves the range.


def assert_as_in_float64(step: Any, *arguments: Any) -> None:
    got = jax.jit(step)(*arguments)
    with jax.enable_x64(True), np.errstate(over="ignore", under="ignore"):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), arguments)
        exact = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.jit(step)(*wide))
    assert_close(got, exact, rtol=1e-5, atol=1e-37)


def step_of(make: Any) -> Any:
    def step(gradient: Any, params: Any) -> Any:
        tx = make()
        return tx.update(gradient, tx.init(params), params, **EXTRA)[0]

    return step


def scaled(x: Any, size: float) -> Any:
    return jax.tree.map(lambda leaf: leaf * jnp.float32(size), x)


def takes_norms(entry: Entry) -> bool:
    """A Kalman filter takes squares of norms, and what overflows there says nothing to it."""
    return entry.scope != "element" and not entry.info.needs


@pytest.mark.quick
@pytest.mark.parametrize("of_params", [1e20, pytest.param(1e30, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "entry",
    [
        *filter(takes_norms, PLAIN),
        *(pytest.param(e, marks=pytest.mark.slow) for e in VARIANTS if takes_norms(e)),
    ],
    ids=label,
)
def test_optimizers(entry: Entry, of_params: float) -> None:
    """Of parameters of any size; and of gradients, where no second moment squares the elements."""
    params, gradient = scaled(sample_params(), of_params), at(sample_gradients(1), 0)
    for size in [1.0] if entry.adaptive or entry.name == "adafactor" else [1.0, 1e20]:
        assert_as_in_float64(step_of(entry.make), scaled(gradient, size), params)


STAGES: dict[str, Any] = {
    "clip_gradient": lambda: aj.clip_gradient(1.0),
    "clip_gradient, eps=0": lambda: aj.clip_gradient(1.0, 0.0),
    "clip_step": lambda: aj.clip_step(0.1, 1.0),
    "clip_step, per leaf": lambda: aj.clip_step(0.1, 1.0, per_leaf=True),
    "normalize": aj.normalize,
    "normalize, per leaf": lambda: aj.normalize(per_leaf=True),
    "clip_by_rms": aj.clip_by_rms,
    "scale_by_parameter_rms": lambda: aj.scale_by_parameter_rms(0.0),
    "scale_by_norm_estimate": lambda: aj.scale_by_norm_estimate(floor=0.0),
    "scale_by_norm_estimate, of now": lambda: aj.scale_by_norm_estimate(
        floor=0.0, use_previous=False
    ),
    "scale_by_trust_ratio": aj.scale_by_trust_ratio,
    "scale_by_trust_ratio, of sums": lambda: aj.scale_by_trust_ratio(weight_decay=0.1),
    "percentile_clipping": lambda: aj.percentile_clipping(50, 4),
}


@pytest.mark.usefixtures("device")
@pytest.mark.sample(3)
@pytest.mark.quick
@pytest.mark.parametrize("size", [1e20, 1e30])
@pytest.mark.parametrize("name", STAGES)
def test_stages(name: str, size: float) -> None:
    step = step_of(STAGES[name])
    params, gradient = sample_params(), at(sample_gradients(1), 0)
    assert_as_in_float64(step, scaled(gradient, size), scaled(params, size))
    slope = jax.grad(lambda g: sum(map(jnp.sum, jax.tree.leaves(step(g, params)))))
    lanes = jax.vmap(lambda scale: slope(jax.tree.map(lambda g: scale * g, gradient)))
    assert_finite(lanes(jnp.asarray([1.0, 0.0, size])))


def test_an_estimate_leaves_out_what_overflows_squared() -> None:
    tx: Any = aj.scale_by_norm_estimate(0.5, 0.0)
    g = jnp.asarray([3.0, 4.0])
    first, state = tx.update(1e20 * g, tx.init(g))
    np.testing.assert_allclose(first, g / 5, rtol=1e-6)
    _, state = tx.update(g, state)
    _, state = tx.update(1e20 * g, state)
    np.testing.assert_allclose(tx.update(g, state)[0], g / 5, rtol=1e-6)


def test_norms_by_layer() -> None:
    norms = layer_gradient_norms(tree(1e30))
    np.testing.assert_allclose([norms["a"], norms["b"]], np.sqrt([5e60, 4e60]), rtol=1e-6)


def test_the_drift_of_a_filter() -> None:
    """Parameters whose distance overflows squared leave the filter as it is, and it goes on."""
    for squared in (False, True):
        tx: Any = aj.koala_m(squared_drift=squared)
        params = jnp.full(3, 1e20)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(jnp.ones(3), state, params, value=1.0)
            assert np.all(np.isfinite(updates))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
