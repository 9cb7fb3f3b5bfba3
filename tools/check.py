"""Run `make check`: everything except the quick tests. Print each step and its time.

Two steps run at a time, except steps of tests, which have two workers of their own. After a
failure no other step begins. `python tools/check.py lint types` runs only these steps, and `gate`
stands for all that `.ci/run` has the time for.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import time
from concurrent import futures

ROOT = pathlib.Path(__file__).parents[1]
PYTHON = sys.executable
STEPS = {
    "lint": (PYTHON, "-m", "ruff", "check", "."),
    "format": (PYTHON, "-m", "ruff", "format", "--check", "."),
    "wheel": (PYTHON, "tools/try_wheel.py"),
    "types": (PYTHON, "-m", "pyright", "--pythonpath", PYTHON),
    "table": (PYTHON, "tools/readme_table.py", "--check"),
    "exports": (PYTHON, "tools/optimizer_exports.py", "--check"),
    "pages": (PYTHON, "tools/optimizer_pages.py", "--check"),
    "pictures": (PYTHON, "tools/optimizer_pictures.py", "--check"),
    "properties": (PYTHON, "tools/properties.py", "--check"),
    "claims": (PYTHON, "tools/results.py", "--check"),
    "scale": (PYTHON, "tools/scale.py", "--check"),
    "site": (PYTHON, "tools/site.py"),
    "codes": (PYTHON, "tools/quantization_errors.py", "--check"),
    "blocks": (PYTHON, "tools/run_blocks.py"),
    "examples": (PYTHON, "tools/run_examples.py"),
    "notebooks": (PYTHON, "tools/run_notebooks.py"),
    "slow": (PYTHON, "tools/run_tests.py", "--slow", "tests"),
    "both-ways": (PYTHON, "tools/run_tests.py", "--both", "tests"),
    "long": (PYTHON, "tools/run_tests.py", "--long", "tests"),
}
ALONE = ("slow", "both-ways", "long")
SETS = {"gate": [name for name in STEPS if name not in ("both-ways", "long")]}


def main(names: list[str]) -> int:
    """Run the steps; return the exit status of the first that fails."""
    unknown = [name for name in names if name not in (*STEPS, *SETS)]
    if unknown:
        known = ", ".join((*SETS, *STEPS))
        raise SystemExit(f"unknown step {unknown[0]!r}; choose from {known}")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    begin = time.perf_counter()
    chosen = [step for name in names or STEPS for step in SETS.get(name, [name])]
    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        runs = [pool.submit(run, name) for name in chosen if name not in ALONE]
        for done in futures.as_completed(runs):
            if done.result():
                pool.shutdown(cancel_futures=True)
                return done.result()
    for name in ALONE:
        if name in chosen and (status := run(name, shown_at_once=True)):
            return status
    print(f"check: passed after {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


def run(name: str, *, shown_at_once: bool = False) -> int:
    """Run a step, show its output at once or at the end, and return its status."""
    start, where = time.perf_counter(), None if shown_at_once else subprocess.PIPE
    ended = subprocess.run(
        STEPS[name], cwd=ROOT, check=False, text=True, stdout=where, stderr=subprocess.STDOUT
    )
    verdict = "failed" if ended.returncode else "done"
    text = f"-- {name}\n{ended.stdout or ''}   {name}: {verdict}, "
    print(f"{text}{time.perf_counter() - start:.0f} s", flush=True)
    return ended.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
