"""Write the types of every ``scale_by_x`` from the registry; with --check, only compare."""

from __future__ import annotations

import inspect
import pathlib
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import adamw_jax as aj
from adamw_jax.optimizers import _directions as directions

KEPT = "\u00a0"
STUB = pathlib.Path(directions.__file__).with_suffix(".pyi")
HEAD = '''\
"""Made by tools/direction_stubs.py: what ``scale_by_x`` takes, for editors and type checkers."""

# fmt: off
from typing import Any

from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import ScalarOrSchedule
from adamw_jax._core.masks import Mask
from adamw_jax.direction._rules import ParameterRules

'''


def stub() -> str:
    """Return the text of ``_directions.pyi``."""
    rows = [aj.info(name) for name in aj.list_optimizers()]
    return HEAD + "\n".join(_line(row.name, row.direction) for row in rows if row.direction)


def _line(name: str, direction: Callable[..., Any]) -> str:
    """Return the signature with annotations as written, with line breaks between parameters."""
    known, words = inspect.signature(direction).parameters.values(), []
    for before, p in zip([None, *known], known, strict=False):
        if p.kind is p.KEYWORD_ONLY and (before is None or before.kind is not p.kind):
            words.append("*")
        words.append(f"{p.name}: {p.annotation} = {p.default!r}")
    text = f"def scale_by_{name}({', '.join(w.replace(' ', KEPT) for w in words)}) -> Composed: ..."
    text = text.replace(" -> Composed: ...", f"{KEPT}->{KEPT}Composed:{KEPT}...")
    text = text.replace("def ", f"def{KEPT}")
    return textwrap.fill(text, 100, subsequent_indent="    ").replace(KEPT, " ") + "\n"


def main(arguments: list[str]) -> int:
    """Update the stub, or with --check return 1 if it differs."""
    new, old = stub(), STUB.read_text(encoding="utf-8") if STUB.exists() else ""
    if "--check" in arguments:
        if new != old:
            print("_directions.pyi is old; run python tools/direction_stubs.py")
        return int(new != old)
    STUB.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
