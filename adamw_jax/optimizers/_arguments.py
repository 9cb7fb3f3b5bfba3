"""Read the arguments of an optimizer: errors for wrong names, schedules in the learning rate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import optax

from adamw_jax._core.checks import did_you_mean, one_of, switch
from adamw_jax.moments._correct_bias import CONVENTIONS
from adamw_jax.optimizers._common import COMMON, RENAMED


def bound(
    name: str, signature: inspect.Signature, args: Any, kwargs: Any, why_not: Callable[[str], str]
) -> dict[str, Any]:
    """Return the arguments by name; raise an error for unknown names and wrong choices."""
    known = signature.parameters
    for key in kwargs:
        if key in known:
            continue
        if key in COMMON:
            raise TypeError(f"{name}() does not take {key}: {why_not(key)}.")
        hint = did_you_mean(str(RENAMED.get(key, key)), known) or f"; it takes {sorted(known)}."
        if key == "betas" and {"b1", "b2"} <= {*known}:
            hint = "; give b1= and b2=."
        elif key == "betas" and "momentum" in known:
            hint = "; give momentum=."
        elif "cautious" in key:
            hint = (
                "; put direction.cautious() behind a direction for cautious updates, and "
                "decoupled_decay(..., cautious=True) for cautious decay."
            )
        raise TypeError(f"{name}() has no argument {key!r}{hint}")
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise TypeError(f"{name}(): {error}") from None
    for key, value in given.items():
        if known[key].annotation == "bool":
            switch(key, value)
        if key == "bias_correction":
            one_of(key, value, CONVENTIONS)
    return given


def unpacked(
    name: str,
    signature: inspect.Signature,
    second_rate: str,
    given: dict[str, Any],
    no_momentum: str = "",
) -> dict[str, Any]:
    """Return the arguments, with the schedules in the learning rate given to their arguments.

    ``one_cycle``, ``phases`` and ``warm_restarts`` return objects with ``learning_rate`` and some
    of ``momentum``, ``b2``, ``weight_decay`` and ``l2``. A momentum of None (no buffer) stays None.
    ``no_momentum`` says why a schedule of the momentum is refused.
    """
    carrier: Any = given.get("learning_rate")
    _check_carrier(name, carrier, no_momentum)
    if not hasattr(carrier, "learning_rate"):
        return given
    known, new = signature.parameters, {**given, "learning_rate": carrier.learning_rate}
    takes = {"b1": "momentum", "momentum": "momentum", second_rate: "b2"}
    for key, field in {**takes, "weight_decay": "weight_decay", "l2": "l2"}.items():
        carried = getattr(carrier, field, None)
        if carried is None or (key not in known and key in takes):
            continue
        if key not in known:
            raise ValueError(
                f"{name}() does not take {key}, but {type(carrier).__name__} has a schedule of it: "
                f"build the schedules without {field}."
            )
        default = known[key].default
        value = given.get(key, default)
        if value is not carried and isinstance(value, (int, float)) and value != default:
            # If the default is None, leaving the argument out would switch off the momentum.
            remedy = f"leave {key} out" if default is not None else f"give {key}=that.{field}"
            raise ValueError(
                f"{name}() got {key}={value!r}, but {type(carrier).__name__} has a schedule of "
                f"{field}: {remedy}, or build the schedules without {field}."
            )
        if value is not None or key not in takes:
            new[key] = carried
    if getattr(carrier, "l2", None) is not None and getattr(carrier, "weight_decay", None) is None:
        new["weight_decay"] = None  # schedules with L2 replace the default decay
    if "base_learning_rate" in known and new.get("base_learning_rate") is None:
        bases = (getattr(carrier, f"{word}_learning_rate", None) for word in ("base", "max"))
        new["base_learning_rate"] = next((base for base in bases if base is not None), None)
    return new


def _check_carrier(name: str, carrier: Any, no_momentum: str) -> None:
    """Raise if the learning rate is a transformation or a slice, or has a schedule too many."""
    if isinstance(carrier, optax.GradientTransformation):
        raise TypeError(
            f"learning_rate must be a number, a schedule, or an object such as one_cycle(...), got "
            f"the transformation {carrier!r}."
        )
    if isinstance(carrier, slice):
        raise TypeError(
            f"learning_rate must be a number or a schedule, got {carrier!r}. For fastai's rates by "
            f"group give {carrier.stop} and rules=adamw_jax.direction.discriminative_rates("
            f"{carrier.start}, {carrier.stop}, ['body/*', 'head/*']), with your groups from input "
            "to output."
        )
    if no_momentum and getattr(carrier, "momentum", None) is not None:
        raise ValueError(
            f"{name}() {no_momentum}, but {type(carrier).__name__} has a schedule of the momentum: "
            "build the schedules with momentum=None."
        )
