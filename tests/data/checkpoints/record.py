"""Record checkpoints of this release, which later ones must read; --check goes on from them.

A folder is never written again: a release whose format or states are others adds its own.
``after.json`` beside each checkpoint has the parameters two steps later.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamw_jax as aj
from adamw_jax.state import restore_checkpoint, save_checkpoint

FOLDER = pathlib.Path(__file__).parent
RELEASE = ".".join(aj.__version__.split(".")[:2])
BEFORE, STEPS = 3, 5
RUNS = {
    "plain": aj.adamw(optax.linear_schedule(0.1, 0.0, 10)),
    "guarded": aj.skip_bad_steps(
        aj.compose(
            aj.clip_gradient(1.0),
            aj.adamw(0.1, storage=aj.storage.choose("8bit", min_size=64)),
            aj.lookahead(sync_period=2),
            aj.update.stochastic_rounding(seed=3),
        ),
        loss_spike=6.0,
        window=4,
    ),
    "8bit": aj.adan(0.1, storage=aj.storage.choose("8bit", min_size=64)),
    "roots": aj.adamw(0.1, storage=aj.storage.choose("roots", min_size=64)),
    "averages": aj.compose(aj.sgdw(0.1), aj.average_iterates(kind="ema")),
    "schedule-free": aj.schedule_free_adamw(0.1),
    "rules": aj.adamw(
        aj.one_cycle(0.1, 10),
        rules=aj.parameter_rules(
            {"kernel": aj.Rule(learning_rate_factor=0.5), "bias": aj.Rule(freeze=True)}
        ),
    ),
    "partition": optax.partition(
        {"first": aj.adamw(0.1), "second": aj.lookahead(aj.sgdw(0.1), 2)},
        {"kernel": "first", "bias": "second"},
    ),
    "packed": aj.pack_small_leaves(aj.adamw(0.1, weight_decay=0.1)),
}
EXACT = ("plain", "averages", "schedule-free", "rules")
"""Elsewhere a code of 8 bits or a bfloat16 may fall on the other side with another XLA."""


def start() -> Any:
    kernel = np.sin(np.arange(64.0)).reshape(4, 16).astype("f4")
    return {"kernel": jnp.asarray(kernel), "bias": jnp.ones(3, jnp.bfloat16)}


def train(tx: Any, params: Any, state: Any, steps: range) -> tuple[Any, Any]:
    update = jax.jit(tx.update)
    for i in steps:
        gradient = jax.tree.map(
            lambda p, i=i: jnp.asarray(np.cos(i + np.arange(p.size)).reshape(p.shape), p.dtype),
            params,
        )
        updates, state = update(gradient, state, params, value=jnp.float32(i))
        params = optax.apply_updates(params, updates)
    return params, state


def as_lists(params: Any) -> dict[str, list[float]]:
    return {k: np.asarray(p, "f8").ravel().tolist() for k, p in params.items()}


def record(name: str, into: pathlib.Path) -> None:
    """Save a run and what comes after; in a folder of no meaning, for Orbax writes its path."""
    tx = RUNS[name]
    params, state = train(tx, start(), tx.init(start()), range(BEFORE))
    with tempfile.TemporaryDirectory() as folder:
        rng, data = jax.random.key(7), {"position": BEFORE}
        save_checkpoint(folder, BEFORE, tx, params, state, rng=rng, data=data)
        shutil.copytree(folder, into)
    params, _ = train(tx, params, state, range(BEFORE, STEPS))
    (into / "after.json").write_text(json.dumps(as_lists(params), indent=1) + "\n")


def check(folder: pathlib.Path) -> None:
    """Restore a recorded run, and go on as it did."""
    tx, expected = RUNS[folder.name], json.loads((folder / "after.json").read_text())
    back = restore_checkpoint(folder, tx, start())
    assert (back.step, back.data) == (BEFORE, {"position": BEFORE})
    assert back.rng == jax.random.key(7)
    params, _ = train(tx, back.params, back.state, range(BEFORE, STEPS))
    for key, values in as_lists(params).items():
        limit = 1e-6 if folder.name in EXACT else 1e-2
        np.testing.assert_allclose(values, expected[key], rtol=limit, atol=limit)


def main() -> None:
    if "--check" in sys.argv:
        for folder in recorded():
            check(folder)
            print(f"{folder.relative_to(FOLDER)}: goes on as recorded")
        return
    for name in RUNS:
        if not (FOLDER / RELEASE / name).exists():
            record(name, FOLDER / RELEASE / name)


def recorded() -> list[pathlib.Path]:
    return sorted(file.parent for file in FOLDER.glob("*/*/after.json"))


if __name__ == "__main__":
    main()
