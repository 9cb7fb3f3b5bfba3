"""Writes ``optimizers/__init__.py`` and the types of ``scale_by_x`` from the registry.

With --check it only compares.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import adamw_jax as aj
from adamw_jax.optimizers import _directions

KEPT = "\u00a0"
ROOM = pathlib.Path(_directions.__file__).parent
STUB = ROOM / "_directions.pyi"
HEAD = '''\
"""Made by tools/optimizer_exports.py: what ``scale_by_x`` takes, for editors and type checkers."""

# fmt: off
from typing import Any

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import ScalarOrSchedule
from adamw_jax._core.masks import Mask
from adamw_jax.direction._rules import ParameterRules

'''


def stub() -> str:
    """The text of ``_directions.pyi``."""
    rows = [aj.info(name) for name in aj.list_optimizers()]
    return HEAD + "\n".join(_line(row.name, row.direction) for row in rows if row.direction)


def _line(name: str, direction: Callable[..., Any]) -> str:
    """The signature, with annotations as they are written, broken between parameters only."""
    known, words = inspect.signature(direction).parameters.values(), []
    for before, p in zip([None, *known], known, strict=False):
        if p.kind is p.KEYWORD_ONLY and (before is None or before.kind is not p.kind):
            words.append("*")
        words.append(f"{p.name}: {p.annotation} = {p.default!r}")
    text = f"def scale_by_{name}({', '.join(w.replace(' ', KEPT) for w in words)}) -> Composed: ..."
    text = text.replace(" -> Composed: ...", f"{KEPT}->{KEPT}Composed:{KEPT}...")
    text = text.replace("def ", f"def{KEPT}")
    return textwrap.fill(text, 100, subsequent_indent="    ").replace(KEPT, " ") + "\n"


def room() -> str:
    """The text of ``optimizers/__init__.py``."""
    found = defaultdict(list, {"_registry": ["OptimizerInfo", "create", "info", "list_optimizers"]})
    for name in aj.list_optimizers():
        found[aj.info(name).factory.__module__.rpartition(".")[2]].append(name)
    lines = [
        '"""The catalogue: named optimizers, each a list of stages with equation and citation."""',
        "",
        "# Made by tools/optimizer_exports.py.",
        *(f"from adamw_jax.optimizers.{m} import {', '.join(n)}" for m, n in sorted(found.items())),
        "",
        "# What is registered above has its direction below.",
        "# isort: split",
        "from adamw_jax.optimizers._directions import *",
        "",
        "__all__ = [",
        *(f'    "{name}",' for name in sorted(name for names in found.values() for name in names)),
        "]",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Updates or checks both; 1 where one differs under --check."""
    for path in sorted(ROOM.glob("_[a-z]*.py")):  # a new one is not in ``__init__`` yet
        importlib.import_module(f"adamw_jax.optimizers.{path.stem}")
    importlib.reload(_directions)
    status = 0
    for path, text in ((STUB, stub()), (ROOM / "__init__.py", room())):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            if "--check" in arguments:
                print(f"{path.name} is old; run python tools/optimizer_exports.py")
                status = 1
            else:
                path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
