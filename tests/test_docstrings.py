"""Docstrings name every parameter of what is public, and none that is not there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import adamw_jax

ROOMS = ["adamw_jax"] + [
    f"adamw_jax.{found.name}"
    for found in pkgutil.iter_modules(adamw_jax.__path__)
    if found.ispkg and not found.name.startswith("_")
]


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions, classes and methods behind the ``__all__`` of every room, by full name."""
    seen = set()
    for room in map(importlib.import_module, ROOMS):
        for name in [*room.__all__, *(n for n in vars(room) if n.startswith("scale_by_"))]:
            thing = getattr(room, name)
            where = getattr(thing, "__module__", "")
            if not callable(thing) or (where, name) in seen:
                continue
            seen.add((where, name))
            yield f"{where}.{name}", thing
            for key, value in vars(thing).items() if inspect.isclass(thing) else ():
                method = getattr(value, "__func__", value)
                if inspect.isfunction(method) and not key.startswith("_"):
                    yield f"{where}.{name}.{key}", method


PUBLIC = dict(public())


def text_of(thing: Callable[..., Any]) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def section(text: str, title: str) -> set[str]:
    """The names that open the entries of a section."""
    found = re.search(rf"^{title}:\n((?:  .*\n|\n)*)", text + "\n", re.M)
    return set(re.findall(r"^  \*{0,2}(\w+):", found[1], re.M)) if found else set()


def referred(text: str) -> list[Callable[..., Any]]:
    """Where a docstring sends the reader for its arguments."""
    names = re.findall(r"Arguments as (?:for )?``(\w+)``", text)
    return [getattr(adamw_jax, name) for name in names]


def named(thing: Callable[..., Any]) -> set[str]:
    """The parameters that a reader of the docstring, or of those that it refers to, is told of."""
    text = text_of(thing)
    names = section(text, "Args") | section(text, "Attributes")
    for other in referred(text):
        names |= named(other) | set(re.findall(r"``(\w+)``", text))
    return names


def missing(thing: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(thing).parameters
    passed_on = {p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD}
    known = named(thing) | (passed_on if referred(text_of(thing)) else set())
    return set(parameters) - known - {"self", "cls"}


def stale(thing: Callable[..., Any]) -> set[str]:
    text, parameters = text_of(thing), set(inspect.signature(thing).parameters)
    fields = parameters | set(dir(thing)) | set(getattr(thing, "__annotations__", {}))
    return (section(text, "Args") - parameters) | (section(text, "Attributes") - fields)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_named_and_no_other(name):
    assert (missing(PUBLIC[name]), stale(PUBLIC[name])) == (set(), set())


def test_what_is_public_is_found():
    for name in (
        "adamw_jax.optimizers._adam.adamw",
        "adamw_jax.optimizers._directions.scale_by_adam",
        "adamw_jax._core.compose.compose",
        "adamw_jax._core.state.ComposeState",
        "adamw_jax.curvature._products.hvp",
        "adamw_jax.curvature._batches.Batches.mean",
    ):
        assert name in PUBLIC
    assert "adamw_jax.storage._quantize.quantize_state" in PUBLIC


def nothing(x, *rest, y=None, **options):
    """Nothing of its parameters."""


def some(x, *rest, y=None, **options):
    """Some.

    Args:
      x: a number, and in the next line what looks like an entry:
        y: no parameter of this function.
      *rest: numbers.
      z: no parameter at all.

    Returns:
      options: one.
    """


def refers(b1, rectify, mask, extra, learning_rate, momentum, **options):
    """Refers. Arguments as for ``sgdw``; ``extra`` is its own."""


class Record:
    """A class.

    Attributes:
      x: a number.
      total: a field that is no parameter.
      gone: one that was.
    """

    total: int

    def __init__(self, x, y):
        self.x = x


@pytest.mark.parametrize(
    ("thing", "lacks", "has_too_many"),
    [
        (nothing, {"x", "rest", "y", "options"}, set()),
        (some, {"y", "options"}, {"z"}),
        (refers, {"b1", "rectify"}, set()),
        (Record, {"y"}, {"gone"}),
    ],
)
def test_it_fails_where_it_should(thing, lacks, has_too_many):
    assert (missing(thing), stale(thing)) == (lacks, has_too_many)
