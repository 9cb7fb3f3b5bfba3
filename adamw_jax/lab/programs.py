"""The functions that the engine compiles: begin lanes, make steps, evaluate."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adamw_jax import eval_params
from adamw_jax.lab.recipes import Carrier, Recipe
from adamw_jax.lab.task import Task


def train_step(task: Task, tx: Any, carry: Any, batch: Any, key: jax.Array) -> tuple[Any, Any]:
    """Make a step; the carry is (parameters, state of the task, state of the optimizer).

    The optimizer is also given the loss, the mean of the squared losses of the examples, the
    gradient and the loss as a function, as some optimizers need them.
    """
    params, state, inner = carry

    def loss_of(params: Any) -> Any:
        losses, new = task.losses(params, state, batch, key)
        return jnp.mean(losses), (jnp.mean(losses * losses), new)

    (loss, (squares, state)), slope = jax.value_and_grad(loss_of, has_aux=True)(params)
    extra = {"value": loss, "value_sq_mean": squares, "grad": slope}
    extra["value_fn"] = lambda params: loss_of(params)[0]
    updates, inner = tx.update(slope, inner, params, **extra)
    return (optax.apply_updates(params, updates), state, inner), loss


def start(recipe: Recipe, static: Any, width: int, starts: Any, numbers: Any, curves: Any) -> Any:
    """Return the carry of every lane: parameters, state of the task, state of the optimizer."""

    def lane(start: Any, numbers: Any, curves: Any) -> Any:
        params, state = start
        numbers = numbers if static is None else dict(static)
        return params, state, recipe.build(Carrier(*curves), numbers).init(params)

    return _over_lanes(lane, width)(starts, numbers, curves)


def stretch(
    task: Task,
    recipe: Recipe,
    static: Any,
    width: int,
    carry: Any,
    numbers: Any,
    curves: Any,
    seeds: jax.Array,
    before: jax.Array,
    batches: Any,
    data: Mapping[str, Any],
) -> Any:
    """Make some steps in all lanes; return also the metrics, arrays of shape (lanes,)."""

    def lane(carry: Any, numbers: Any, curves: Any, seed: jax.Array, batches: Any) -> Any:
        numbers = numbers if static is None else dict(static)
        own = (carry, numbers, curves, seed, batches)
        carry, loss = _advanced(task, recipe, data["train"], before, *own)
        metrics = {}
        for view, weights in _views(recipe, carry).items():
            metrics[f"{view}train_loss"] = loss
            for name, examples in data["held out"].items():
                found = _evaluated(task, weights, carry[1], examples)
                metrics |= {f"{view}{name}_{key}": value for key, value in found.items()}
        return carry, metrics

    return _over_lanes(lane, width)(carry, numbers, curves, seeds, batches)


def advance(
    task: Task,
    recipe: Recipe,
    static: Any,
    width: int,
    carry: Any,
    numbers: Any,
    curves: Any,
    seeds: jax.Array,
    before: jax.Array,
    batches: Any,
    train: Any,
) -> Any:
    """Make some steps in all lanes; return also their mean loss, of shape (lanes,)."""

    def lane(carry: Any, numbers: Any, curves: Any, seed: jax.Array, batches: Any) -> Any:
        numbers = numbers if static is None else dict(static)
        return _advanced(task, recipe, train, before, carry, numbers, curves, seed, batches)

    return _over_lanes(lane, width)(carry, numbers, curves, seeds, batches)


def views_of(recipe: Recipe, width: int, carry: Any) -> Any:
    """Return the weights to evaluate of all lanes, by the beginning of the names of metrics."""
    return _over_lanes(lambda carry: dict(_views(recipe, carry)), width)(carry)


def evaluate(task: Task, width: int, weights: Any, state: Any, examples: Any) -> Any:
    """Return the mean metrics of all lanes over some examples."""

    def lane(weights: Any, state: Any) -> Any:
        return _means(task, weights, state, examples)

    return _over_lanes(lane, width)(weights, state)


def _advanced(
    task: Task,
    recipe: Recipe,
    train: Any,
    before: jax.Array,
    carry: Any,
    numbers: Any,
    curves: Any,
    seed: jax.Array,
    batches: Any,
) -> tuple[Any, jax.Array]:
    """Return the carry of one lane after some steps, and their mean loss."""
    tx = optax.with_extra_args_support(recipe.build(Carrier(*curves), numbers))
    root = jax.random.key(seed)

    def step(carry: Any, now: Any) -> Any:
        count, batch = now
        if train is not None:
            batch = jax.tree.map(lambda a: a[batch], train)
        return train_step(task, tx, carry, batch, jax.random.fold_in(root, count))

    length = jax.tree.leaves(batches)[0].shape[0]
    if length == 1:  # without a loop, in which convolutions are slow on a CPU
        return step(carry, (before, jax.tree.map(lambda a: a[0], batches)))
    counts = before + jnp.arange(length, dtype=jnp.int32)
    carry, losses = jax.lax.scan(step, carry, (counts, batches))
    return carry, losses.mean()


def _views(recipe: Recipe, carry: Any) -> Mapping[str, Any]:
    """Return the weights to evaluate, by the beginning of the names of their metrics."""
    params, _, inner = carry
    if recipe.views is None:
        return {"": eval_params(inner, params)}
    return {f"{name}: ": each for name, each in recipe.views(inner, params).items()}


def _over_lanes(lane: Callable[..., Any], width: int) -> Callable[..., Any]:
    """Vectorize a function of one lane; a single lane is not vectorized."""
    if width > 1:
        return jax.vmap(lane)

    def alone(*args: Any) -> Any:
        made = lane(*jax.tree.map(lambda a: a[0], args))
        return jax.tree.map(lambda a: jnp.asarray(a)[None], made)

    return alone


def _evaluated(task: Task, weights: Any, state: Any, examples: Any) -> dict[str, jax.Array]:
    """Return the mean metrics over all examples, evaluated in portions."""
    size = jax.tree.leaves(examples)[0].shape[0]
    portions = max(size // task.evaluated, 1)
    each = min(size, task.evaluated)
    means = functools.partial(_means, task, weights, state)
    if portions == 1:
        total = {name: value * each for name, value in means(_cut(examples, 0, each)).items()}
    else:
        whole = jax.tree.map(lambda a: a[: portions * each].reshape(portions, each, *a.shape[1:]),
                             examples)  # fmt: skip
        total = {name: value.sum() * each for name, value in jax.lax.map(means, whole).items()}
    if size > portions * each:
        rest = means(_cut(examples, portions * each, size))
        total = {name: v + rest[name] * (size - portions * each) for name, v in total.items()}
    return {name: value / size for name, value in total.items()}


def _means(task: Task, weights: Any, state: Any, batch: Any) -> dict[str, jax.Array]:
    made = task.metrics(weights, state, batch)
    return {name: jnp.mean(jnp.asarray(v).astype(jnp.float32)) for name, v in made.items()}


def _cut(tree: Any, begin: int, end: int) -> Any:
    return jax.tree.map(lambda a: a[begin:end], tree)
