"""Checks of the numbers that describe a schedule.

>>> positive_steps("total_steps", 100.0)
100
>>> number("div", 25, least=1)
25.0
"""

from __future__ import annotations

import math
from typing import Any

LAST_COUNT = 2**31 - 1  # of a counter in int32, which saturates there


def number(
    name: str,
    value: Any,
    *,
    above: float = -math.inf,
    least: float = -math.inf,
    below: float = math.inf,
) -> float:
    """``value`` as a float with above < value < below and least <= value.

    Raises:
      ValueError: it is not a number in that range, known when the schedule is made.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not (above < found < below and found >= least):
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in ((">", above), (">=", least), ("<", below))
            if math.isfinite(bound)
        ]
        raise ValueError(f"{name} must be a number {' and '.join(bounds)}, got {value!r}.")
    return found


def positive_steps(name: str, steps: Any) -> int:
    """``steps`` as an int.

    Raises:
      ValueError: it is not a whole number of steps, at least one and at most int32's largest.
    """
    try:
        found = float(steps)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(steps, bool) or not found.is_integer() or not 1 <= found <= LAST_COUNT:
        raise ValueError(f"{name} must be a whole number from 1 to 2**31 - 1, got {steps!r}.")
    return int(found)


def one_of(name: str, value: Any, names: tuple[str, ...]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of ``names``."""
    if value not in names:
        raise ValueError(f"{name} must be one of {names}, got {value!r}.")


def switch(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
