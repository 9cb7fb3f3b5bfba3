"""The compressors and what is known of them: a new one is a row here."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax import communication as comm

WORKERS = 8


SHAPES = {"bias": (7,), "kernel": (12, 9), "scale": ()}


@dataclasses.dataclass(frozen=True)
class Row:
    """A compressor and what is known of it.

    Attributes:
      make: the compressor.
      loss: for contracting ones, ``d -> c`` with |x - C(x)|^2 <= (1 - c) |x|^2 for d elements.
      noise: for unbiased ones, ``d -> w`` with E|x - C(x)|^2 <= w |x|^2.
      bytes: payload for a float32 array of (64, 64).
      rate: learning rate of the run that is compared with the uncompressed one.
    """

    make: comm.Compressor
    bytes: int
    loss: Any = None
    noise: Any = None
    rate: float = 0.1


def quantized(d: int, levels: int) -> float:
    return min(d / levels**2, d**0.5 / levels)


TABLE = {
    "scaled_sign": Row(comm.scaled_sign(), 512 + 4, loss=lambda d: 1 / d),
    "one_bit": Row(comm.one_bit(), 512 + 2 * 64 * 4, loss=lambda d: 1 / d),
    "qsgd": Row(comm.qsgd(), 2048 + 8 * 4, noise=lambda d: quantized(d, 7)),
    "qsgd, 2 bits": Row(comm.qsgd(2, 10), 1024 + 410 * 4, noise=lambda d: quantized(10, 1)),
    "terngrad": Row(comm.terngrad(), 1024 + 4, noise=lambda d: d**0.5),
    "power_sgd": Row(comm.power_sgd(2), 2 * 2 * 64 * 4, loss=lambda d: 0.0),
    "top_k": Row(comm.top_k(0.2), 819 * (4 + 2), loss=lambda d: max(1, int(0.2 * d)) / d),
    "random_k": Row(comm.random_k(0.2), 819 * 4, loss=lambda d: 0.0),
    "random_k, unbiased": Row(
        comm.random_k(0.25, unbiased=True), 1024 * 4, noise=lambda d: d / max(1, int(d / 4)) - 1
    ),
    "qsgd, 8 bits": Row(comm.qsgd(8), 4096 + 8 * 4, noise=lambda d: quantized(d, 127)),
    "majority_vote": Row(comm.majority_vote(), 512, rate=0.01),
}
"""The first row and the sixth are those of tables of which make test runs one or two."""

every = pytest.mark.parametrize("name", TABLE)


def arrays(seed: int, workers: int = WORKERS) -> Any:
    """Gradients of all workers, whose elements are of different sizes; one leaf is 0."""
    rng = np.random.default_rng(seed)
    tree = {k: jnp.asarray(rng.normal(size=(workers, *s)) ** 3) for k, s in SHAPES.items()}
    return tree | {"zero": jnp.zeros((workers, 5, 5))}


PARAMS = jax.tree.map(lambda x: x[0], arrays(0))


def simulated(tx: Any, workers: int = WORKERS) -> tuple[Any, Any]:
    """The first state and the update of all workers, as one compiled step on one device."""
    start = jax.vmap(tx.init, axis_name="data", in_axes=None, axis_size=workers)
    step = jax.vmap(tx.update, axis_name="data", in_axes=(0, 0, None))
    return jax.jit(start)(PARAMS), jax.jit(step)


def stage_of(compressor: Any, workers: int = WORKERS, **options: Any) -> Any:
    return comm.compressed_mean(compressor, "data", workers, **options)


CONTRACTING = [name for name, row in TABLE.items() if row.make.contracts]


UNBIASED = [name for name, row in TABLE.items() if row.noise]
