"""What editors and type checkers see of the optimizers is what there is to call."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from typing import Any

import pytest

import adamw_jax as aj
from adamw_jax.optimizers._common import COMMON
from tools import optimizer_exports

ROWS = [aj.info(name) for name in aj.list_optimizers()]
CALLS = {row.name: row.factory for row in ROWS}
CALLS |= {f"scale_by_{row.name}": row.direction for row in ROWS if row.direction}


def call(name: str, example: Any) -> str:
    """A call that gives every argument that ``inspect`` sees, each at its default."""
    given = {
        key: example.get(key, 0.1) if p.default is p.empty else p.default
        for key, p in inspect.signature(CALLS[name]).parameters.items()
    }
    return f"aj.{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None,
    reason="pyright is not installed (make check has it)",
)
def test_pyright_sees_every_argument(tmp_path: Any) -> None:
    """All of them in a right call, and one that no function has in a wrong one."""
    lines = ["# pyright: basic, reportUnnecessaryTypeIgnoreComment=true", "import adamw_jax as aj"]
    for name in CALLS:
        row = aj.info(name.removeprefix("scale_by_"))
        right = call(name, row.example)
        wrong = [*row.refuses, "no_such_argument"]
        lines += [
            right,
            *(f"{right[:-1]}, {key}=None)  # pyright: ignore[reportCallIssue]" for key in wrong),
        ]
    file = tmp_path / "calls.py"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    told = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(file)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout


def test_the_stub_of_the_directions_is_up_to_date() -> None:
    assert optimizer_exports.main(["--check"]) == 0


@pytest.mark.parametrize("name", [row.name for row in ROWS if row.direction])
def test_a_direction_has_name_and_place_and_takes_what_the_optimizer_takes(name: str) -> None:
    direction = aj.info(name).direction
    assert direction is getattr(aj, f"scale_by_{name}")
    ours = inspect.signature(direction).parameters
    theirs = inspect.signature(aj.info(aj.info(name).direction.__name__[9:]).factory).parameters
    assert all(p == theirs[key] for key, p in ours.items())
    assert not {"learning_rate", "decay", "l2", "storage"} & set(ours)


def test_a_common_keyword_has_one_default_unless_the_optimizer_says_so() -> None:
    """What an optimizer spells out and changes: it is in its docstring."""
    other = {
        (row.name, key, p.default)
        for row in ROWS
        for key, p in inspect.signature(row.factory).parameters.items()
        if key in COMMON and p.default != COMMON[key].default
    }
    assert other == {
        ("adamw", "weight_decay", 1e-4), ("adan", "decay", "proximal"), ("adapnm", "amsgrad", True),
        ("padam", "amsgrad", True), ("gadamx", "amsgrad", True), ("diffgrad", "eps_hat", True),
        ("lion", "weight_decay", 1e-3),
    }  # fmt: skip
