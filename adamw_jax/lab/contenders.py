"""Turn what the user gives as optimizers into recipes with search spaces."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import optax

from adamw_jax import create, info
from adamw_jax.lab.choices import unknown
from adamw_jax.lab.recipes import (
    PREFIX,
    Carrier,
    Recipe,
    arguments,
    check_optimizer,
    own_momentum,
    schedules_for,
)
from adamw_jax.lab.spaces import Axis, Range, Space, checked, log_uniform

Make = str | Callable[..., Any] | optax.GradientTransformation

LEARNING_RATES = log_uniform(1e-4, 1e-1)
"""For steps that do not grow with the gradient, as Adam's."""

LARGE_LEARNING_RATES = log_uniform(1e-3, 10.0)
"""For the others in the catalogue, as SGD."""

DECAYS = log_uniform(1e-3, 1.0)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer for ``compare`` with a name or search space of its own.

    Attributes:
      make: name of an optimizer of this library (with ``lookahead_`` before it for Lookahead); or a
        function of hyperparameters that returns an optax transformation, such as ``optax.adamw``
        or your own; or an optax transformation as it is, which has no space.
      space: axes by name of the hyperparameter, see ``log_uniform``. They replace those of the same
        name in the default space; None as an axis removes it. The axis ``"learning_rate"`` is the
        peak of the schedule; ``make`` gets it as a schedule, a function of the step, or as a number
        if the schedule is constant.
      name: name in tables; by default that of ``make``.

    >>> import optax
    >>> lion = Optimizer(optax.lion, {"learning_rate": log_uniform(1e-5, 1e-2)})
    """

    make: Make
    space: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer in a comparison.

    Attributes:
      name: unique name in tables.
      recipe: makes it.
      space: every axis that is searched or set.
      required: hyperparameters without a default.
    """

    name: str
    recipe: Recipe
    space: Space
    required: frozenset[str] = frozenset()


def contenders(
    optimizers: Sequence[Make | Optimizer] | Mapping[str, Make | Optimizer],
    space: Mapping[str, Any] | None = None,
    constant: bool = False,
) -> list[Contender]:
    """Return the contenders.

    Args:
      optimizers: the user's optimizers; a mapping gives their names.
      space: axes for every optimizer that takes them.
      constant: the learning rate is constant, so functions get it as a number.
    """
    pairs = optimizers.items() if isinstance(optimizers, Mapping) else [("", o) for o in optimizers]
    made = [contender(given, name, space or {}, constant) for name, given in pairs]
    names = [one.name for one in made]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"optimizers must be two or more with different names, got {names}; give names by a "
            "dict, {'mine': ...}."
        )
    for key in space or {}:
        if not any(key in one.space for one in made) and space[key] is not None:  # type: ignore[index]
            raise ValueError(f"space must name hyperparameters, but no optimizer takes {key!r}.")
    return made


def contender(
    given: Make | Optimizer,
    name: str = "",
    shared: Mapping[str, Any] | None = None,
    constant: bool = False,
) -> Contender:
    """Return one contender; ``shared`` are axes for every optimizer that takes them."""
    shared = shared or {}
    own = given if isinstance(given, Optimizer) else Optimizer(given)
    make, name = own.make, name or own.name
    if isinstance(make, str):
        name = name or make
        check_optimizer(make)
        taken, fixed = arguments(make), info(make.removeprefix(PREFIX)).example
        default = _default_space(taken, info(make.removeprefix(PREFIX)).degree == 0)
        recipe = _by_name(make, name, {**default, **shared, **own.space}, fixed)
    elif callable(make) and not isinstance(make, tuple):
        name = name or _function_name(make)
        taken = inspect.signature(make).parameters
        default = _default_space(taken, True)
        recipe = _by_function(make, name, constant)
    elif hasattr(make, "init") and hasattr(make, "update"):
        if own.space:
            raise ValueError(
                f"space of an optimizer that is already made must be empty, got {own.space!r}; "
                "give a function of these hyperparameters that makes it."
            )
        name, ready = name or _made_name(make), cast(optax.GradientTransformation, make)
        return Contender(name, Recipe(name, lambda carrier, numbers: ready), {})
    else:
        raise TypeError(
            "an optimizer must be a name, a function of hyperparameters or an optax "
            f"transformation, got {make!r}."
        )
    required = frozenset(key for key, p in taken.items() if p.default is p.empty)
    return Contender(name, recipe, _space(name, taken, default, shared, own.space), required)


