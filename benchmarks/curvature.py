"""Measure the cost of functions of `adamw_jax.curvature`: products and extra memory.

    python -m benchmarks.curvature

Products are counted as they run. Memory is what XLA reserves for temporaries and results on this
platform, in float32 vectors of the parameters' length. Prints a table in Markdown.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import adamw_jax
from adamw_jax import curvature, diagnostics

SIZES = (64, 310, 310, 100, 10)
EXAMPLES = 256
KEY = jax.random.key(0)


def model_fn(params: Any, batch: Any) -> jax.Array:
    """Apply a multilayer perceptron."""
    x = batch[0]
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def output_loss(outputs: Any, batch: Any) -> jax.Array:
    """Return the cross-entropy."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], axis=1)
    return -jnp.mean(chosen)


LOSS = curvature.CompositeLoss(model_fn, output_loss)


def make() -> tuple[Any, Any]:
    """Draw parameters and a batch."""
    shapes = list(itertools.pairwise(SIZES))
    keys = jax.random.split(KEY, len(shapes) + 2)
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys, shapes, strict=False)
    ]
    x = jax.random.normal(keys[-1], (EXAMPLES, SIZES[0]))
    return params, (x, jax.random.randint(keys[-2], (EXAMPLES,), 0, SIZES[-1]))


ADAM = adamw_jax.adam(1e-3)


def preconditioned(params: Any, batch: Any, how: Any) -> jax.Array:
    """Compute the sharpness under Adam's preconditioner after one step."""
    _, state = ADAM.update(params, ADAM.init(params), params)
    return curvature.preconditioned_sharpness(
        LOSS, params, batch, ADAM, state, key=KEY, product=how
    )


def in_four(batch: Any) -> list[Any]:
    """Return the batch in four pieces."""
    return [jax.tree.map(lambda x, i=i: x[i::4], batch) for i in range(4)]


def noise(params: Any, batch: Any, how: Any) -> Any:
    """Compute the noise of four gradients, weighted by the curvature."""
    gradients = [jax.grad(LOSS)(params, piece) for piece in in_four(batch)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    return diagnostics.curvature_noise_scale(stacked, how(LOSS, params, batch))


def of_last_layer(last: Any, rest: Any) -> jax.Array:
    """Return the loss as a function of one layer; the others are given with the batch."""
    return LOSS([*rest["others"], last], rest["batch"])


CALLS: dict[str, Callable[..., Any]] = {
    "hvp": lambda p, b, how: how(LOSS, p, b)(p),
    "sharpness": lambda p, b, how: curvature.sharpness(LOSS, p, b, key=KEY, product=how),
    "preconditioned_sharpness": preconditioned,
    "hessian_noise, 4 batches": lambda p, b, how: diagnostics.hessian_noise(
        LOSS, p, in_four(b), KEY, product=how
    ),
    "stationarity_report, 4 batches": lambda p, b, how: diagnostics.stationarity_report(
        LOSS, p, in_four(b), 0.1, product=how
    ),
    "curvature_noise_scale, 4 gradients": noise,
    "lanczos(num_steps=20), as in learn_rates": lambda p, b, how: (
        curvature.lanczos(how(LOSS, p, b), jax.tree.map(jnp.ones_like, p), 20).ritz_values
    ),
    "top_eigenvalues(k=1)": lambda p, b, how: curvature.top_eigenvalues(
        LOSS, p, b, key=KEY, product=how
    ),
    "top_eigenvalues(k=10)": lambda p, b, how: curvature.top_eigenvalues(
        LOSS, p, b, 10, key=KEY, product=how
    ),
    "spectral_density(k=64, num_probes=4)": lambda p, b, how: curvature.spectral_density(
        LOSS, p, b, key=KEY, product=how
    ),
    "hessian_trace(num=64, chunk=64)": lambda p, b, how: curvature.hessian_trace(
        LOSS, p, b, key=KEY, product=how
    ),
    "hessian_trace(num=64, chunk=1)": lambda p, b, how: curvature.hessian_trace(
        LOSS, p, b, key=KEY, chunk=1, product=how
    ),
    "hessian_diag(chunk=64), the last 1,010 values": lambda p, b, how: curvature.hessian_diag(
        of_last_layer, p[-1], {"others": p[:-1], "batch": b}, product=how
    ),
    'hessian_diag(method="hutchinson", num=64, chunk=8)': lambda p, b, how: curvature.hessian_diag(
        LOSS, p, b, method="hutchinson", num=64, key=KEY, chunk=8, product=how
    ),
    'hessian_diag(method="xdiag", num=32)': lambda p, b, how: curvature.hessian_diag(
        LOSS, p, b, method="xdiag", num=32, key=KEY, product=how
    ),
}


def products_of(call: Callable[..., Any], params: Any, batch: Any) -> int:
    """Count the products of a call while it runs."""
    made = [0]

    def counted(loss_fn: Any, params: Any, batch: Any) -> Any:
        linear = curvature.hvp_fn(loss_fn, params, batch)

        def product(v: Any) -> Any:
            jax.debug.callback(lambda _: made.__setitem__(0, made[0] + 1), jax.tree.leaves(v)[0])
            return linear(v)

        return product

    jax.block_until_ready(call(params, batch, counted))
    jax.effects_barrier()
    return made[0]


def vectors_of(call: Callable[..., Any], params: Any, batch: Any) -> float:
    """Return the memory of a call in vectors of the parameters' length."""
    compiled = jax.jit(lambda p, b: call(p, b, curvature.hvp_fn)).lower(params, batch).compile()
    found = compiled.memory_analysis()
    assert found is not None, "this platform does not tell"
    size = sum(x.size for x in jax.tree.leaves(params))
    return (found.temp_size_in_bytes + found.output_size_in_bytes) / (4 * size)


def seconds_of(fn: Callable[..., Any], *arguments: Any) -> float:
    """Return the shortest of many runs of a compiled function."""
    run, least = jax.jit(fn), float("inf")
    for _ in range(30):
        start = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        least = min(least, time.perf_counter() - start)
    return least


def main() -> None:
    """Print the table."""
    params, batch = make()
    size = sum(x.size for x in jax.tree.leaves(params))
    gradient = seconds_of(jax.grad(LOSS), params, batch)
    products = {
        "Hessian": seconds_of(lambda p, b: curvature.hvp(LOSS, p, b, p), params, batch),
        "Gauss-Newton": seconds_of(
            lambda p, b: curvature.gauss_newton_product(LOSS, p, b, p), params, batch
        ),
    }
    print(f"{size:,} parameters, {EXAMPLES} examples, {jax.default_backend()}")
    for name, seconds in products.items():
        print(f"one {name} product alone: {seconds / gradient:.1f} gradients")
    print("\n| call | products | memory, vectors |\n|---|---|---|")
    for name, call in CALLS.items():
        made = products_of(call, params, batch)
        print(f"| `{name}` | {made} | {vectors_of(call, params, batch):.0f} |", flush=True)


if __name__ == "__main__":
    main()
