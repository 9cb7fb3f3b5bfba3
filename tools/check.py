"""`make check`: everything but the tests. Prints each step and its time; the first failure ends it.

`python tools/check.py lint types` runs only the steps named.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
PYTHON = sys.executable
STEPS = {
    "lint": (PYTHON, "-m", "ruff", "check", "."),
    "format": (PYTHON, "-m", "ruff", "format", "--check", "."),
    "types": (PYTHON, "-m", "pyright", "--pythonpath", PYTHON),
    "table": (PYTHON, "tools/readme_table.py", "--check"),
    "pages": (PYTHON, "tools/optimizer_pages.py", "--check"),
    "pictures": (PYTHON, "tools/optimizer_pictures.py", "--check"),
    "codes": (PYTHON, "tools/quantization_errors.py", "--check"),
    "slow": (PYTHON, "-m", "pytest", "tests", "-m", "slow"),
    "blocks": (PYTHON, "tools/run_blocks.py"),
    "examples": (PYTHON, "tools/run_examples.py"),
    "notebooks": (PYTHON, "tools/run_notebooks.py"),
    "wheel": (PYTHON, "tools/try_wheel.py"),
}


def main(names: list[str]) -> int:
    """Runs the steps in order and returns the exit status of the first that fails."""
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise SystemExit(f"unknown step {unknown[0]!r}; there are {', '.join(STEPS)}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    begin = time.perf_counter()
    for name in names or STEPS:
        print(f"-- {name}", flush=True)
        start = time.perf_counter()
        status = subprocess.run(STEPS[name], cwd=ROOT, check=False).returncode
        print(f"   {name}: {time.perf_counter() - start:.0f} s", flush=True)
        if status:
            print(f"check: {name} failed", file=sys.stderr)
            return status
    print(f"check: all is well after {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
