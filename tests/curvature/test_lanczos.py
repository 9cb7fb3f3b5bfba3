"""Lanczos' iteration, its breakdowns, and what is read from it: eigenvalues and densities."""

from __future__ import annotations

import sys
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse.linalg import eigsh

from adamw_jax import curvature

pytestmark = pytest.mark.quick

KEY = jax.random.key(7)


def quadratic(x: Any, matrix: Any) -> jax.Array:
    return 0.5 * jnp.dot(x, matrix @ x)


def symmetric(eigenvalues: Any, seed: int = 0) -> np.ndarray:
    """A matrix with the given eigenvalues."""
    size = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return ((basis * np.asarray(eigenvalues)) @ basis.T).astype(np.float32)


@jax.jit
def six_steps(diagonal: jax.Array, start: jax.Array) -> curvature.LanczosResult:
    return curvature.lanczos(lambda v: diagonal * v, start, 6)


@hypothesis.given(
    st.lists(st.sampled_from([-4.0, -1.0, 0.0, 2.0, 5.0]), min_size=8, max_size=8),
    st.integers(0, 99),
    st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_few_distinct_eigenvalues(values: list[float], seed: int, scale: float) -> None:
    """The iteration stops where the eigenvalues do, at any scale; nothing outside has weight."""
    diagonal = np.asarray(values, np.float32) * np.float32(scale)
    start = np.random.default_rng(seed).uniform(0.5, 1.0, 8).astype(np.float32)
    found = six_steps(jnp.asarray(diagonal), jnp.asarray(start))
    distinct, place = np.unique(diagonal, return_inverse=True)
    assert found.krylov_dim == len(distinct)
    shares = np.bincount(place, start**2) / np.sum(start**2)
    weighs = np.asarray(found.ritz_weights) > 0
    nodes, weights = np.asarray(found.ritz_values)[weighs], np.asarray(found.ritz_weights)[weighs]
    np.testing.assert_allclose(nodes, distinct, rtol=1e-4, atol=1e-4 * scale)
    np.testing.assert_allclose(weights, shares, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(np.sum(found.ritz_weights), 1.0, rtol=1e-5)
    inside = (found.ritz_values >= distinct[0] - 1e-4 * scale) & (
        found.ritz_values <= distinct[-1] + 1e-4 * scale
    )
    assert inside.all()
    assert found.residual_norm == 0


def test_a_large_space_is_not_taken_for_a_breakdown() -> None:
    """With a bulk 1000 times below the largest eigenvalue, all steps count."""
    size = 200_000
    numbers = np.random.default_rng(0)
    diagonal = numbers.uniform(-1e-3, 1e-3, size).astype(np.float32)
    diagonal[0] = 1.0
    start = numbers.normal(size=size).astype(np.float32)
    found = six_steps(jnp.asarray(diagonal), jnp.asarray(start))
    assert found.krylov_dim == 6
    np.testing.assert_allclose(found.ritz_values[-1], 1.0, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_invariants() -> None:
    """H Q = Q T + beta_k q e_k^T, Q orthonormal, T from alpha and beta; on a tree."""
    matrix = symmetric(np.linspace(-1, 3, 20) ** 3).astype(np.float64)
    start = np.random.default_rng(1).normal(size=20)

    def split(v: Any) -> Any:
        return {"a": v[:12].reshape(3, 4), "b": (v[12:],)}

    def joined(tree: Any) -> Any:
        return jnp.concatenate([tree["a"].ravel(), tree["b"][0]])

    found = jax.jit(
        lambda a, v: curvature.lanczos(lambda tree: split(a @ joined(tree)), split(v), 8)
    )(matrix, start)
    assert jax.tree.map(jnp.shape, found.basis) == {"a": (8, 3, 4), "b": ((8, 8),)}
    basis = np.asarray(jax.vmap(joined)(found.basis))
    np.testing.assert_allclose(basis @ basis.T, np.eye(8), atol=1e-13)
    small = np.diag(found.alpha) + np.diag(found.beta, 1) + np.diag(found.beta, -1)
    rest = basis @ matrix - small @ basis
    np.testing.assert_allclose(rest[:-1], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(rest[-1]), found.residual_norm, rtol=1e-10)
    vectors = np.asarray(found.ritz_coefficients).T @ basis
    errors = np.linalg.norm(
        vectors @ matrix - np.asarray(found.ritz_values)[:, None] * vectors, axis=1
    )
    np.testing.assert_allclose(errors, found.residuals, atol=1e-12)


def test_copies_without_reorthogonalization() -> None:
    diagonal, start = np.geomspace(1e-6, 1e3, 60).astype(np.float32), np.ones(60, np.float32)

    @jax.jit
    def largest(d: Any, v: Any) -> Any:
        runs = [
            curvature.lanczos(lambda x: d * x, v, 40, reorthogonalize=again)
            for again in (True, False)
        ]
        return [run.ritz_values[-2:] for run in runs]

    with_it, without = largest(diagonal, start)
    np.testing.assert_allclose(with_it, diagonal[-2:], rtol=1e-4)
    np.testing.assert_allclose(without, 1e3, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_the_bare_recurrence_is_the_same_while_it_lasts() -> None:
    diagonal, start = jnp.linspace(-1.0, 3.0, 20), jnp.linspace(1.0, 2.0, 20)
    with_it, without = (
        curvature.lanczos(lambda v: diagonal * v, start, 6, reorthogonalize=again)
        for again in (True, False)
    )
    for a, b in zip(with_it, without, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.parametrize("again", [True, False])
def test_a_step_is_one_product(again: bool) -> None:
    calls = []

    def count(v: Any) -> Any:
        calls.append(1)
        return v

    def product(v: Any) -> Any:
        v = jax.pure_callback(count, jax.ShapeDtypeStruct(v.shape, v.dtype), v)
        return jnp.arange(20, dtype=jnp.float32) * v

    @jax.jit
    def alpha(start: Any) -> Any:
        return curvature.lanczos(product, start, 5, reorthogonalize=again).alpha

    jax.block_until_ready(alpha(jnp.ones(20)))
    assert len(calls) == 5


def precisions(jaxpr: Any) -> list[Any]:
    """The precisions of all matrix products in a program."""
    found = [e.params["precision"] for e in jaxpr.eqns if e.primitive.name == "dot_general"]
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "jaxpr"):
                found += precisions(inner.jaxpr)
    return found


def test_only_the_iteration_itself_has_the_highest_precision() -> None:
    """On a GPU the default would lose orthogonality; the product is the user's."""
    highest = (jax.lax.Precision.HIGHEST,) * 2
    program = jax.make_jaxpr(lambda a, v: curvature.lanczos(lambda x: a @ x, v, 3).alpha)
    found = precisions(program(jnp.eye(4), jnp.ones(4)).jaxpr)
    assert found.count(None) == 1
    assert found.count(highest) == len(found) - 1 >= 4


def test_xdiag_has_the_highest_precision_too() -> None:
    highest = (jax.lax.Precision.HIGHEST,) * 2
    program = jax.make_jaxpr(
        lambda a, x: curvature.hessian_diag(quadratic, x, a, method="xdiag", num=2, key=KEY)
    )
    found = precisions(program(jnp.eye(6), jnp.ones(6)).jaxpr)
    assert set(found) == {None, highest}  # the products with H have the user's
    assert found.count(highest) >= 2


SPIKED = symmetric([9.0, 7.0, -12.0, *np.linspace(-0.3, 0.3, 27)])


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("backend", ["lanczos", "scipy"])
def test_top_eigenvalues(which: str, backend: str) -> None:
    """Largest by sign, in order, with vectors and residuals that bound the error."""
    expected = eigsh(SPIKED.astype(float), 2, which={"largest": "LA", "smallest": "SA"}[which])[0]
    expected = np.sort(expected) if which == "smallest" else np.sort(expected)[::-1]
    values, vectors, residuals = curvature.top_eigenvalues(
        quadratic, jnp.ones(30), SPIKED, k=2, key=KEY, which=which, backend=backend, steps=20
    )
    np.testing.assert_allclose(values, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    errors = np.linalg.norm(vectors @ SPIKED - np.asarray(values)[:, None] * vectors, axis=1)
    assert (errors < np.asarray(residuals) + 2e-5).all()


def test_the_residual_bounds_the_error_of_too_few_steps() -> None:
    matrix = symmetric(np.linspace(0, 1, 30))
    values, _, residuals = curvature.top_eigenvalues(
        quadratic, jnp.ones(30), matrix, k=3, key=KEY, steps=6
    )
    all_eigenvalues = np.linalg.eigvalsh(matrix.astype(float))
    error = np.abs(np.asarray(values)[:, None] - all_eigenvalues).min(axis=1)
    assert (error <= residuals).all()
    assert 0.01 < residuals[0] < 0.3


def test_scipy_gets_the_vectors_that_it_needs() -> None:
    """ARPACK wants more than k, also where ``steps`` asks for k."""
    matrix = np.diag(np.arange(1.0, 31.0, dtype=np.float32))
    values, _, _ = curvature.top_eigenvalues(
        quadratic, jnp.ones(30), matrix, k=5, steps=5, key=KEY, backend="scipy"
    )
    np.testing.assert_allclose(values, [30.0, 29.0, 28.0, 27.0, 26.0], rtol=1e-4)


def test_repeated_eigenvalues_are_seen_once_by_lanczos_and_all_by_scipy() -> None:
    identity = np.eye(6, dtype=np.float32)
    found = {
        backend: curvature.top_eigenvalues(
            quadratic, jnp.ones(6), identity, k=2, key=KEY, backend=backend
        )
        for backend in ("lanczos", "scipy")
    }
    np.testing.assert_allclose(found["lanczos"][0], [1.0, np.nan], rtol=1e-5)
    np.testing.assert_allclose(
        jnp.linalg.norm(found["lanczos"][1], axis=1), [1.0, np.nan], rtol=1e-5
    )
    np.testing.assert_allclose(found["scipy"][0], [1.0, 1.0], rtol=1e-5)
    zero = np.zeros((6, 6), np.float32)
    for backend in ("lanczos", "scipy"):
        found = curvature.top_eigenvalues(quadratic, jnp.ones(6), zero, key=KEY, backend=backend)
        assert (found[0], found[2]) == (0.0, 0.0)


@pytest.mark.parametrize("backend", ["lanczos", "scipy"])
def test_one_compilation_for_many_points(backend: str) -> None:
    traces = []

    def loss_fn(x: Any, matrix: Any) -> jax.Array:
        traces.append(1)
        return jnp.sum(x**4) + quadratic(x, matrix)

    def largest(x: Any) -> jax.Array:
        found = curvature.top_eigenvalues(loss_fn, x, SPIKED, key=KEY, backend=backend)
        return found[0][0]

    largest(jnp.ones(30))
    first = len(traces)
    for scale in (0.0, 2.0):
        value = largest(jnp.full(30, scale, jnp.float32))
        expected = np.linalg.eigvalsh(SPIKED + 12 * scale**2 * np.eye(30))[-1]
        np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert len(traces) == first


def test_density() -> None:
    """It integrates to 1, scales with the loss, and knows moments and widths."""
    args: Any = (quadratic, jnp.ones(30))
    found = curvature.spectral_density(*args, SPIKED, k=16, num_probes=8, key=KEY)
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1.0, rtol=1e-3)
    scaled = curvature.spectral_density(*args, 1e-3 * SPIKED, k=16, num_probes=8, key=KEY)
    np.testing.assert_allclose(scaled.grid, 1e-3 * found.grid, rtol=1e-2, atol=1e-6)
    top = int(np.argmax(found.density))
    np.testing.assert_allclose(scaled.density[top], 1e3 * found.density[top], rtol=0.02)
    # z^T H^2 z is quadratic in z: its estimate is unbiased, and the error says how good it is.
    estimate, error = found.trace(jnp.square)
    exact = np.sum(SPIKED.astype(float) ** 2)
    assert abs(float(estimate) - exact) < 4 * float(error)
    grid = np.linspace(-13.0, 10.0, 50)
    own = curvature.spectral_density(
        *args, SPIKED, k=16, num_probes=8, key=KEY, kernel_variance=0.25, grid=grid
    )
    nodes, weights = np.asarray(own.nodes), np.asarray(own.weights)
    heights = weights * np.exp(-((grid[:, None, None] - nodes) ** 2) / 0.5)
    expected = heights.sum((1, 2)) / 8 / np.sqrt(2 * np.pi * 0.25)
    np.testing.assert_allclose(own.density, expected, rtol=1e-3, atol=1e-6)


def test_density_of_one_eigenvalue_and_its_picture() -> None:
    pytest.importorskip("matplotlib").use("agg")
    found = curvature.spectral_density(
        quadratic, jnp.ones(6), np.eye(6, dtype=np.float32), k=3, num_probes=1, key=KEY
    )
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1.0, rtol=1e-3)
    assert abs(float(found.grid[np.argmax(found.density)]) - 1) < 1e-3
    ax = found.plot()
    assert ax.get_xlabel() == "eigenvalue"
    assert found.plot(ax) is ax
    ax.figure.clear()


def test_errors(monkeypatch: Any) -> None:
    def top(k: int = 1, **options: Any) -> Any:
        return curvature.top_eigenvalues(quadratic, jnp.ones(30), SPIKED, k, key=KEY, **options)

    for options, message in (
        ({"k": 31}, "k must be at most 30, the number of parameters, got 31"),
        ({"k": 0}, "k must be a whole number >= 1, got 0"),
        ({"k": 5, "steps": 4}, "steps must be at least k = 5, got 4"),
        ({"which": "top"}, "which must be one of"),
        ({"backend": "torch"}, "backend must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            top(**options)
    with pytest.raises(ValueError, match=r"outside jax\.jit"):
        jax.jit(
            lambda x: curvature.top_eigenvalues(quadratic, x, SPIKED, key=KEY, backend="scipy")
        )(jnp.ones(30))
    with pytest.raises(ValueError, match="kernel_variance must be a number > 0"):
        curvature.spectral_density(quadratic, jnp.ones(30), SPIKED, key=KEY, kernel_variance=0.0)
    with pytest.raises(ValueError, match="probes must be a tree with an axis in front"):
        curvature.quadrature(lambda v: v, {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 3))}, 2)
    with pytest.raises(ValueError, match="v0 must not be 0"):
        curvature.lanczos(lambda v: v, {"a": jnp.zeros(3), "b": jnp.zeros(2)}, 2)
    monkeypatch.setitem(sys.modules, "matfree.decomp", None)
    with pytest.raises(ImportError, match=r"pip install adamw-jax\[curvature\]"):
        curvature.lanczos(lambda v: v, jnp.ones(3), 2)
