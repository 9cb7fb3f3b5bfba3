"""Run the Python code of the pages here and in docs/, and check its commands.

The Python blocks of a page share one namespace and one process. A line before a
block can exclude it and give a reason, which is printed: ``<!-- not run: needs a GPU -->``. In a
shell block each make target, extra, script, subcommand and option of adamw-jax must exist.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(
    r"^(?:[ ]*<!-- not run: (?P<reason>.+?) -->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
OTHER_SPELLINGS = {"py": "python", "python3": "python", "pycon": "python", "jupyter": "python"}
OTHER_SPELLINGS |= dict.fromkeys(("sh", "shell", "console", "zsh", "shell-session"), "bash")
LIMIT = 300.0
# Runs in the process of the page. The name of the page makes a traceback show its line.
RUNNER = """
import json, sys
page, blocks = json.load(sys.stdin)
namespace = {"__name__": "__main__"}
for line, code in blocks:
    exec(compile("\\n" * line + code, page, "exec"), namespace)
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: language, code, number of lines above it, reason for not running it."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks_of(page: pathlib.Path) -> list[Block]:
    """Return the Python and bash blocks of a page; other names of these languages are errors."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in BLOCK.finditer(text):
        language = match["language"]
        line = text[: match.start("code")].count("\n")
        if language in OTHER_SPELLINGS:
            right = OTHER_SPELLINGS[language]
            raise SystemExit(f"{page.name}:{line}: write ```{right} instead of ```{language}")
        if language in ("python", "bash"):
            found.append(Block(language, textwrap.dedent(match["code"]), line, match["reason"]))
    return found


def run_python(page: pathlib.Path, blocks: list[Block]) -> None:
    """Execute the Python blocks of a page in an empty folder."""
    given = json.dumps([str(page), [(block.line, block.code) for block in blocks]])
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-c", RUNNER]
        done = subprocess.run(
            command, input=given, text=True, cwd=empty, timeout=LIMIT, check=False
        )
    if done.returncode:
        raise SystemExit(f"{page.name}: a Python block failed, see above")


def make_targets(root: pathlib.Path) -> set[str]:
    """Return the targets of the Makefile."""
    text = (root / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))


def check_adamw_jax(words: list[str]) -> str | None:
    """Return the fault of a command line of adamw-jax, or None."""
    command = [sys.executable, "-m", "adamw_jax.lab", *words, "--help"]
    wide = {**os.environ, "COLUMNS": "200"}  # a narrow help may break an option
    done = subprocess.run(command, capture_output=True, text=True, env=wide, check=False)
    if done.returncode:
        return f"it ends with status {done.returncode}: {(done.stderr or done.stdout).strip()}"
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    lost = [option for option in options if option not in done.stdout]
    return f"its help does not know {lost[0]}" if lost else None


def check_command(words: list[str], root: pathlib.Path) -> str | None:
    """Return the fault of a command of a shell block, or None."""
    if words[0] == "adamw-jax" or (words[:2] == ["uv", "run"] and "adamw-jax" in words):
        return check_adamw_jax(words[words.index("adamw-jax") + 1 :])
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        lost = [target for target in targets if target not in make_targets(root)]
        return f"the Makefile has no target {lost[0]}" if lost else None
    if words[0] in ("python", "python3") and len(words) > 1:
        name = words[2] if words[1] == "-m" else words[1]
        foreign = name in ("-c", "pip", "pytest", "venv")
        path = root / (name if name.endswith(".py") else name.replace(".", "/"))
        if not (foreign or path.exists() or path.with_suffix(".py").exists()):
            return f"there is no {name}"
    return None


def check_shell(page: pathlib.Path, block: Block, root: pathlib.Path) -> None:
    """Check that everything named in the commands of a shell block exists."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"].get("optional-dependencies", {})
    code = block.code.replace("\\\n", " ")
    named = re.findall(r"(?:\.|adamw-jax)\[([\w,-]+)\]|--extra[ =]([\w-]+)", code)
    for extra in ",".join(",".join(pair) for pair in named).split(","):
        if extra and extra not in extras:
            raise SystemExit(f"{page.name}:{block.line}: pyproject.toml has no extra {extra!r}")
    for line in code.splitlines():
        for part in re.split(r"&&|\|\||[|;]", line.partition(" #")[0]):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                del words[0]  # VARIABLE=value before a command
            wrong = check_command(words, root) if words else None
            if wrong:
                raise SystemExit(f"{page.name}:{block.line}: `{part.strip()}`: {wrong}")


def run_page(page: pathlib.Path, root: pathlib.Path = ROOT) -> int:
    """Run a page, print a line about it, and return the number of blocks run."""
    start = time.perf_counter()
    blocks = blocks_of(page)
    for block in blocks:
        if block.reason:
            print(f"   {page.name}:{block.line} not run: {block.reason}", flush=True)
    run = [block for block in blocks if not block.reason]
    for block in run:
        if block.language == "bash":
            check_shell(page, block, root)
    python = [block for block in run if block.language == "python"]
    if python:
        run_python(page, python)
    seconds = time.perf_counter() - start
    counts = f"{len(python)} Python blocks, {len(run) - len(python)} shell blocks"
    print(f"   {page.relative_to(root)}: {counts}, {seconds:.0f} s", flush=True)
    return len(run)


def main(names: list[str]) -> int:
    """Run the named pages, or every page; fail if there is no page or no code."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    pages = [(ROOT / name).resolve(strict=True) for name in names] or pages
    if not sum([run_page(page) for page in pages]):
        raise SystemExit("no code block found")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
