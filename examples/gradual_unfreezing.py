"""Fine-tune with gradual unfreezing, as fastai's freeze_to: first the head, then module by module.

A module that joins gets moments, a count and a bias correction of its own, so its first steps are
those of a fresh AdamW. The schedule and the state of the other modules go on.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import adamw_jax as aj

ORDER = ("head", "second", "first")
STEPS = 60


def predict(params: Any, x: jax.Array) -> jax.Array:
    """Apply three dense layers."""
    for name in ("first", "second"):
        x = jnp.tanh(x @ params[name]["kernel"] + params[name]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the mean squared error."""
    return jnp.mean((predict(params, x)[:, 0] - y) ** 2)


def optimizer(modules: int) -> Any:
    """Make AdamW that trains the last modules only, with one 1cycle for the whole run."""
    schedule = aj.one_cycle(3e-2, STEPS * len(ORDER))
    still = tuple(f"{name}/*" for name in ORDER[modules:])
    return aj.compose(aj.adamw(schedule, weight_decay=1e-2), frozen=still or None)


@functools.partial(jax.jit, static_argnums=0)
def step(update: Any, params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
    """Take one step."""
    loss, gradients = jax.value_and_grad(loss_fn)(params, x, y)
    updates, state = update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def main() -> None:
    """Train the head, then two modules, then all."""
    keys = jax.random.split(jax.random.key(0), 5)
    sizes = {"first": (4, 16), "second": (16, 16), "head": (16, 1)}
    params = {
        name: {"kernel": jax.random.normal(key, size) / size[0] ** 0.5, "bias": jnp.zeros(size[1])}
        for key, (name, size) in zip(keys, sizes.items(), strict=False)
    }
    x = jax.random.normal(keys[3], (256, 4))
    y = jnp.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2]

    tx = optimizer(1)
    state = tx.init(params)
    losses = []
    for modules in range(1, len(ORDER) + 1):
        if modules > 1:
            tx = optimizer(modules)
            state, report = aj.migrate_state(state, tx, params, thaw=True)
            print(f"joined: {sorted({name.split('/')[-2] for name in report.started[:4]})}")
        for _ in range(STEPS):
            params, state, loss = step(tx.update, params, state, x, y)
        losses.append(float(loss))
        print(f"{modules} of {len(ORDER)} modules after step {int(state.count)}: {loss:.3f}")
    assert losses[0] > losses[1] > losses[2]


if __name__ == "__main__":
    main()
