"""Every public function and class has an example in its own docstring, and every example runs."""

from __future__ import annotations

import doctest
import inspect

import pytest

from tests.test_docstrings import PUBLIC, text_of

FUNCTIONS = {
    name: thing for name, thing in PUBLIC.items()
    if inspect.isfunction(thing) and "." not in name.removeprefix(thing.__module__ + ".")
}  # fmt: skip


INSIDE = ("Clock", "Moments", "Reading", "ScaleMoments")
"""What only stages pass to each other; the page on stages of one's own shows them."""

CLASSES = {
    name: thing for name, thing in PUBLIC.items()
    if inspect.isclass(thing) and not name.endswith((*INSIDE, "State"))  # init makes a state
}  # fmt: skip


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_it_has_one(name: str) -> None:
    assert ">>> " in text_of(PUBLIC[name]), f"{name} has no example"


GENERATED = [name for name in FUNCTIONS if ".optimizers._" in name and "_registry" not in name]
"""Docstrings that are made when the module is imported, where doctest does not look."""


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("name", GENERATED)
def test_it_runs(name: str) -> None:
    example = doctest.DocTestParser().get_doctest(text_of(FUNCTIONS[name]), {}, name, None, None)
    said: list[str] = []
    runner = doctest.DocTestRunner()
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
