"""`make test`: the tests, those that judge what XLA makes of a program apart from all others.

Compiling is most of what nearly all tests do, and XLA's older code generator for CPUs compiles
small programs in half the time. It is chosen once in a process, so the tests marked `optimized`,
which compile as users do, have a process of their own.

`python tools/run_tests.py --slow` runs the tests marked `slow`; other arguments are pytest's.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
QUICKLY = "--xla_cpu_use_fusion_emitters=false"
NOTHING_CHOSEN = 5  # pytest's exit status where no test is left


def main(arguments: list[str]) -> int:
    """Runs both parts and returns the exit status of the first that fails."""
    length = "slow" if "--slow" in arguments else "not slow"
    rest = [argument for argument in arguments if argument != "--slow"]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {QUICKLY}".strip()
    statuses = []
    for kind, environment in (("not optimized", {"XLA_FLAGS": flags}), ("optimized", {})):
        command = (sys.executable, "-m", "pytest", "-m", f"{length} and {kind}", *rest)
        run = subprocess.run(command, cwd=ROOT, check=False, env={**os.environ, **environment})
        statuses.append(run.returncode)
    failures = [status for status in statuses if status not in (0, NOTHING_CHOSEN)]
    return failures[0] if failures else min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
