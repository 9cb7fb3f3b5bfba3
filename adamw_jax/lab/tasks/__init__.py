"""Get tasks by name. Nothing is downloaded."""

from __future__ import annotations

import functools
from collections.abc import Callable

from adamw_jax.lab.choices import choose
from adamw_jax.lab.tasks.data_set import DataSet, Split
from adamw_jax.lab.tasks.digits import digits, digits_noisy
from adamw_jax.lab.tasks.mnist1d import mnist1d
from adamw_jax.lab.tasks.mnist_5k import mnist_5k

TASKS: dict[str, Callable[[], DataSet]] = {
    "mnist1d": mnist1d,
    "digits": digits,
    "digits_noisy": digits_noisy,
    "mnist_5k": mnist_5k,
}


@functools.cache
def get_task(name: str) -> DataSet:
    """Return a task by name."""
    return choose("task", name, TASKS)()


__all__ = ["TASKS", "Split", "DataSet", "get_task"]
