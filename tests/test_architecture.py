"""Imports run one way, as the architecture page draws them; a stage says itself what it is."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

import adamw_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adamw_jax"


def _layers() -> list[list[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    diagram = re.search(r"```text\n(__init__\n.*?)```", text, re.S)
    assert diagram
    return [line.split() for line in diagram[1].splitlines()]


LAYERS = _layers()
LEVEL = {room: level for level, layer in enumerate(LAYERS) for room in layer}


def _imported(path: Path) -> set[str]:
    """The rooms of the package that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "adamw_jax":
                found.add(parts[1] if parts[1] in LEVEL or parts[1] == "lab" else "__init__")
    return found


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if _room(path) != "lab"]


def test_every_room_is_drawn():
    """A new file or folder has its place in the diagram, and nothing is drawn that is not there."""
    assert {_room(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path):
    """A file imports from its own room and from lines below; never from the lab."""
    room = _room(path)
    wrong = {
        other for other in _imported(path) - {room} if other == "lab" or LEVEL[other] <= LEVEL[room]
    }
    assert not wrong, f"{room} may not import {sorted(wrong)}"


WORDS = {
    "nesterov": "a switch of optimizers",
    "normalize": "an argument of gradinit",
    "cautious": "a switch of decoupled_decay",
}
"""Names of stages that are also words for other things."""


def test_stages_are_named_in_their_own_files_only():
    """What a stage is stands on it: no other file decides by its name."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    home = {
        call.args[0].value: path
        for path, tree in trees.items()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("stage", "tail")
        and isinstance(call.args[0], ast.Constant)
    }
    assert {"estimate_moments", "lookahead", "clip_gradient", "probe"} <= set(home)
    named = [
        f"{path.relative_to(ROOT)}:{node.lineno} names {node.value!r}"
        for path, tree in trees.items()
        if path.name != "__init__.py"  # which lists what it exports
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and node.value in set(home) - set(WORDS)
        and home[node.value] != path
    ]
    assert not named


def test_the_face_shows_names_and_rooms_only():
    """``dir`` lists what is meant to be used, and no function hides the module it stands in."""
    shown = dir(adamw_jax)
    assert sorted(shown) == sorted(adamw_jax.__all__)
    assert len(set(shown) - set(adamw_jax.list_optimizers())) <= 60
    assert not [name for name in shown if name.startswith("_")]
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        room, _, last = name.rpartition(".")
        if room:
            assert getattr(importlib.import_module(room), last) is importlib.import_module(name)
