"""Build the wheel and use it from an empty folder, with this Python and another version.

The other Python also runs TESTS against the installed wheel, as `make test` does, and the code of
PAGE. It gets another release of JAX, so this finds calls that JAX has renamed or removed.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
TESTS = (
    *("tests/test_stages.py", "tests/test_golden.py", "tests/test_rules.py"),
    *("tests/test_sharding.py", "tests/test_robust_sharded.py", "tests/test_restore_layouts.py"),
)
PAGE = "docs/sharding.md"
WORKS = "import sys, venv, ensurepip; print(sys.version_info.minor * (sys.version_info.major == 3))"
USE = """
import pathlib, sys
import adamw_jax as aj
import jax, jax.numpy as jnp
folder = pathlib.Path(aj.__file__).parent
assert folder.is_relative_to(sys.prefix), f"not the wheel but {folder}"
assert (folder / "py.typed").exists(), "py.typed is missing"
for name in aj.list_optimizers():
    tx = aj.create(name, 1e-3, **aj.info(name).example)
    params = {"w": jnp.ones(3)}
    updates, _ = tx.update(params, tx.init(params), params, value=1.0)
    assert bool(jnp.isfinite(updates["w"]).all()), name
print(f"   Python {sys.version.split()[0]}, jax {jax.__version__}: the wheel works")
"""


def run(*command: str | os.PathLike[str], cwd: pathlib.Path = ROOT) -> None:
    """Run a command; exit if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    status = subprocess.run(command, cwd=cwd, env=environment, check=False).returncode
    if status:
        raise SystemExit(f"failed ({status}): {' '.join(map(str, command))}")


def build(folder: pathlib.Path) -> pathlib.Path:
    """Build the wheel and check its files."""
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    strangers = sorted(top for top in tops if top != "adamw_jax" and ".dist-info" not in top)
    if strangers:
        raise SystemExit(f"the wheel holds more than the package: {strangers}")
    return wheel


def environment(python: str, folder: pathlib.Path, wheel: str) -> pathlib.Path:
    """Make an environment with the wheel and use it from an empty folder."""
    venv = folder / f"venv-{pathlib.Path(python).name}"
    run(python, "-m", "venv", venv)
    inside = venv / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    options = ("--quiet", "--disable-pip-version-check", "-c", constraints)
    run(inside, "-m", "pip", "install", *options, wheel)
    empty = pathlib.Path(tempfile.mkdtemp(dir=folder))
    run(inside, "-c", USE, cwd=empty)
    return inside


def other_python() -> str | None:
    """Return the newest other interpreter on this machine, 3.11 or later."""
    paths = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT") or pathlib.Path.home() / ".pyenv")
    paths += sorted(map(str, pyenv.glob("versions/3.*/bin/python3.[1-9][0-9]")))
    found: dict[int, str] = {}
    for path in filter(None, paths):
        answer = subprocess.run([path, "-c", WORKS], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and int(answer.stdout) >= 11:
            found.setdefault(int(answer.stdout), path)
    found.pop(sys.version_info.minor, None)
    return found[max(found)] if found else None


def main() -> int:
    """Build, install and use the wheel; repeat this with another Python, and run some tests."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wheel = build(folder)
        environment(sys.executable, folder, str(wheel))
        other = other_python()
        if other is None:
            print("   no other Python >= 3.11 on this machine: the wheel was tried with this one")
            return 0
        inside = environment(other, folder, f"adamw-jax[test] @ {wheel.as_uri()}")
        try_tests(inside, folder / "copy")
    return 0


def try_tests(python: pathlib.Path, copy: pathlib.Path) -> None:
    """Run tests and the page with another Python, from a copy in which the package is missing."""
    for name in ("tests", "tools", "docs"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, copy)
    run(python, "tools/run_tests.py", *TESTS, cwd=copy)
    run(python, "tools/run_blocks.py", PAGE, cwd=copy)


if __name__ == "__main__":
    sys.exit(main())
