"""Execute every notebook in notebooks/; with --write, store it with its outputs.

A script with the same name (jupytext's percent format) must have the same cells.
"""

from __future__ import annotations

import pathlib
import sys
import tempfile
import time

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
LIMIT = 300
WRITE = "python tools/run_notebooks.py --write"


def check_script(path: pathlib.Path, notebook: nbformat.NotebookNode) -> None:
    """Compare a notebook with the script of the same name, if there is one."""
    script = path.with_suffix(".py")
    if script.exists():
        cells = jupytext.read(script).cells
        if [cell.source for cell in cells] != [cell.source for cell in notebook.cells]:
            raise SystemExit(f"{path.name} and {script.name} differ: {WRITE}")


def run_notebooks(folder: pathlib.Path, limit: int = LIMIT, *, write: bool = False) -> int:
    """Execute the notebooks one after the other in empty folders; return their number.

    Args:
      folder: folder of the notebooks.
      limit: time limit per cell in seconds.
      write: take the cells of the scripts, and store what they print.
    """
    paths = sorted(folder.rglob("*.ipynb"))
    if not paths:
        raise SystemExit(f"no notebook found in {folder}")
    for path in paths:
        script = path.with_suffix(".py")
        notebook = jupytext.read(script) if write else nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if not code:
            raise SystemExit(f"{path.name} has no code cell")
        if not (write or all(cell.execution_count for cell in code)):
            raise SystemExit(f"{path.name} is stored without outputs: {WRITE}")
        check_script(path, notebook)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as empty:
            resources = {"metadata": {"path": empty}}
            NotebookClient(notebook, timeout=limit, resources=resources).execute()
        if write:
            for cell in code:
                cell.metadata.pop("execution", None)  # times
            nbformat.write(notebook, path)
        seconds = time.perf_counter() - start
        print(f"   {path.name}: {len(code)} cells, {seconds:.0f} s", flush=True)
    return len(paths)


if __name__ == "__main__":
    print(f"   {run_notebooks(FOLDER, write='--write' in sys.argv)} notebooks ran")
