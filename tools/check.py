"""`make check`: everything but the tests. Each step's name and time is printed; the first failure ends it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
SMOKE = """
import pathlib, jax.numpy as jnp, adamw_jax as aj
assert "site-packages" in aj.__file__, aj.__file__
assert (pathlib.Path(aj.__file__).parent / "py.typed").exists()
for name in aj.list_optimizers():
    tx, params = aj.create("lookahead_" + name, 1e-3), {"w": jnp.ones(3)}
    updates, state = tx.update(params, tx.init(params), params)
    assert bool(jnp.isfinite(updates["w"]).all()), name
print("wheel:", aj.__file__)
"""


def run(title: str, *command: str, cwd: pathlib.Path = ROOT) -> None:
    """Runs one step and stops the check where it fails."""
    start = time.perf_counter()
    print(f"-- {title}", flush=True)
    done = subprocess.run(command, cwd=cwd, check=False)
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    if done.returncode:
        raise SystemExit(f"{title} failed: {' '.join(command)}")


def other_pythons() -> list[str]:
    """Interpreters of another version than this one, 3.11 or newer, that really run."""
    found = []
    for minor in range(11, 16):
        path = shutil.which(f"python3.{minor}")
        if path and minor != sys.version_info.minor:
            works = subprocess.run([path, "-c", "import venv"], capture_output=True, check=False)
            if works.returncode == 0:
                found.append(path)
    return found


def install_wheel(python: str, folder: pathlib.Path, wheel: pathlib.Path) -> None:
    """Installs the wheel for an interpreter and uses it from an empty folder."""
    name = pathlib.Path(python).name
    venv, empty = folder / f"venv-{name}", folder / f"empty-{name}"
    empty.mkdir()
    inside = str(venv / "bin" / "python")
    run(f"environment for {name}", python, "-m", "venv", str(venv))
    pip = (inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    constraints = str(ROOT / "constraints.txt")
    run(f"install the wheel for {name}", *pip, "-c", constraints, str(wheel))
    run(f"use the wheel from an empty folder, {name}", inside, "-c", SMOKE, cwd=empty)


def main() -> int:
    """Runs every step."""
    python = sys.executable
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    run("lint", python, "-m", "ruff", "check", ".")
    run("format", python, "-m", "ruff", "format", "--check", ".")
    run("types", python, "-m", "pyright")
    run("README's table", python, "tools/readme_table.py", "--check")
    run("code in README and docs", python, "tools/run_blocks.py")
    scripts = sorted((ROOT / "examples").glob("*.py"))
    if not scripts:
        raise SystemExit("no script found in examples/")
    for script in scripts:
        run(f"example {script.name}", python, str(script))
    run("notebooks", python, "tools/run_notebooks.py")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        run("build the wheel", python, "-m", "build", "--wheel", "--outdir", str(folder), ".")
        (wheel,) = folder.glob("*.whl")
        install_wheel(python, folder, wheel)
        others = other_pythons()
        for other in others:
            install_wheel(other, folder, wheel)
        if not others:
            print("-- no second Python version on this machine: the wheel was tried with one only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
