"""Run the experiment on Adafactor's updates, and compute their exact size."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import adafactor, scale_by_adafactor
from adamw_jax.lab.experiments.parts import stacked
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.models import mlp
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner, finite

SCHEDULE = "1 - t^-0.8"
UNCLIPPED = 1e30
TOLERANCE = 0.05
LOG_MARGIN, ACCURACY_MARGIN = 0.05, 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """Gradients of pure noise that grow suddenly, then training without warm-up.

    Attributes:
      b2: constant decay rates of the second moment; the last is the slow one that is judged.
      jump: deviation of the noise after ``before`` steps; 1 until then.
      before: steps until the jump.
      after: steps after the jump.
      weights: gradients per step.
      task: task for training.
      learning_rates: constant, from the first step.
      steps: steps of training.
      batch_size: examples per step.
      seeds: seeds of the noise, of initial weights and of the order of examples.
      points: windows of training; the largest RMS of each is recorded.
    """

    b2: tuple[float, ...] = (0.9, 0.99, 0.999)
    jump: float = 100.0
    before: int = 3000
    after: int = 600
    weights: int = 2048
    task: str = "mnist1d"
    learning_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03)
    steps: int = 800
    batch_size: int = 100
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    points: int = 40


def label(b2: float) -> str:
    """Return the name of a decay rate in tables and pictures; 0 is the schedule."""
    return f"b2 {b2:g}" if b2 else SCHEDULE


def exponent(b2: Any) -> Callable[[Any], jax.Array]:
    """Return the ``decay_rate`` with which Adafactor has Adam's corrected second moment.

    A corrected average with constant b2 gives the newest square the weight
    ``(1 - b2) / (1 - b2^t) = t^-decay_rate``. A b2 of 0 stands for the paper's 0.8.
    """

    def rate(count: Any) -> jax.Array:
        t = jnp.asarray(count, jnp.float32) + jnp.float32(1)
        constant = jnp.where(b2 > 0, b2, jnp.float32(0.5))
        newest = (1 - constant) / -jnp.expm1(t * jnp.log(constant))
        later = -jnp.log(newest) / jnp.log(jnp.maximum(t, jnp.float32(2)))
        # At the first step every power of 1 is 1.
        return jnp.where((t < 2) | (b2 == 0), jnp.float32(0.8), later)

    return rate


def newest_weight(b2: float, t: np.ndarray) -> np.ndarray:
    """Return the weight of the newest square in the second moment at step t."""
    return (1 - b2) / (1 - b2**t) if b2 else t**-0.8


def expected_rms(b2: float, sizes: np.ndarray) -> float:
    """Return the root of the mean of g^2 / V at the last step, for normal g of these deviations.

    V = sum of w_i g_i^2, and 1 / V is the integral of exp(-x V) over x. So the mean over
    independent normal g_i is a product under one integral:

        E g_T^2 / V = integral of (1 + 2 c_T x)^-1 prod_i (1 + 2 c_i x)^(-1/2) dx

    with c_i = w_i sizes_i^2 / sizes_T^2.
    """
    weight = newest_weight(b2, np.arange(1, len(sizes) + 1, dtype=np.float64))
    left = np.append(np.cumprod((1 - weight)[:0:-1])[::-1], 1.0)  # of step i, at the last
    c = weight * left * (sizes / sizes[-1]) ** 2
    x = np.geomspace(1e-9, 1e13, 220)
    log = -0.5 * np.log1p(np.multiply.outer(x, 2 * c)).sum(axis=1)
    value = np.exp(log) / (1 + 2 * c[-1] * x)
    return float(np.sqrt(np.trapezoid(value * x, np.log(x))))


def rms(tree: Any) -> jax.Array:
    """Return the largest root mean square of a leaf."""
    return jnp.stack([jnp.sqrt(jnp.mean(jnp.square(x))) for x in jax.tree.leaves(tree)]).max()


def arguments(b2: Any, threshold: Any, factored: bool = True) -> dict[str, Any]:
    """Return arguments of Adafactor with steps of absolute size, factored as in the paper."""
    return {
        "decay_rate": exponent(b2),
        "clipping_threshold": threshold,
        "multiply_by_parameter_scale": False,
        "factored": factored,
        "min_dim_size_to_factor": 1,
    }


def measure(s: Settings, runner: Runner) -> Rows:
    """Measure updates under growing noise, then train."""
    lanes = 5 * len(s.learning_rates)
    runner.progress.begin("too large updates", lanes + 1)
    rows = _jump(s)
    runner.progress.advance(1, "gradients that grow")
    rows += _train(s, runner)
    runner.progress.end()
    return rows


def _sizes(s: Settings) -> np.ndarray:
    return np.repeat([1.0, s.jump], [s.before, s.after])


def _noted(s: Settings) -> np.ndarray:
    """Return the recorded steps after the jump."""
    return np.unique(np.geomspace(1, s.after, 30).astype(int))


def _jump(s: Settings) -> Rows:
    """Measure the RMS of the direction, unclipped and clipped, around the jump."""
    cases = [(b2, seed) for b2 in (*s.b2, 0.0) for seed in s.seeds]

    @jax.jit
    @jax.vmap
    def watch(b2: jax.Array, key: jax.Array) -> Any:
        free: Any = scale_by_adafactor(**arguments(b2, None))
        clipped: Any = scale_by_adafactor(**arguments(b2, 1.0))
        zeros = jnp.zeros(s.weights, jnp.float32)

        def step(carry: Any, size: jax.Array) -> Any:
            key, *states = carry
            key, now = jax.random.split(key)
            g = size * jax.random.normal(now, (s.weights,), jnp.float32)
            seen = []
            for i, tx in enumerate((free, clipped)):
                u, states[i] = tx.update(g, states[i], zeros)
                seen.append(rms(u))
            return (key, *states), jnp.stack(seen)

        carry = (key, free.init(zeros), clipped.init(zeros))
        return jax.lax.scan(step, carry, jnp.asarray(_sizes(s), jnp.float32))[1]

    b2 = jnp.asarray([b2 for b2, _ in cases], jnp.float32)
    seen = np.asarray(watch(b2, jnp.stack([jax.random.key(seed) for _, seed in cases])))
    return [
        {"part": "jump", "decay": label(b2), "seed": seed, "step": int(n),
         "rms": float(mine[s.before + n - 1, 0]), "clipped": float(mine[s.before + n - 1, 1])}
        for (b2, seed), mine in zip(cases, seen, strict=True)
        for n in _noted(s)
    ]  # fmt: skip


def _train(s: Settings, runner: Runner) -> Rows:
    """Train every learning rate with every seed; record the RMS before clipping."""
    task = get_task(s.task)
    network = mlp(task.features, task.classes)
    per_epoch = len(task.train) // s.batch_size

    def order(seed: int) -> np.ndarray:
        rng = np.random.default_rng([seed, 7])
        drawn = [rng.permutation(len(task.train)) for _ in range(-(-s.steps // per_epoch))]
        cut = [p[: per_epoch * s.batch_size].reshape(per_epoch, -1) for p in drawn]
        return np.concatenate(cut)[: s.steps].astype(np.int32)

    def loss_of(params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        logits = network.apply(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def run(factored: bool, numbers: jax.Array, params: Any, order: jax.Array, data: Any) -> Any:
        (inputs, labels), *held_out = data
        b2, threshold, rate = numbers
        free: Any = scale_by_adafactor(**arguments(b2, None, factored))
        tx: Any = adafactor(lambda count: rate, **arguments(b2, threshold, factored))

        def step(carry: Any, batch: jax.Array) -> Any:
            params, state, watched = carry
            gradient = jax.grad(loss_of)(params, inputs[batch], labels[batch])
            direction, watched = free.update(gradient, watched, params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state, watched), rms(direction)

        carry = (params, tx.init(params), free.init(params))
        carry, seen = jax.lax.scan(step, carry, order)
        metrics = [loss_of(carry[0], inputs, labels)]
        for x, y in held_out:
            right = (network.apply(carry[0], x).argmax(-1).astype(y.dtype) == y).astype(jnp.float32)
            metrics += [loss_of(carry[0], x, y), right.mean()]
        return jnp.stack(metrics), seen.reshape(s.points, -1).max(axis=1)

    splits = (task.train, task.validation, task.test)
    data = [(jnp.asarray(split.inputs), jnp.asarray(split.labels)) for split in splits]
    params = [network.init(seed) for seed in s.seeds]
    first = stacked(params)
    orders = jnp.asarray(np.stack([order(seed) for seed in s.seeds]))
    seeds = {
        factored: jax.jit(jax.vmap(functools.partial(run, factored), in_axes=(None, 0, 0, None)))
        for factored in (True, False)
    }
    names = ("train_loss", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
    rows: Rows = []
    forms = [*itertools.product((s.b2[-1], 0.0), (UNCLIPPED, 1.0), (True,)), (0.0, 1.0, False)]
    for (b2, threshold, factored), rate in itertools.product(forms, s.learning_rates):
        numbers = jnp.asarray([b2, threshold, rate], jnp.float32)
        metrics, seen = (np.asarray(x) for x in seeds[factored](numbers, first, orders, data))
        rows += [
            {"part": "training", "decay": label(b2), "clipping": threshold < UNCLIPPED,
             "factored": factored,
             "learning_rate": rate, "seed": seed, "peak": finite(seen[i].max()),
             "path": [finite(x) for x in seen[i]],
             **{k: finite(v) for k, v in zip(names, metrics[i], strict=True)}}
            for i, seed in enumerate(s.seeds)
        ]  # fmt: skip
        runner.progress.advance(1, f"{label(b2)}, lr {rate:g}")
    return rows
