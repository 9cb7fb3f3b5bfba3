"""A disk that is really full: one clear line, and what was on it stays.

The disk is a file system in memory of a few hundred kilobytes, in a mount namespace of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def may_mount() -> bool:
    """Whether a process of this user gets a namespace in which it may mount."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, check=False).returncode


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not may_mount(), reason="unshare of Linux may not mount a small file system here"
    ),
]


PRELUDE = """
    import os, pathlib, sys
    disk = pathlib.Path(sys.argv[1])
    other = disk / "other"  # of another program

    def leave(room):
        count = max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - room)
        other.write_bytes(bytes(count))
    """


def on_small_disk(folder: Path, size: str, script: str) -> tuple[str, str]:
    """What a script prints, also as errors, that has a new disk of this size at ``folder``."""
    mounted = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    program = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    python = (sys.executable, "-c", program, str(folder))
    command = ["unshare", "-rm", "sh", "-c", mounted, str(folder), *python]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout, run.stderr


def test_a_checkpoint_that_does_not_fit(tmp_path: Path) -> None:
    """The error names step and folder, nothing is half-written, and the last good one restores."""
    script = """
        from tests.test_checkpoint_faults import check_last, save

        save(disk / "run", 1)
        leave(20_000)
        try:
            save(disk / "run", 2)
        except OSError as error:
            print(error)
        print("last", check_last(disk / "run"), [each.name for each in (disk / "run").iterdir()])
        other.unlink()
        save(disk / "run", 3)
        print("last", check_last(disk / "run"))
        """
    first, *rest = on_small_disk(tmp_path, "1m", script)[0].splitlines()
    assert "could not save step 2" in first
    assert "No space left on device" in first
    assert rest == ["last 1 ['1-step1']", "last 3"]


def test_a_run_that_fills_the_disk(tmp_path: Path) -> None:
    """One line; with room again, --resume ends the run, with the rows of any other run."""
    script = """
        import contextlib, io
        from adamw_jax.lab.cli import main

        def run(name, *more):
            command = ["run", "reddi", "--preset", "tiny", "--out", str(disk / name), *more]
            with contextlib.redirect_stdout(io.StringIO()):
                status = main(command)
            print("status", status, file=sys.stderr)
            return disk / name / "tables"

        def rows(folder):
            return [(each.name, each.read_bytes()) for each in sorted(folder.glob("*.csv"))]

        expected = rows(run("whole"))
        for room in (0, 8_000, 100_000):  # too little to begin, for the rows, for the report
            leave(room)
            run("cut", "--resume")
            other.unlink()
        assert rows(run("cut", "--resume")) == expected
        """
    _, said = on_small_disk(tmp_path, "1m", script)
    assert re.fullmatch(
        r"status 0\n(error: [^\n]*No space left[^\n]*\nstatus 2\n){3}status 0\n", said
    )
