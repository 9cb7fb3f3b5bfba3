"""The golden cases of curvature: recorded results, compared through the public functions."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import adamw_jax as aj
from adamw_jax import curvature
from tests.golden_cases import Case, assert_recorded

Arrays = dict[str, Any]
KEY = 0  # of start vectors on which no result depends

SCALARS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "square": jnp.square,
    "abs": jnp.abs,
    "log": jnp.log,
    "exp_neg_sq": lambda x: jnp.exp(-(x**2)),
}


def given(case: Case) -> Arrays:
    return {
        name.removeprefix("in__"): jnp.asarray(array)
        for name, array in case.arrays.items()
        if name.startswith("in__")
    }


def run(fn: Callable[..., Any], *arguments: Any) -> Any:
    """One compiled program: an operation at a time would compile each."""
    return jax.tree.map(np.asarray, jax.jit(fn)(*arguments))


def quadratic(x: Any, matrix: Any) -> jax.Array:
    return 0.5 * jnp.dot(x, matrix @ x)


def times(matrix: Any) -> Callable[[Any], Any]:
    return lambda v: matrix @ v


def spectrum(loss_fn: Any, params: Any, batch: Any) -> jax.Array:
    """All eigenvalues, ascending."""
    size = sum(x.size for x in jax.tree.leaves(params))
    key = jax.random.key(KEY)
    return curvature.top_eigenvalues(
        loss_fn, params, batch, size, key=key, which="smallest", backend="scipy"
    )[0]


def iterated(found: curvature.LanczosResult) -> Arrays:
    """What Lanczos' iteration found, without what stands in after a breakdown."""
    dim = int(found.krylov_dim)
    weighs = np.asarray(found.ritz_weights) > 0
    assert weighs.sum() == dim
    return {
        "alpha": found.alpha[:dim],
        "beta": found.beta[: dim - 1],
        "residual_norm": found.residual_norm,
        "ritz_values": found.ritz_values[weighs],
        "ritz_weights": found.ritz_weights[weighs],
    }


def check_lanczos(case: Case) -> None:
    x = given(case)
    found = run(lambda a, v0: curvature.lanczos(times(a), v0, int(x["k"])), x["A"], x["v0"])
    got = iterated(found)
    values, weights = np.asarray(got["ritz_values"]), np.asarray(got["ritz_weights"])
    got |= {
        "krylov_dim": found.krylov_dim,
        "moments": [np.sum(weights * values**j) for j in range(2 * len(values))],
        "eigenvalues": spectrum(quadratic, x["v0"], x["A"]),
    }
    if "out__projection_weights" in case.arrays:
        got["projection_weights"] = weights
    assert_recorded(case, got)
    basis = np.asarray(found.basis)[: len(values)]
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-12)


def check_slq(case: Case) -> None:
    x = given(case)
    size, names = len(x["A"]), case.entry["meta"]["functions"]
    variance = float(x["kernel_variance"])

    def results(matrix: Any, probes: Any, grid: Any) -> Arrays:
        def density(probes: Any, k: int) -> curvature.SpectralDensity:
            nodes, weights = curvature.quadrature(times(matrix), probes, k)
            return curvature.smoothed(nodes, weights, size, kernel_variance=variance, grid=grid)

        found = density(probes, int(x["k"]))
        exact = density(jnp.eye(size), size)  # a complete basis and as many steps make no error
        got = {
            "nodes": found.nodes,
            "weights": found.weights,
            "density": found.density,
            "exact_density": exact.density,
            "trace_exact": exact.trace(SCALARS["identity"])[0],
            "trace_hutchinson": curvature.hutchinson_trace(times(matrix), as_long(probes))[0],
        }
        for name in names:
            got |= {
                f"per_probe_{name}": size * found.per_probe(SCALARS[name]),
                f"trace_slq_{name}": found.trace(SCALARS[name])[0],
                f"trace_exact_{name}": exact.trace(SCALARS[name])[0],
            }
        return got

    got = run(results, x["A"], x["probes"], x["grid"])
    assert_recorded(case, got | {"eigenvalues": spectrum(quadratic, x["probes"][0], x["A"])})


def as_long(probes: Any) -> Any:
    """Probes of norm sqrt(P), as the recorded trace takes them."""
    norms = jnp.linalg.norm(probes, axis=1, keepdims=True)
    return probes * jnp.sqrt(jnp.asarray(probes.shape[1], probes.dtype)) / norms


