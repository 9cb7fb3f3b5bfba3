"""Parse lists on the command line: names, learning rates, seeds."""

from __future__ import annotations


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
