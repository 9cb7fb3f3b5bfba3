"""Parse lists on the command line: names, learning rates, seeds, axes of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adamw_jax.lab.spaces import Axis, log_uniform, uniform


def names(option: str, text: str) -> tuple[str, ...]:
    """Parse ``"a, b"`` as ``("a", "b")``."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError(f"{option} must be names separated by commas, got {text!r}.")
    return found


def rates(option: str, text: str) -> tuple[float, ...]:
    """Parse ``"1e-3,3e-3"`` as ``(0.001, 0.003)``."""
    try:
        found = tuple(sorted({float(part) for part in names(option, text)}))
    except ValueError as error:
        raise ValueError(f"{option} must be numbers separated by commas, got {text!r}.") from error
    return found


def count(option: str, number: int, least: int = 1) -> tuple[int, ...]:
    """Return the seeds ``(0, 1, 2, 3)`` for ``4``."""
    if number < least:
        raise ValueError(f"{option} must be {least} or more, got {number}.")
    return tuple(range(number))


def axis(option: str, text: str) -> Axis | None:
    """Parse ``"0.1,0.3"`` as a list, ``"0.001..1"`` as a range, and ``"none"`` as no axis.

    A range is logarithmic if it begins above 0.
    """
    if text.strip().lower() == "none":
        return None
    low, dots, high = text.partition("..")
    if not dots:
        return rates(option, text)
    try:
        ends = float(low), float(high)
    except ValueError as error:
        raise ValueError(f"{option} must be a range such as 0.001..1, got {text!r}.") from error
    return log_uniform(*ends) if ends[0] > 0 else uniform(*ends)


def axes(option: str, texts: Sequence[str], known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse ``["b2=0.99", "radam.weight_decay=0.1"]``: axes by optimizer, ``""`` for all."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        key, sign, values = text.partition("=")
        owner, _, name = key.strip().rpartition(".")
        if not (sign and name) or owner not in ("", *known):
            raise ValueError(
                f"{option} must be AXIS=VALUES or OPTIMIZER.AXIS=VALUES with an optimizer of "
                f"{', '.join(known)}, got {text!r}."
            )
        found.setdefault(owner, {})[name] = axis(option, values)
    return found
