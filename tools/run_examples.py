"""Run every script in examples/, each in its own process and an empty folder."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
LIMIT = 180.0


def run_examples(folder: pathlib.Path, limit: float = LIMIT) -> int:
    """Run the scripts one after the other; return their number.

    Args:
      folder: folder of the scripts.
      limit: time limit per script in seconds.
    """
    scripts = sorted(folder.glob("*.py"))
    if not scripts:
        raise SystemExit(f"no example found in {folder}")
    for script in scripts:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as empty:
            command = [sys.executable, str(script)]
            try:
                status = subprocess.run(command, cwd=empty, timeout=limit, check=False).returncode
            except subprocess.TimeoutExpired:
                raise SystemExit(f"{script.name} took more than {limit:.0f} s") from None
        if status:
            raise SystemExit(f"{script.name} failed with status {status}")
        print(f"   {script.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return len(scripts)


if __name__ == "__main__":
    print(f"   {run_examples(FOLDER)} examples ran")
