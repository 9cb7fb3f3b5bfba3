"""What is trained: an optimizer, its schedule and its numbers.

Numbers are arrays inside the compiled program, so that all learning rates, decays and schedules of
one recipe share one compilation and run side by side under ``vmap``.
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

from adamw_jax import adamw, compose, create, info, lookahead
from adamw_jax.lab.choices import choose
from adamw_jax.schedules import one_cycle

Settings = Mapping[str, Any]

MOMENTUM = 0.9
"""Where none is scheduled: Adam's b1, and the momentum of SGD."""

PREFIX = "lookahead_"
"""What ``create`` takes before a name, for Lookahead at its end."""


@dataclasses.dataclass(frozen=True)
class Carrier:
    """Learning rate and momentum of every step, as any optimizer of the library accepts them."""

    learning_rates: jax.Array
    momenta: jax.Array

    def learning_rate(self, count: Any) -> jax.Array:
        """The learning rate of the update after ``count`` others."""
        return self.learning_rates[count]

    def momentum(self, count: Any) -> jax.Array:
        """The momentum, or b1, of that update."""
        return self.momenta[count]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimizer to be trained with.

    Attributes:
      name: for the log and for the cache of compiled programs; one name, one program.
      build: (carrier, settings) -> transformation; settings are scalars by name.
      momentum: its own, at all steps; None for that of the schedule.
    """

    name: str
    build: Callable[[Carrier, Settings], optax.GradientTransformation]
    momentum: float | None = None


@dataclasses.dataclass(frozen=True)
class Arm:
    """One setting, which is trained with every seed.

    Attributes:
      group: the contender it belongs to, as a plot calls it.
      recipe: the optimizer.
      schedule: ``"one_cycle"``, ``"constant"`` or ``"cosine"``.
      learning_rate: the largest of the schedule.
      settings: numbers for the recipe, from ``settings(...)``.
    """

    group: str
    recipe: Recipe
    schedule: str
    learning_rate: float
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """Unique within an experiment."""
        numbers = ", ".join(f"{key} {value:g}" for key, value in self.settings)
        return f"{self.group}, lr {self.learning_rate:g}, {numbers}".removesuffix(", ")

    def described(self) -> dict[str, object]:
        """What the log says of it."""
        return {
            "arm": self.name,
            "group": self.group,
            "recipe": self.recipe.name,
            "schedule": self.schedule,
            "learning_rate": self.learning_rate,
            **dict(self.settings),
        }


def catalogue(name: str, *, label: str = "", **static: Any) -> Recipe:
    """An optimizer of the library's registry, by the name ``create`` takes.

    Schedules have a momentum for those whose own is the usual one; the others keep theirs.

    Args:
      name: such as ``"adamw"`` or ``"lookahead_sgdw"``.
      label: the recipe's name where ``static`` makes it differ from the registry's.
      **static: keyword arguments that are not numbers.
    """

    def build(carrier: Carrier, settings: Settings) -> optax.GradientTransformation:
        return create(name, carrier, **static, **settings)

    return Recipe(label or name, build, own_momentum(name))


def own_momentum(name: str) -> float | None:
    """The momentum of an optimizer whose default is not the usual one, such as Adan's 0.98."""
    takes = arguments(name)
    own = next((takes[key].default for key in ("b1", "momentum") if key in takes), None)
    return None if own in (None, MOMENTUM) else own


def arguments(name: str) -> Mapping[str, inspect.Parameter]:
    """What an optimizer takes, by the name ``create`` takes."""
    return inspect.signature(info(name.removeprefix(PREFIX)).factory).parameters


def _adam_with_either_decay(carrier: Carrier, settings: Settings) -> optax.GradientTransformation:
    return adamw(carrier, **settings)


ADAM = Recipe("adam", _adam_with_either_decay)
"""Adam with decoupled decay ``weight_decay`` and L2 ``l2``; either may be zero."""


def _adam_with_lookahead(carrier: Carrier, settings: Settings) -> optax.GradientTransformation:
    return compose(adamw(carrier, **settings), lookahead(sync_period=5, slow_step_size=0.5))


LOOKAHEAD_ADAM = Recipe("lookahead(adam)", _adam_with_lookahead)


def settings(**numbers: float) -> tuple[tuple[str, float], ...]:
    """Numbers for an arm, in a fixed order."""
    return tuple(sorted(numbers.items()))


def tables(
    schedule: str, learning_rate: float, steps: int, own: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Learning rates and momenta of a whole run, float32 arrays of shape (steps,).

    With ``own`` that is the momentum, whatever the schedule has.
    """
    shape, momenta = choose("schedule", schedule, SCHEDULES)(steps)
    momenta = momenta if own is None else np.full(steps, own)
    return (learning_rate * shape).astype(np.float32), momenta.astype(np.float32)


def _constant(steps: int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(steps), np.full(steps, MOMENTUM)


def _cosine(steps: int) -> tuple[np.ndarray, np.ndarray]:
    return 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps)), np.full(steps, MOMENTUM)


@functools.cache
def _one_cycle(steps: int) -> tuple[np.ndarray, np.ndarray]:
    cycle = one_cycle(1.0, total_steps=steps)
    assert cycle.momentum is not None  # that is what one_cycle makes unless told otherwise
    count = np.arange(steps, dtype=np.int32)
    return np.asarray(cycle.learning_rate(count)), np.asarray(cycle.momentum(count))


SCHEDULES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "one_cycle": _one_cycle,
    "constant": _constant,
    "cosine": _cosine,
}