def _function_name(make: Callable[..., Any]) -> str:
    name = getattr(make, "__name__", type(make).__name__)
    return f"optax.{name}" if (make.__module__ or "").partition(".")[0] == "optax" else name


def _made_name(make: Any) -> str:
    names = [spec.name for spec in getattr(make, "specs", ())]
    return names[0] if names else make.update.__qualname__.partition(".")[0]


def _default_space(taken: Mapping[str, Any], steady: bool) -> dict[str, Axis]:
    axes: dict[str, Axis] = {}
    if "learning_rate" in taken:
        axes["learning_rate"] = LEARNING_RATES if steady else LARGE_LEARNING_RATES
    if "weight_decay" in taken:
        axes["weight_decay"] = DECAYS
    return axes


def _space(
    name: str,
    taken: Mapping[str, inspect.Parameter],
    default: Mapping[str, Axis],
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Space:
    """Merge the axes: default, then those for all, then the optimizer's own."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    for key in own:
        if key not in taken and not open_ended:
            raise ValueError(unknown(f"hyperparameter of {name}", key, sorted(taken)))
    removed = {**shared, **own}.get("learning_rate", ()) is None and "learning_rate" in default
    if removed and taken["learning_rate"].default is inspect.Parameter.empty:
        raise ValueError(f"space of {name} must have the axis learning_rate: give a list or range.")
    merged = {**default, **{k: v for k, v in shared.items() if k in taken}, **own}
    found = {
        key: checked(f"space of {name}, {key},", axis)
        for key, axis in merged.items()
        if axis is not None
    }
    rates = found.get("learning_rate", (1.0,))
    if (least := rates.low if isinstance(rates, Range) else min(rates)) <= 0:
        raise ValueError(f"learning_rate of {name} must be above 0, got {least}.")
    return found


def _by_name(name: str, label: str, space: Mapping[str, Any], fixed: Mapping[str, Any]) -> Recipe:
    """Return a recipe of the catalogue; a momentum in the space replaces that of the schedule."""
    plain = {key: value for key, value in fixed.items() if key not in space}
    own = {"b1", "momentum"} & {key for key, axis in space.items() if axis is not None}

    def build(carrier: Carrier, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        given = {key: value for key, value in numbers.items() if key != "learning_rate"}
        rate = carrier.learning_rate if own else schedules_for(name, carrier)
        return create(name, rate, **plain, **given)

    return Recipe(label, build, own_momentum(name))


def _by_function(make: Callable[..., Any], name: str, constant: bool) -> Recipe:
    def build(carrier: Carrier, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        given = dict(numbers)
        if "learning_rate" in given:
            rate = carrier.learning_rates[0] if constant else carrier.learning_rate
            given["learning_rate"] = rate
        made = make(**given)
        if not (hasattr(made, "init") and hasattr(made, "update")):
            raise TypeError(
                f"{name} must return an optax transformation, got {type(made).__name__}."
            )
        return made

    return Recipe(name, build)


def in_words(space: Space) -> str:
    """Return a space in words, for the report.

    >>> in_words({"learning_rate": log_uniform(1e-3, 1e-1), "b2": (0.99,)})
    'learning_rate 0.001 to 0.1 (log), b2 0.99'
    """
    parts = [
        f"{key} {axis if isinstance(axis, Range) else ' | '.join(f'{v:g}' for v in axis)}"
        for key, axis in space.items()
    ]
    return ", ".join(parts) or "fixed"
