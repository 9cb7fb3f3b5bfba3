"""Checks of arguments whose values are known when a transformation or schedule is made.

>>> positive_steps("total_steps", 100.0)
100
>>> number("div", 25, least=1)
25.0
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

LAST_COUNT = 2**31 - 1  # int32 counters saturate there


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> float:
    """Return ``value`` as a float with above < value < below and least <= value <= most."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not (above < found < below and least <= found <= most):
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">", above), (">=", least), ("<", below), ("<=", most))
            if math.isfinite(bound)
        ]
        raise ValueError(f"{name} must be a number {' and '.join(bounds)}, got {value!r}.")
    return found


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return ``value`` as an int; raise unless it is a whole number >= ``least``."""
    integral = isinstance(value, (int, float, np.integer)) and not isinstance(value, bool)
    if not integral or not math.isfinite(value) or int(value) != value or value < least:
        injected = isinstance(value, jax.Array)
        hint = f" With optax.inject_hyperparams, name {name!r} in static_args." if injected else ""
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}.{hint}")
    return int(value)


def positive_steps(name: str, steps: Any) -> int:
    """Return ``steps`` as an int; raise unless it is a whole number from 1 to 2**31 - 1."""
    try:
        found = float(steps)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(steps, bool) or not found.is_integer() or not 1 <= found <= LAST_COUNT:
        raise ValueError(f"{name} must be a whole number from 1 to 2**31 - 1, got {steps!r}.")
    return int(found)


def one_of(name: str, value: Any, names: tuple[Any, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``names``."""
    if value not in names:
        hint = did_you_mean(value, names) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {names}, got {value!r}{hint or '.'}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint at the nearest name, in whatever case it was typed; empty if none is near."""
    by_lower = {name.lower(): name for name in known}
    longer = [name for name in by_lower if name.startswith(word.lower())]
    near = longer if len(longer) == 1 else difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def switch(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
