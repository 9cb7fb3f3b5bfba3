"""Choose by name, with an error that lists the choices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from adamw_jax._core.checks import did_you_mean

Value = TypeVar("Value")


def choose(what: str, name: str, choices: Mapping[str, Value]) -> Value:
    """Return ``choices[name]``, or raise an error that lists the names and the nearest one."""
    if name not in choices:
        raise ValueError(unknown(what, name, choices))
    return choices[name]


def unknown(what: str, name: str, choices: Iterable[str]) -> str:
    """Return the error text for a name that is not among the choices."""
    choices = list(choices)
    hint = did_you_mean(name, choices).replace("; d", " D", 1)
    return f"unknown {what} {name!r}; choose from {', '.join(choices)}.{hint}"