def check_hutchinson(case: Case) -> None:
    x = given(case)

    def results(matrix: Any, signs: Any, gaussian: Any) -> Arrays:
        product, squares = times(matrix), matrix**2
        off_diagonal = squares - jnp.diag(jnp.diagonal(squares))
        diagonal = curvature.hessian_diag(quadratic, jnp.zeros(len(matrix)), matrix)
        return {
            "diag_rademacher": curvature.hutchinson_diag(product, signs),
            "diag_gaussian_ratio": curvature.hutchinson_diag(product, gaussian),
            "trace_rademacher": curvature.hutchinson_trace(product, signs)[0],
            "trace_gaussian": curvature.hutchinson_trace(product, gaussian)[0],
            "diag_exact": diagonal,
            "trace_exact": jnp.sum(diagonal),
            # As the docstrings say; test_random_estimates.py holds the samplers to them.
            "variance_trace_rademacher_single": 2.0 * jnp.sum(off_diagonal),
            "variance_trace_gaussian_single": 2.0 * jnp.sum(squares),
            "variance_diag_rademacher_single": jnp.sum(off_diagonal, axis=1),
        }

    assert_recorded(
        case,
        run(results, x["A"], x["rademacher_probes"], x["gaussian_probes"]),
        # The mean of z Az over Gaussian probes has more variance than the ratio: it is not offered.
        "out__diag_gaussian_plain",
    )


