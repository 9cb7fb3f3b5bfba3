"""Runs the code of README.md and docs/: Python blocks for real, commands by their --help.

All Python blocks of a page share one namespace, in order. In shell blocks, make targets must exist
and subcommands of adamw-jax must parse.
"""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)


def pages() -> list[pathlib.Path]:
    """README, CONTRIBUTING and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_python(page: pathlib.Path, blocks: list[tuple[int, str]]) -> None:
    """Executes the Python blocks of a page, with line numbers that point into the page."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks:
        padded = "\n" * line + code
        exec(compile(padded, str(page), "exec"), namespace)


def check_shell(page: pathlib.Path, code: str) -> None:
    """Checks that the commands of a shell block exist."""
    targets = set(TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    for command in re.findall(r"^(?:.*&& )?(make|adamw-jax) ([a-z-]+)", code, re.MULTILINE):
        program, word = command
        if program == "make" and word not in targets:
            raise SystemExit(f"{page.name}: make {word} is no target of the Makefile")
        if program == "adamw-jax":
            done = subprocess.run([program, word, "--help"], capture_output=True, check=False)
            if done.returncode:
                raise SystemExit(f"{page.name}: adamw-jax {word} --help fails:\n{done.stderr!r}")


def main() -> int:
    """Runs every block; an exception ends with its traceback into the page."""
    total = 0
    for page in pages():
        text = page.read_text(encoding="utf-8")
        start, python = time.perf_counter(), []
        for match in BLOCK.finditer(text):
            total += 1
            if match[1] == "python":
                python.append((text[: match.start(2)].count("\n"), match[2]))
            else:
                check_shell(page, match[2])
        run_python(page, python)
        seconds = time.perf_counter() - start
        print(f"{page.relative_to(ROOT)}: {len(python)} Python blocks, {seconds:.1f} s", flush=True)
    if not total:
        raise SystemExit("no code block found in README.md and docs/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
