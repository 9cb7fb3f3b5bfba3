"""Find a learning rate for a task and an optimizer by the range test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamw_jax import lr_range_test
from adamw_jax.lab.contenders import Contender, Make, Optimizer, contender
from adamw_jax.lab.feeding import order_of
from adamw_jax.lab.programs import train_step
from adamw_jax.lab.recipes import MOMENTUM, Carrier
from adamw_jax.lab.spaces import Range
from adamw_jax.lab.task import Task
from adamw_jax.schedules import RangeTest


def lr_find(
    task: Task,
    optimizer: Make | Optimizer,
    *,
    start: float = 1e-6,
    end: float = 10.0,
    steps: int = 200,
    seed: int = 0,
) -> RangeTest:
    """Run the learning-rate range test: one short run in which the learning rate grows.

    Args:
      task: what to train.
      optimizer: as for ``compare``. It must take a learning rate. Its other hyperparameters have
        the single value of an axis of its space, or their defaults; one without a default has the
        smallest value of its axis.
      start: first learning rate.
      end: last learning rate.
      steps: largest number of steps, at least 20; a run ends earlier if the loss diverges.
      seed: seed of the initial weights, the order of the examples and dropout.

    Returns:
      Learning rates, losses and suggestions; ``plot()`` draws them.

    Reference: Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186.

    Example:
      >>> import jax, numpy as np
      >>> from adamw_jax.lab import Task, lr_find, split
      >>> x = np.linspace(-1, 1, 50, dtype=np.float32)
      >>> line = Task(
      ...     init=lambda key: {"slope": jax.random.normal(key)},
      ...     loss=lambda params, batch: (params["slope"] * batch[0] - batch[1]) ** 2,
      ...     data=split((x, 3 * x)),
      ... )
      >>> found = lr_find(line, "adamw", steps=50)
    """
    check(start, end, steps)
    chosen = contender(optimizer, constant=True)
    if "learning_rate" not in chosen.space:
        raise ValueError(f"optimizer must take a learning rate, but {chosen.name} has none.")
    params, state = task.start(jax.random.key(seed))
    inner = _made(chosen, jnp.float32(start)).init(params)
    begin = params, state, inner, jnp.int32(0)
    return lr_range_test(
        _step(task, chosen, seed), begin, _batches(task, seed, steps), start, end, steps
    )


def check(start: float, end: float, steps: int) -> None:
    """Raise ``ValueError`` if a range test cannot run with these numbers."""
    if not 0 < start < end < float("inf"):
        raise ValueError(f"start and end must be finite with 0 < start < end, got {start}, {end}.")
    if steps < 20:
        raise ValueError(f"steps must be 20 or more for a suggestion, got {steps}.")


def _made(chosen: Contender, rate: Any) -> optax.GradientTransformationExtraArgs:
    momentum = chosen.recipe.momentum or MOMENTUM
    carrier = Carrier(jnp.reshape(rate, 1), jnp.full(1, momentum, jnp.float32))
    fixed = {}
    for key, axis in chosen.space.items():
        values = (axis.low, axis.high) if isinstance(axis, Range) else axis
        if len(values) == 1 or key in chosen.required:
            fixed[key] = min(values)
    numbers = {**fixed, "learning_rate": rate}
    return optax.with_extra_args_support(chosen.recipe.build(carrier, numbers))


def _step(task: Task, chosen: Contender, seed: int) -> Any:
    root = jax.random.key(seed)

    @jax.jit
    def step(carry: Any, rate: jax.Array, batch: Any) -> Any:
        *inside, count = carry
        tx = _made(chosen, rate.astype(jnp.float32))
        inside, loss = train_step(task, tx, inside, batch, jax.random.fold_in(root, count))
        return (*inside, count + 1), loss

    return step


def _batches(task: Task, seed: int, steps: int) -> Iterator[Any]:
    data = task.data
    if data.size is None:
        yield from data.batches(seed)
        return
    for part in order_of(data.size, seed, steps, data.batch_size or 1):
        yield jax.tree.map(lambda a, part=part: jnp.asarray(np.asarray(a)[part]), data.train)
