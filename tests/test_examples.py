"""Every public function has an example in its own docstring, and every example runs."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from tests.test_docstrings import PUBLIC, text_of

FUNCTIONS = {
    name: thing for name, thing in PUBLIC.items()
    if inspect.isfunction(thing) and "." not in name.removeprefix(thing.__module__ + ".")
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_has_one(name: str) -> None:
    assert ">>> " in text_of(FUNCTIONS[name]), f"{name} has no example"


WITH_ONE = {name: thing for name, thing in PUBLIC.items() if ">>> " in text_of(thing)}


@pytest.mark.slow
@pytest.mark.quick
@pytest.mark.parametrize("name", WITH_ONE)
def test_it_runs(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the names of its module, as the reader has after importing it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    thing: Callable[..., Any] = WITH_ONE[name]
    names = dict(vars(inspect.getmodule(thing)))  # type: ignore[arg-type]
    example = doctest.DocTestParser().get_doctest(text_of(thing), names, name, None, None)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)
