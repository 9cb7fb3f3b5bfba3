"""Run the experiment on KOALA: training, limits of its filter, and single steps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import koala_v
from adamw_jax.lab.experiments import common
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.models import Network, mlp
from adamw_jax.lab.recipes import ADAM, Arm, catalogue, settings
from adamw_jax.lab.tasks import get_task
from adamw_jax.lab.train import Runner

V, M, SGD, ADAMS = "KOALA-V", "KOALA-M", "SGD", "Adam"
FILTERS, RIVALS = (V, M), (SGD, ADAMS)
USUAL = {V: 1.0, M: 1.0, SGD: 0.1, ADAMS: 0.001}
EACH, WHOLE = "R of every example", "R of the batch"
NOISES = (EACH, WHOLE)
MARGIN = common.ACCURACY_MARGIN
WITHIN = 0.02
RANGE_MARGIN = 0.25
STEP_MARGIN = 0.1
TOLERANCE = 0.001


@dataclasses.dataclass(frozen=True)
class Settings(common.Training):
    """A grid around each usual learning rate, and two measurements of the filter.

    Attributes:
      factors: factors of the usual learning rate, in equal steps of the logarithm.
      decades: distance of two neighbours of the grid.
      norms: norms of the constant gradient, with which the uncertainty converges.
      noises: R of these runs.
      growths: q of these runs.
      settling: steps of these runs.
      watched: steps of training at a constant learning rate of 1 whose length is recorded.
    """

    tasks: tuple[str, ...] = ("digits", "digits_noisy")
    epochs: tuple[int, ...] = (30, 30)
    points: int = 1
    factors: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    decades: float = 0.5
    norms: tuple[float, ...] = (0.1, 1.0, 10.0)
    noises: tuple[float, ...] = (0.1, 1.0, 10.0)
    growths: tuple[float, ...] = (0.1, 1.0)
    settling: int = 300
    watched: int = 300


def polyak_share(strength: Any) -> Any:
    """Return the limit share of Polyak's step in KOALA-V; ``strength`` is q |g|^2 / R.

    The variance before a measurement converges to P = (q + sqrt(q^2 + 4 q R / |g|^2)) / 2, so that
    p = P |g|^2 / R = (strength + sqrt(strength^2 + 4 strength)) / 2, and the step is p / (p + 1) of
    (loss - target) / |g|^2.
    """
    p = (strength + np.sqrt(strength**2 + 4 * strength)) / 2
    return p / (p + 1)


def measure(s: Settings, runner: Runner) -> Rows:
    """Measure the filter, then train."""
    rows = [{"kind": "limit", **row} for row in _limits(s)]
    for task in s.tasks:
        rows += _steps(s, task)
    trained = common.train_all(s, runner, lambda _: _arms(s))
    return rows + [{"kind": "training", **row} for row in trained]


def _arms(s: Settings) -> list[Arm]:
    recipes = {
        V: (catalogue("koala_v"), ()),
        M: (catalogue("koala_m"), ()),
        SGD: (catalogue("sgdw", label="sgd"), settings(momentum=0.9)),
        ADAMS: (ADAM, settings(b2=0.999, l2=0.0, weight_decay=0.0)),
    }
    return [
        Arm(group, recipe, "cosine", round(USUAL[group] * factor, 8), numbers)
        for group, (recipe, numbers) in recipes.items()
        for factor in s.factors
    ]


def _losses(network: Network, params: Any, inputs: jax.Array, labels: jax.Array) -> Any:
    """Return the mean loss of a batch and the mean squared loss of its examples."""
    logits = network.apply(params, inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), jnp.mean(losses**2)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *trees)


def _limits(s: Settings) -> Rows:
    """Return the final share of Polyak's step under a constant gradient and R."""
    rows: Rows = []
    loss = jnp.float32(1)

    def share(norm: jax.Array, noise: jax.Array, growth: jax.Array) -> jax.Array:
        tx: Any = koala_v(q=lambda count: growth, r=lambda count: noise)
        gradient = norm * jnp.asarray([0.6, 0.8], jnp.float32)

        def step(state: Any, _: Any) -> Any:
            updates, state = tx.update(gradient, state, gradient, value=loss)
            return state, jnp.linalg.norm(updates) * norm / loss

        return jax.lax.scan(step, tx.init(gradient), None, length=s.settling)[1][-1]

    cases = list(itertools.product(s.norms, s.noises, s.growths))
    found = jax.jit(jax.vmap(share))(*jnp.asarray(cases, jnp.float32).T)
    for (norm, noise, growth), value in zip(cases, np.asarray(found), strict=True):
        rows.append({"norm": norm, "noise": noise, "q": growth, "share": float(value)})
    return rows


def _steps(s: Settings, task_name: str) -> Rows:
    """Return step / gradient, and the largest share of Polyak's step in a leaf, over training."""
    task = get_task(task_name)
    network, tx = mlp(task.features, task.classes), koala_v(1.0)
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)

    gradient_of = jax.value_and_grad(functools.partial(_losses, network), has_aux=True)

    @jax.jit
    @jax.vmap
    def run(params: Any, order: jax.Array, each: jax.Array) -> Any:
        def step(carry: Any, batch: jax.Array) -> Any:
            params, state = carry
            (loss, mean), gradient = gradient_of(params, inputs[batch], labels[batch])
            square = jnp.where(each, mean, loss**2)
            updates, state = tx.update(gradient, state, params, value=loss, value_sq_mean=square)
            sizes = [
                (jnp.linalg.norm(u.ravel()), jnp.linalg.norm(g.ravel()))
                for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(gradient), strict=True)
            ]
            share = jnp.max(jnp.stack([u * g / loss for u, g in sizes]))
            u, g = (jnp.linalg.norm(jnp.stack(norms)) for norms in zip(*sizes, strict=True))
            return (optax.apply_updates(params, updates), state), (u / g, share)

        return jax.lax.scan(step, (params, tx.init(params)), order)[1]

    lanes = list(itertools.product(NOISES, s.seeds))
    orders = {
        seed: np.random.default_rng(seed).integers(
            0, len(task.train), (s.watched, common.BATCH_SIZE), np.int32
        )
        for seed in s.seeds
    }
    params = _stacked([network.init(seed) for _, seed in lanes])
    order = jnp.asarray(np.stack([orders[seed] for _, seed in lanes]))
    each = jnp.asarray([noise == EACH for noise, _ in lanes])
    lengths, shares = (np.asarray(x) for x in run(params, order, each))
    return [
        {"kind": "step", "task": task_name, "series": noise, "seed": seed, "step": i + 1,
         "length": float(lengths[j, i]), "share": float(shares[j, i])}
        for j, (noise, seed) in enumerate(lanes)
        for i in range(s.watched)
    ]  # fmt: skip
