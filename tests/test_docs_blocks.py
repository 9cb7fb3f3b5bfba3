"""The tools behind `make check` find what is broken: a page, a command, an example."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import types

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOOLS = ROOT / "tools"

# The gate tries these tests on the installed wheel too, where there is no tools/.
pytestmark = pytest.mark.skipif(not TOOLS.is_dir(), reason="tools/ is not in the wheel")


def tool(name: str) -> types.ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def house(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the Makefile and pyproject.toml that pages are checked against."""
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def run_page(house: pathlib.Path, text: str) -> int:
    page = house / "page.md"
    page.write_text(text, encoding="utf-8")
    return tool("run_blocks").run_page(page, house)


def test_blocks_of_a_page_share_a_namespace(house):
    assert (
        run_page(house, "```python\nx = 1\n```\n\n1. item\n\n   ```python\n   x += 1\n   ```\n")
        == 2
    )


def test_broken_block_is_found_with_its_line(house, capfd):
    with pytest.raises(SystemExit, match="a Python block failed"):
        run_page(house, "text\n\n```python\nx = 1\nassert x == 2\n```\n")
    assert 'page.md", line 5' in capfd.readouterr().err


def test_block_left_out_says_why(house, capsys):
    text = "<!-- not run: needs a GPU -->\n```python\nassert False\n```\n"
    assert run_page(house, text) == 0
    assert "not run: needs a GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("make tset", "no target tset"),
        ("cd there && make tset", "no target tset"),
        ("python tools/nothing.py", "there is no tools/nothing.py"),
        ("python -m nothing.here", "there is no nothing.here"),
        ('pip install -e ".[tset]"', "no extra 'tset'"),
        ("uv run --extra tset adamw-jax list", "no extra 'tset'"),
        ("adamw-jax tset", "unknown command 'tset'"),
        ("adamw-jax demo --tset 3", "does not know --tset"),
    ],
)
def test_command_that_does_not_exist_is_found(house, line, message):
    with pytest.raises(SystemExit, match=message):
        run_page(house, f"```bash\n{line}\n```\n")


def test_commands_that_exist_pass(house):
    lines = "make test TEST_ARGS=-x  # comment\npip install -e '.[demo,test]' && adamw-jax demo\nls"
    assert run_page(house, f"```bash\n{lines}\n```\n") == 1


def test_other_spelling_of_a_language_does_not_slip_through(house):
    with pytest.raises(SystemExit, match="write ```python"):
        run_page(house, "```py\nassert False\n```\n")


def test_examples(tmp_path):
    """None found, a failing one and a slow one are errors."""
    run = tool("run_examples").run_examples
    with pytest.raises(SystemExit, match="no example found"):
        run(tmp_path)
    (tmp_path / "a.py").write_text("print(1)", encoding="utf-8")
    assert run(tmp_path) == 1
    (tmp_path / "b.py").write_text("raise SystemExit(3)", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"b\.py failed with status 3"):
        run(tmp_path)
    (tmp_path / "b.py").write_text("while True: pass", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"b\.py took more than"):
        run(tmp_path, limit=1.0)


def test_every_page_is_in_the_list_of_pages():
    """A reader finds a page by its question."""
    listed = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(pages) > 20
    assert not [page for page in sorted(pages) if f"({page})" not in listed]