def network(meta: Mapping[str, Any]) -> Callable[[Any, Any], jax.Array]:
    """The loss of a recorded network; its parameters are a dictionary in the recorded order."""
    activation = getattr(jax.nn, meta["activation"])
    assert meta["loss"] in ("mse", "ce"), f"unknown loss {meta['loss']!r}"
    depth = len(meta["sizes"]) - 1

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        outputs, y = batch
        weights = dict(zip(params._fields, params, strict=True))
        for layer in range(1, depth + 1):
            outputs = outputs @ weights[f"w{layer}"]
            if f"b{layer}" in weights:
                outputs = outputs + weights[f"b{layer}"][None]
            outputs = outputs if layer == depth else activation(outputs)
        if meta["loss"] == "mse":
            return jnp.mean((outputs - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()

    return loss_fn


def weights_of(x: Arrays) -> Any:
    """The recorded weights as a named tuple, which keeps w1, b1, w2, b2, ... in order."""
    names = [name for name in x if name[0] in "wb" and name[1:].isdigit()]
    return collections.namedtuple("Weights", names)(*(x[name] for name in names))


def flat(tree: Any) -> jax.Array:
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


def like(params: Any, vector: Any) -> Any:
    return ravel_pytree(params)[1](vector)


def check_network_lanczos(case: Case) -> None:
    x = given(case)
    params, batch, k = weights_of(x), (x["x"], x["y"]), int(x["k"])
    loss_fn, size = network(case.entry["meta"]), len(x["v0"])

    def results(params: Any, batch: Any, v0: Any, probes: Any, vector: Any) -> Any:
        product = curvature.hvp_fn(loss_fn, params, batch)
        hv = flat(curvature.hvp(loss_fn, params, batch, like(params, vector)))
        rows = jax.vmap(lambda row: like(params, row))
        nodes, weights = curvature.quadrature(product, rows(probes), k)

        def end(which: str) -> Any:  # as many steps as parameters: both ends have converged
            key = jax.random.key(KEY)
            return curvature.top_eigenvalues(
                loss_fn, params, batch, key=key, which=which, steps=size
            )[0][0]

        return curvature.lanczos(product, like(params, v0), k), {
            "loss": loss_fn(params, batch),
            "hessian": jax.vmap(lambda tree: flat(product(tree)))(rows(jnp.eye(size))),
            "hvp": hv,
            "rayleigh": jnp.dot(vector, hv) / jnp.dot(vector, vector),
            "slq_nodes": nodes,
            "slq_weights": weights,
            "trace": jnp.sum(flat(curvature.hessian_diag(loss_fn, params, batch))),
            "lambda_max": end("largest"),
            "lambda_min": end("smallest"),
        }

    found, got = run(results, params, batch, x["v0"], x["probes"], x["hvp_vector"])
    assert_recorded(case, iterated(found) | got | {"eigenvalues": spectrum(loss_fn, params, batch)})


def check_r_med(case: Case) -> None:
    meta = case.entry["meta"]
    if "sizes" in meta:
        check_network_r_med(case)
    elif "model" in meta:
        check_linear_r_med(case)
    else:
        got = {}
        for name, diag in given(case).items():
            number = name.removeprefix("diag_")
            got[f"r_med_{number}"] = curvature.r_med(diag, per_block=False)
            got[f"r_med_signed_{number}"] = curvature.r_med(diag, per_block=False, absolute=False)
        assert_recorded(case, got)


def check_network_r_med(case: Case) -> None:
    x = given(case)
    loss_fn = network(case.entry["meta"])

    def results(params: Any, batch: Any, probes: Any) -> Arrays:
        diag = curvature.hessian_diag(loss_fn, params, batch)
        product = curvature.hvp_fn(loss_fn, params, batch)
        probes = jax.vmap(lambda row: like(params, row))(probes)
        estimate = curvature.hutchinson_diag(product, probes)
        blocks: Any = curvature.r_med(diag)
        return (
            {
                "loss": loss_fn(params, batch),
                "hessian_diag": flat(diag),
                "r_med": curvature.r_med(diag, per_block=False),
                "r_med_signed": curvature.r_med(diag, per_block=False, absolute=False),
                "hutchinson_diag_20": flat(estimate),
                "r_med_from_hutchinson_20": curvature.r_med(estimate, per_block=False),
            }
            | {f"diag_{name}": getattr(diag, name) for name in diag._fields}
            | {f"r_med_{name}": ratio for name, ratio in blocks.items()}
        )

    got = run(results, weights_of(x), (x["x"], x["y"]), x["rademacher_probes"])
    # Finite differences of the loss, by which the makers checked the recorded diagonal.
    assert_recorded(case, got, "out__hessian_diag_finite_difference")


def linear_network(params: Any, batch: Any) -> jax.Array:
    x, y = batch
    return jnp.sum((params[1] @ params[0] @ x - y) ** 2) / (2.0 * x.shape[1])


def check_linear_r_med(case: Case) -> None:
    x = given(case)

    def results(params: Any, batch: Any) -> Arrays:
        diag = curvature.hessian_diag(linear_network, params, batch)
        blocks: Any = curvature.r_med(diag)
        product = curvature.hvp_fn(linear_network, params, batch)
        rows = jax.vmap(lambda row: like(params, row))(jnp.eye(flat(params).size))
        return {
            "loss": linear_network(params, batch),
            "diag_W1": diag[0],
            "diag_W2": diag[1],
            "r_med_1": blocks["0"],
            "r_med_2": blocks["1"],
            "r_med": curvature.r_med(diag, per_block=False),
            "hessian": jax.vmap(lambda tree: flat(product(tree)))(rows),
        }

    assert_recorded(case, run(results, (x["W1"], x["W2"]), (x["X"], x["Y"])))


def check_preconditioned_sharpness(case: Case) -> None:
    x = given(case)
    b2, eps, count = float(x["beta2"]), float(x["eps"]), int(x["t"]) + 1
    at = jnp.zeros_like(x["nu"])

    def parts(b1: float) -> tuple[Any, Any]:
        state = optax.ScaleByAdamState(jnp.asarray(count, jnp.int32), at, x["nu"])
        tx = aj.adam(1e-3, b1=b1, b2=b2, eps=eps)
        key = jax.random.key(KEY)
        return curvature.preconditioner(tx, state, at), curvature.preconditioned_sharpness(
            quadratic, at, x["H"], tx, state, key=key
        )

    scale, sharpness = parts(float(x["beta1"]))
    uncorrected_scale, uncorrected_sharpness = parts(0.0)
    root = jnp.sqrt(scale)
    assert_recorded(
        case,
        {
            "P": scale,
            "lambda_max": sharpness,
            "P_without_beta1_correction": uncorrected_scale,
            "lambda_max_without_beta1_correction": uncorrected_sharpness,
            "eigenvalues": spectrum(quadratic, at, x["H"] / root[:, None] / root[None]),
        },
    )


CHECKS: dict[str, Callable[[Case], None]] = {
    "lanczos": check_lanczos,
    "slq": check_slq,
    "hutchinson": check_hutchinson,
    "lanczos_mlp": check_network_lanczos,
    "r_med": check_r_med,
    "preconditioned_sharpness": check_preconditioned_sharpness,
}
