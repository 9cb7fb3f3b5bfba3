"""Define what is trained: an optimizer, its schedule and its numbers.

Numbers are arrays inside the compiled program. So all learning rates, decays and schedules of one
recipe share one compilation and run in parallel under ``vmap``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from adamw_jax import adamw, compose, create, info, list_optimizers, lookahead
from adamw_jax.lab.choices import choose, unknown
from adamw_jax.schedules import one_cycle

Settings = Mapping[str, Any]

MOMENTUM = 0.9
"""Adam's b1, and the momentum of SGD, unless a schedule gives another one."""

PREFIX = "lookahead_"
"""Prefix of a name for ``create`` that adds Lookahead."""


@dataclasses.dataclass(frozen=True)
class Carrier:
    """Learning rate and momentum of every step, in the form that optimizers accept."""

    learning_rates: jax.Array
    momenta: jax.Array

    def learning_rate(self, count: Any) -> jax.Array:
        """Return the learning rate of the update after ``count`` others."""
        return self.learning_rates[count]

    def momentum(self, count: Any) -> jax.Array:
        """Return the momentum, or b1, of that update."""
        return self.momenta[count]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimizer for training.

    Attributes:
      name: name in the log and in the cache of compiled programs; each program needs its own.
      build: (carrier, settings) -> transformation; settings are scalars by name.
      momentum: the momentum at all steps; None for that of the schedule.
      views: (state, parameters) -> the parameters to evaluate by name, if a run has several.
    """

    name: str
    build: Callable[[Carrier, Settings], optax.GradientTransformation]
    momentum: float | None = None
    views: Callable[[Any, Any], Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting, which is trained with every seed.

    Attributes:
      group: the contender to which it belongs, its name in plots.
      recipe: the optimizer.
      schedule: one of ``SCHEDULES``.
      learning_rate: the largest learning rate of the schedule.
      settings: numbers for the recipe, from ``settings(...)``.
    """

    group: str
    recipe: Recipe
    schedule: str
    learning_rate: float
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Return a name that is unique within an experiment."""
        numbers = ", ".join(f"{key} {value:g}" for key, value in self.settings)
        return f"{self.group}, lr {self.learning_rate:g}, {numbers}".removesuffix(", ")

    def described(self) -> dict[str, object]:
        """Return its fields for the log."""
        return {
            "arm": self.name,
            "group": self.group,
            "recipe": self.recipe.name,
            "schedule": self.schedule,
            "learning_rate": self.learning_rate,
            **dict(self.settings),
        }


def catalogue(name: str, *, label: str = "", **static: Any) -> Recipe:
    """Return the recipe of an optimizer in the registry, by its name for ``create``.

    Optimizers with the usual momentum take that of the schedule; the others keep their own.

    Args:
      name: such as ``"adamw"`` or ``"lookahead_sgdw"``.
      label: name of the recipe, if ``static`` makes it differ from the default of ``name``.
      **static: keyword arguments that are not numbers.
    """

    def build(carrier: Carrier, settings: Settings) -> optax.GradientTransformation:
        return create(name, schedules_for(name, carrier), **static, **settings)

    return Recipe(label or name, build, own_momentum(name))


def check_optimizer(name: str) -> None:
    """Raise ``ValueError`` with the nearest name if ``create`` does not know the name."""
    prefix = PREFIX if name.lower().startswith(PREFIX) else ""
    known = [prefix + own for own in list_optimizers()]
    if name not in known:
        raise ValueError(unknown("optimizer", name, known))


def own_momentum(name: str) -> float | None:
    """Return the default momentum if it is not the usual one, such as Adan's 0.98, else None."""
    takes = arguments(name)
    own = next((takes[key].default for key in ("b1", "momentum") if key in takes), None)
    return None if own in (None, MOMENTUM) else own


def schedules_for(name: str, carrier: Carrier) -> Any:
    """Return what an optimizer takes: without a momentum of its own, the learning rate alone."""
    return carrier if {"b1", "momentum"} & arguments(name).keys() else carrier.learning_rate


def arguments(name: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of an optimizer, by its name for ``create``."""
    return inspect.signature(info(name.removeprefix(PREFIX)).factory).parameters


def _adam_with_either_decay(carrier: Carrier, settings: Settings) -> optax.GradientTransformation:
    return adamw(carrier, **settings)


ADAM = Recipe("adam", _adam_with_either_decay)
"""Adam with decoupled decay ``weight_decay`` and L2 ``l2``; both may be zero."""


def _adam_with_lookahead(carrier: Carrier, settings: Settings) -> optax.GradientTransformation:
    return compose(adamw(carrier, **settings), lookahead(sync_period=5, slow_step_size=0.5))


LOOKAHEAD_ADAM = Recipe("lookahead(adam)", _adam_with_lookahead)


def settings(**numbers: float) -> tuple[tuple[str, float], ...]:
    """Return numbers for an arm, in a fixed order."""
    return tuple(sorted(numbers.items()))


def tables(
    schedule: str, learning_rate: float, steps: int, own: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return learning rates and momenta of a run, float32 arrays of shape (steps,).

    ``own``, if given, replaces the momentum of the schedule.
    """
    shape, momenta = choose("schedule", schedule, SCHEDULES)(steps)
    momenta = momenta if own is None else np.full(steps, own)
    return (learning_rate * shape).astype(np.float32), momenta.astype(np.float32)


def _constant(steps: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(steps), np.full(steps, MOMENTUM)


def _cosine(steps: int) -> tuple[np.ndarray, np.ndarray]:
    return 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps)), np.full(steps, MOMENTUM)


@functools.cache
def _one_cycle(
    steps: int, preset: str = "fastai_v1", momentum: tuple[float, float] = (0.95, 0.85)
) -> tuple[np.ndarray, np.ndarray]:
    cycle = one_cycle(1.0, total_steps=steps, preset=preset, momentum=momentum)
    assert cycle.momentum is not None  # by default it has a schedule of momentum
    count = np.arange(steps, dtype=np.int32)
    return np.asarray(cycle.learning_rate(count)), np.asarray(cycle.momentum(count))


def _warmup_cosine(steps: int) -> tuple[np.ndarray, np.ndarray]:
    warmup = max(steps // 10, 1)
    up = (np.arange(warmup) + 1) / warmup
    down, momenta = _cosine(steps - warmup)[0], np.full(steps, MOMENTUM)
    return np.concatenate([up, down]), momenta


def _step_decay(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A linear warm-up like that of ``warmup_cosine``, then a tenth after 1/2 and after 3/4."""
    up = np.minimum((np.arange(steps) + 1) / max(steps // 10, 1), 1.0)
    drops = np.searchsorted([steps // 2, 3 * steps // 4], np.arange(steps), side="right")
    return up * 0.1**drops, np.full(steps, MOMENTUM)


SCHEDULES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "one_cycle": _one_cycle,
    "article": functools.partial(_one_cycle, preset="article"),
    "article_plateau": functools.partial(_one_cycle, preset="article_plateau"),
    "article_language": functools.partial(
        _one_cycle, preset="article_plateau", momentum=(0.8, 0.7)
    ),
    "constant": _constant,
    "cosine": _cosine,
    "warmup_cosine": _warmup_cosine,
    "step_decay": _step_decay,
}
