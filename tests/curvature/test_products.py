"""Products with the Hessian and the Gauss-Newton matrix, of one batch and of many."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from adamw_jax import curvature

pytestmark = pytest.mark.quick

SHAPES = {"w1": (3, 4), "b": (4,), "w2": (4, 2)}


def make(seed: int = 0, examples: int = 12, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Parameters of a small network, and a batch with labels."""
    numbers = np.random.default_rng(seed)
    params = {n: jnp.asarray(numbers.normal(size=s) / 2, dtype) for n, s in SHAPES.items()}
    x = numbers.normal(size=(examples, 3)).astype(np.float32)
    return params, (x, numbers.integers(0, 2, examples).astype(np.int32))


def model_fn(params: Any, batch: Any) -> jax.Array:
    x = jnp.asarray(batch[0], params["w1"].dtype)
    return jnp.tanh(x @ params["w1"] + params["b"][None]) @ params["w2"]


def output_loss(outputs: Any, batch: Any) -> jax.Array:
    outputs = outputs.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()


LOSS = curvature.CompositeLoss(model_fn, output_loss)


def dense(params: Any, batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian and the Gauss-Newton matrix, formed."""
    vector, tree_of = ravel_pytree(params)

    @jax.jit
    def both(vector: Any) -> Any:
        hessian = jax.hessian(lambda v: LOSS(tree_of(v), batch))(vector)
        outputs = model_fn(tree_of(vector), batch)
        slopes = jax.jacobian(lambda v: model_fn(tree_of(v), batch))(vector)
        bend = jax.hessian(lambda z: output_loss(z, batch))(outputs)
        return hessian, jnp.einsum("iap,iajb,jbq->pq", slopes, bend, slopes)

    hessian, gauss_newton = both(vector)
    return np.asarray(hessian), np.asarray(gauss_newton)


def like(params: Any, seed: int) -> tuple[Any, np.ndarray]:
    vector, tree_of = ravel_pytree(params)
    v = np.random.default_rng(seed).normal(size=vector.size)
    return tree_of(jnp.asarray(v, vector.dtype)), v


def flat(tree: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.usefixtures("x64")
def test_products_are_those_of_the_matrices() -> None:
    params, batch = make(dtype=jnp.float64)
    hessian, gauss_newton = dense(params, batch)
    v, vector = like(params, 1)
    products = jax.jit(
        lambda p, b, v: (
            curvature.hvp(LOSS, p, b, v),
            curvature.gauss_newton_product(LOSS, p, b, v),
        )
    )(params, batch, v)
    # The outputs' loss is taken in float32.
    np.testing.assert_allclose(flat(products[0]), hessian @ vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flat(products[1]), gauss_newton @ vector, rtol=1e-5, atol=1e-6)
    assert np.linalg.eigvalsh(gauss_newton).min() > -1e-7
    assert np.linalg.eigvalsh(hessian).min() < -1e-3


def squares(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    return jnp.mean((jnp.sin(x @ params["w"]) - y) ** 2)


def data(examples: int) -> tuple[Any, Any]:
    numbers = np.random.default_rng(5)
    x = numbers.normal(size=(examples, 4)).astype(np.float32)
    return {"w": jnp.asarray(x[0])}, (x, x[:, 0] ** 2)


def test_a_stream_is_the_whole_batch() -> None:
    """Batches of unequal sizes, jitted and not."""
    params, (x, y) = data(12)
    batches = curvature.Batches([(x[a:b], y[a:b]) for a, b in ((0, 5), (5, 10), (10, 12))])
    product = curvature.hvp_fn(squares, params, batches)
    expected = curvature.hvp(squares, params, (x, y), params)["w"]
    for found in (product(params), jax.jit(product)(params)):
        np.testing.assert_allclose(found["w"], expected, rtol=1e-5, atol=1e-6)


def test_a_stream_can_be_iterated_over() -> None:
    parts = [{"x": np.full(2, i, np.float32)} for i in range(3)]
    batches = curvature.Batches(part for part in parts)
    assert len(batches) == 3
    for _ in range(2):
        for part, batch in zip(parts, batches, strict=True):
            np.testing.assert_array_equal(part["x"], batch["x"])


def test_streams_of_all_kinds() -> None:
    parts = [np.full(2, i, np.float32) for i in range(3)]

    class Loader:
        reads = 0

        def __len__(self) -> int:
            return len(parts)

        def __getitem__(self, index: int) -> Any:
            Loader.reads += 1
            return parts[range(len(parts))[index]]

    for batches in (parts, tuple(parts), (part for part in parts), Loader()):
        stream = curvature.Batches(batches)
        for _ in range(2):
            assert float(jax.jit(lambda s: s.mean(jnp.mean))(stream)) == 1.0
    assert Loader.reads == 3 + 2 * 3  # once for the shapes, then at every pass


def test_a_stream_goes_wherever_a_batch_does() -> None:
    params, (x, y) = data(12)
    batches = curvature.Batches([(x[:6], y[:6]), (x[6:], y[6:])])
    key = jax.random.key(0)

    def everything(batch: Any) -> Any:
        return (
            curvature.sharpness(squares, params, batch, key=key, steps=4),
            curvature.hessian_trace(squares, params, batch, num=4, key=key),
            curvature.hessian_diag(squares, params, batch, chunk=3),
        )

    for got, expected in zip(
        jax.tree.leaves(jax.jit(everything)(batches)),
        jax.tree.leaves(jax.jit(everything)((x, y))),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_equal_weights() -> None:
    batches = [np.zeros(1, np.float32), np.full(3, 4, np.float32)]
    assert float(curvature.Batches(batches).mean(jnp.mean)) == 3.0
    assert float(curvature.Batches(batches, weights="equal").mean(jnp.mean)) == 2.0


def test_order_and_shape_of_the_tree_do_not_matter() -> None:
    params, batch = make()
    names = ["w2", "b", "w1"]

    def listed(params: Any, batch: Any) -> jax.Array:
        return LOSS(dict(zip(names, params, strict=True)), batch)

    v, _ = like(params, 3)
    got = curvature.hvp(listed, [params[n] for n in names], batch, [v[n] for n in names])
    expected = curvature.hvp(LOSS, params, batch, v)
    for name, array in zip(names, got, strict=True):
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_parameters() -> None:
    """Products have the parameters' dtype; what is summed over them is float32.

    The eigenvalue lies half-way between two neighbours of bfloat16, 0.4 % from both, and the
    rounding of 4096 entries averages out.
    """
    size, exact = 4096, 1.0 + 2.0**-8
    along = np.random.default_rng(0).normal(size=size)
    along = jnp.asarray(along / np.linalg.norm(along), jnp.float32)
    half = {"w": jnp.zeros(size, jnp.bfloat16)}

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return 0.5 * jnp.float32(exact) * jnp.sum(batch * params["w"].astype(jnp.float32)) ** 2

    v = {"w": along}
    assert curvature.hvp(loss_fn, half, along, v)["w"].dtype == jnp.bfloat16
    low = curvature.top_eigenvalues(loss_fn, half, along, key=jax.random.key(0), steps=4)
    assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(low[0], [exact], rtol=5e-4)
    probes = jax.tree.map(lambda x: x[None], v)
    trace, _ = curvature.hutchinson_trace(curvature.hvp_fn(loss_fn, half, along), probes)
    np.testing.assert_allclose(trace, exact, rtol=5e-4)


def test_errors() -> None:
    params, batch = make()
    with pytest.raises(TypeError, match=r"'step' has dtype int32; curvature"):
        curvature.hvp_fn(LOSS, params | {"step": jnp.zeros(2, jnp.int32)}, batch)
    with pytest.raises(ValueError, match="params has no leaves"):
        curvature.hvp_fn(LOSS, {}, batch)
    with pytest.raises(ValueError, match=r"v must be a tree like params.*'w2'"):
        curvature.hvp(LOSS, params, batch, {"w1": params["w1"]})
    with pytest.raises(TypeError, match=r"CompositeLoss\(model_fn, output_loss\), got"):
        curvature.gauss_newton_fn(lambda p, b: LOSS(p, b), params, batch)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"one batch with the keys \['x'\]: write Batches\(\[batch\]\)"
    ):
        curvature.Batches({"x": np.ones((2, 3))})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batches is empty"):
        curvature.Batches([])
    with pytest.raises(ValueError, match="batch 1 has no examples"):
        curvature.Batches([np.ones(2), np.ones(())])
    with pytest.raises(ValueError, match="weights must be one of"):
        curvature.Batches([np.ones(2)], weights="size")
