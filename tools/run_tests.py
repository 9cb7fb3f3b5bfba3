"""Run `make test`: the tests with one device and JAX's default configuration.

Two groups run in processes of their own, because XLA reads its flags once:

- tests marked `quick` (long tables) are compiled quickly: without most optimizations, in one piece,
  and by XLA's older code generator for CPUs where this XLA still has it: it compiles small programs
  in half the time;
- tests marked `devices` have eight simulated devices.

`--slow` runs the tests marked `slow`, compiled quickly, except those marked `long`, too, which
`--long` runs. `--both` runs every table of the catalogue the other way: those marked `quick` with
the default configuration, all others compiled quickly on eight devices. Other arguments go to
pytest.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def known(flag: str) -> str:
    """Return a flag if XLA knows it, else nothing: an unknown flag ends the process."""
    command = (sys.executable, "-c", "import jax; jax.devices()")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    run = subprocess.run(command, check=False, env=environment, capture_output=True)
    return "" if run.returncode else flag


QUICKLY = {
    "XLA_FLAGS": "--xla_cpu_parallel_codegen_split_count=1 "
    + known("--xla_cpu_use_fusion_emitters=false"),
    "ADAMW_JAX_QUICK_TESTS": "1",
}
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
PARTS = {
    "not quick and not devices": {},
    "quick and not devices": QUICKLY,
    "devices": EIGHT,
}
OTHER_WAY = {
    "quick and not devices and not optimized": {},
    "not quick and not devices and not optimized": {
        **QUICKLY,
        "XLA_FLAGS": f"{QUICKLY['XLA_FLAGS']} {EIGHT['XLA_FLAGS']}",
    },
}
NO_TABLES = (
    *("--ignore=tests/lab", "--ignore=tests/curvature", "--ignore=tests/initialization"),
    "--ignore-glob=tests/test_golden*",
)
DEVICES_IN = [str(f) for f in ROOT.glob("tests/**/test_*.py") if "mark.devices" in f.read_text()]
"""To collect only these files takes a quarter of a minute less."""
NOTHING_CHOSEN = 5  # pytest's exit status if no test is selected


def main(arguments: list[str]) -> int:
    """Run the parts; return the exit status of the first that fails."""
    lengths = {"--slow": "slow and not long", "--long": "long"}
    slow = [lengths[argument] for argument in arguments if argument in lengths]
    length = slow[0] if slow else "not slow"
    parts = OTHER_WAY if "--both" in arguments else PARTS
    rest = [argument for argument in arguments if argument not in ("--both", *lengths)]
    rest += NO_TABLES if "--both" in arguments else ()
    paths = [a for a in rest if a != "tests" and (ROOT / a.partition("::")[0]).exists()]
    rest = [a for a in rest if a not in (*paths, "tests")]
    statuses = []
    for kind, own in parts.items():
        if slow and kind == "not quick and not devices":
            own = {"ADAMW_JAX_QUICK_TESTS": "1"}
        chosen = [*rest, *(DEVICES_IN if kind == "devices" and not paths else paths)]
        flags = f"{os.environ.get('XLA_FLAGS', '')} {own.get('XLA_FLAGS', '')}".strip()
        command = (sys.executable, "-m", "pytest", "-m", f"{length} and {kind}", *chosen)
        environment = {**os.environ, **own, "XLA_FLAGS": flags}
        run = subprocess.run(command, cwd=ROOT, check=False, env=environment)
        statuses.append(run.returncode)
    failures = [status for status in statuses if status not in (0, NOTHING_CHOSEN)]
    return failures[0] if failures else min(statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
