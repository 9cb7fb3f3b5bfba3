"""Executes every notebook in notebooks/; they are stored without outputs and stay so."""

from __future__ import annotations

import pathlib
import sys
import time

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"


def main() -> int:
    """Runs the notebooks one after the other."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    if not paths:
        raise SystemExit(f"no notebook found in {FOLDER}")
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code" and cell.outputs:
                raise SystemExit(f"{path.name} is stored with outputs: strip them")
        start = time.perf_counter()
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": FOLDER}}).execute()
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
