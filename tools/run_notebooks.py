"""Execute every notebook in notebooks/; they are stored without outputs.

A script with the same name (jupytext's percent format) must have the same cells.
"""

from __future__ import annotations

import pathlib
import tempfile
import time

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
LIMIT = 300


def check_script(path: pathlib.Path, notebook: nbformat.NotebookNode) -> None:
    """Compare a notebook with the script of the same name, if there is one."""
    script = path.with_suffix(".py")
    if script.exists():
        cells = jupytext.read(script).cells
        if [cell.source for cell in cells] != [cell.source for cell in notebook.cells]:
            command = f"jupytext --to ipynb {script.name}"
            raise SystemExit(f"{path.name} and {script.name} differ; make one again: {command}")


def run_notebooks(folder: pathlib.Path, limit: int = LIMIT) -> int:
    """Execute the notebooks one after the other in empty folders; return their number.

    Args:
      folder: folder of the notebooks.
      limit: time limit per cell in seconds.
    """
    paths = sorted(folder.rglob("*.ipynb"))
    if not paths:
        raise SystemExit(f"no notebook found in {folder}")
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if not code:
            raise SystemExit(f"{path.name} has no code cell")
        if any(cell.outputs or cell.execution_count for cell in code):
            raise SystemExit(f"{path.name} is stored with outputs or counts: strip them")
        check_script(path, notebook)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as empty:
            resources = {"metadata": {"path": empty}}
            NotebookClient(notebook, timeout=limit, resources=resources).execute()
        seconds = time.perf_counter() - start
        print(f"   {path.name}: {len(code)} cells, {seconds:.0f} s", flush=True)
    return len(paths)


if __name__ == "__main__":
    print(f"   {run_notebooks(FOLDER)} notebooks ran")
