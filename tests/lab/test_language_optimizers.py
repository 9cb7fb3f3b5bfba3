"""The experiment on other optimizers of a language model: its optimizers, and its verdicts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.lab import Data, Task
from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.experiments.language_optimizers import (
    AHEAD,
    DECOUPLED,
    EIGHT,
    FACTORED,
    SGD,
    SIGN,
    arms,
    smoothness,
)
from adamw_jax.lab.networks import LSTM_CELLS
from adamw_jax.lab.recipes import Carrier

pytestmark = pytest.mark.quick

EXPERIMENT = get_experiment("language_optimizers")
GROUPS = (DECOUPLED, EIGHT, AHEAD, FACTORED, SIGN, SGD)


def test_states_are_what_the_names_say():
    params = {"w": jnp.ones((80, 60))}
    sizes = {}
    for arm in arms(EXPERIMENT.settings("cpu"), LSTM_CELLS):
        carrier = Carrier(jnp.ones(5), jnp.full(5, 0.9))
        state = jax.eval_shape(arm.recipe.build(carrier, dict(arm.settings)).init, params)
        leaves = jax.tree.leaves(state)
        sizes[arm.group] = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    whole = params["w"].nbytes
    assert 2 * whole <= sizes[DECOUPLED] < 2.1 * whole
    assert sizes[EIGHT] < 0.6 * whole
    assert 3 * whole <= sizes[AHEAD] < 3.1 * whole
    assert sizes[FACTORED] < 0.1 * whole
    assert sizes[SGD] < 1.1 * whole
    assert set(sizes) == set(GROUPS)


def rows_of(losses, power):
    noise = np.array([0.002, -0.001, 0.001, -0.002])
    rows = [
        {"task": "LSTM", "network": LSTM_CELLS, "group": group, "arm": group, "stage": stage,
         "learning_rate": rate, "weight_decay": 0.0, "seed": seed, "step": 9, "steps": 9,
         **{key: losses[group] + e for key in ("test_loss", "validation_loss", "test_cache_loss",
                                               "validation_cache_loss", "validation_perplexity")}}
        for group in GROUPS
        for stage, rate in (("fresh", 0.02), ("tune", 0.01), ("tune", 0.02))
        for seed, e in enumerate(noise if group == DECOUPLED else noise[::-1])
    ]  # fmt: skip
    return rows + [
        {"stage": "smoothness", "network": LSTM_CELLS, "seed": seed, "gradient": g,
         "smoothness": 3 * g ** (power + 0.01 * seed)}
        for seed, g in itertools.product(range(4), (0.1, 0.5, 2.0))
    ]  # fmt: skip


def test_verdicts():
    settings = EXPERIMENT.settings("cpu")
    losses = {DECOUPLED: 4.0, EIGHT: 4.01, FACTORED: 4.1, AHEAD: 3.9, SIGN: 3.99, SGD: 4.2}
    result = EXPERIMENT.analyse(settings, rows_of(losses, power=0.7))
    words = [verdict.word for verdict in result.verdicts]
    assert words == ["shown", "contradicted", "shown", "shown", "shown", "shown"]
    assert "p = +0.71" in result.verdicts[-1].evidence
    assert len(result.remarks) == len(GROUPS)  # each chose the highest of its rates
    result = EXPERIMENT.analyse(settings, rows_of({**losses, SGD: 3.9}, power=-0.5))
    assert [verdict.word for verdict in result.verdicts[-2:]] == ["contradicted", "contradicted"]


def test_smoothness_of_a_parabola_is_its_curvature():
    batches = [np.full(1, 2.0, np.float32)]
    parabola = Task(
        lambda key: ({"w": jnp.ones(3)}, jnp.zeros(())),
        lambda params, state, batch: (0.5 * batch[0] * jnp.sum(params["w"] ** 2), state + 1),
        Data(batches, batches, batches),
        stateful=True,
    )
    arm = next(arms(EXPERIMENT.settings("cpu"), LSTM_CELLS))
    rows = smoothness(parabola, arm, seed=0, steps=8, points=4)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    for row in rows:
        assert row["smoothness"] == pytest.approx(2, rel=1e-3)
    assert rows[0]["gradient"] == pytest.approx(2 * 3**0.5, rel=0.05)
