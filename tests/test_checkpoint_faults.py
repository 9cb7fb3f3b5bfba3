"""What happens to files, disks and processes, happens here, and the last good checkpoint stays."""

from __future__ import annotations

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest

from adamw_jax import adamw
from adamw_jax.state import PREEMPTED, _folder, restore_checkpoint, save_checkpoint
from tests.catalogue import assert_equal

ROOT = pathlib.Path(__file__).parents[1]
TX = adamw(0.1)
posix = pytest.mark.skipif(
    os.name != "posix", reason="signals, limits and rights are those of POSIX"
)


def params_at(step: int) -> Any:
    return {"kernel": jnp.full((64, 64), float(step)), "bias": jnp.arange(5.0) * step}


def save(folder: pathlib.Path, step: int) -> pathlib.Path:
    params = params_at(step)
    return save_checkpoint(folder, step, TX, params, TX.init(params), data=step)


def check_last(folder: pathlib.Path) -> int:
    """Return the step of the last checkpoint, which is whole."""
    back = restore_checkpoint(folder, TX, params_at(0))
    assert_equal((back.params, back.state), (params_at(back.step), TX.init(params_at(back.step))))
    assert back.data == back.step
    return back.step


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 1)
    save(folder, 2)
    return folder


@pytest.fixture
def copy(saved: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def refused(folder: pathlib.Path, name: str) -> None:
    """The last checkpoint is refused, with the name of a file; the one before is there.

    If one of two files may be the changed one, the error says so.
    """
    with pytest.raises(ValueError, match="Restore an earlier checkpoint with step=") as error:
        restore_checkpoint(folder, TX, params_at(0))
    blamed = re.search(
        r"(\S+) is (?:not the (?:file|list) that was saved|missing)", str(error.value)
    )
    assert blamed is not None
    suspects = {blamed[1], *re.findall(r"or (\S+) was changed", str(error.value))}
    assert any(suspect.endswith(name) for suspect in suspects)
    assert str(folder / "2-step2") in str(error.value)


def test_every_flipped_bit_is_found(copy: pathlib.Path) -> None:
    """300 bits, at least one in every file; through Orbax alone, half of them restore."""
    rng = random.Random(0)
    files = files_in(copy / "2-step2")
    assert {"manifest.json", "files.sha256", "_METADATA"} <= {file.name for file in files}
    sizes = [file.stat().st_size for file in files]
    for file in files + rng.choices(files, sizes, k=300 - len(files)):
        content = file.read_bytes()
        bad = bytearray(content)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        file.write_bytes(bad)
        refused(copy, file.name)
        file.write_bytes(content)
    assert check_last(copy) == 2


DAMAGES: dict[str, Callable[[pathlib.Path, pathlib.Path], object]] = {
    "cut in half": lambda file, _: os.truncate(file, file.stat().st_size // 2),
    "cut by a byte": lambda file, _: os.truncate(file, file.stat().st_size - 1),
    "emptied": lambda file, _: os.truncate(file, 0),
    "longer by a byte": lambda file, _: file.write_bytes(file.read_bytes() + b"\n"),
    "removed": lambda file, _: file.unlink(),
    "of another checkpoint": lambda file, other: shutil.copy(other, file),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused_by_name(copy: pathlib.Path, damage: str) -> None:
    step_1 = {file.name: file for file in files_in(copy / "1-step1")}
    refusals = 0
    for file in files_in(copy / "2-step2"):
        content, other = file.read_bytes(), step_1.get(file.name)
        if damage == "of another checkpoint" and (other is None or other.read_bytes() == content):
            continue  # it has a name of its own, or is the same
        DAMAGES[damage](file, other or file)
        refused(copy, file.name)
        file.write_bytes(content)
        refusals += 1
    assert refusals >= 4
    assert check_last(copy) == 2


def test_foreign_files_and_folders_are_refused(copy: pathlib.Path) -> None:
    foreign = copy / "2-step2" / "arrays" / "d" / "note.txt"
    foreign.write_text("mine")
    refused(copy, "arrays/d/note.txt")
    foreign.unlink()
    foreign.symlink_to("nowhere")
    refused(copy, "arrays/d/note.txt")
    foreign.unlink()
    foreign.symlink_to(copy / "1-step1")
    refused(copy, "arrays/d/note.txt")
    foreign.unlink()
    foreign.mkdir()
    refused(copy, "arrays/d/note.txt")
    foreign.rmdir()
    (copy / "notes").mkdir()  # not a name of ours
    (copy / "best-step9.partial").mkdir()
    assert check_last(copy) == 2
    (copy / "3-step3").mkdir()
    with pytest.raises(ValueError, match=r"files\.sha256 is missing: .* was not written by save_"):
        check_last(copy)
    assert restore_checkpoint(copy, TX, params_at(0), step=2).step == 2
    save(copy, 4)
    assert sorted(each.name for each in copy.iterdir())[-2:] == ["best-step9.partial", "notes"]


def child(script: str, folder: pathlib.Path) -> Any:
    """Run a script after ``save`` and the checkpoint of step 1, in a process of its own."""
    begin = f"""
        import os, pathlib, resource, signal, sys
        from tests.test_checkpoint_faults import TX, params_at, save
        folder = pathlib.Path({str(folder)!r})
        save(folder, 1)
        """
    text = textwrap.dedent(begin) + textwrap.dedent(script)
    command, homeless = [sys.executable, "-c", text], os.environ.copy()
    homeless.pop("HOME", None)
    given: Any = {"capture_output": True, "text": True, "check": False}
    return subprocess.run(command, cwd=ROOT, env=homeless, **given)


COUNTED = """
    count = 0

    def killer(event, args):
        global count
        if event in {events} and str(folder) in str(args[0]):
            count += 1
            if count == {at}:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(killer)
    save(folder, 2)
    save(folder, 3)
    print(count)
    """
EVENTS = ("open", "os.mkdir", "os.rename", "os.scandir", "shutil.rmtree")


def last_after_a_kill(folder: pathlib.Path, at: int, events: tuple[str, ...] = EVENTS) -> int:
    """Return the last step of a folder in which a process was killed; it can be saved to again.

    Orbax opens a few files more or less in each run: a process that never came to event ``at``
    printed how many it had, and has saved all.
    """
    killed = child(COUNTED.format(at=at, events=events), folder)
    if killed.returncode == 0:
        assert int(killed.stdout) < at
        assert check_last(folder) == 3
    else:
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    step = check_last(folder)
    save(folder, 4)
    assert check_last(folder) == 4
    assert not [*folder.glob("*.partial")]
    return step


@posix
@pytest.mark.parametrize(("event", "at", "last"), [("os.rename", 2, 1), ("shutil.rmtree", 1, 3)])
def test_a_kill_around_the_change(tmp_path: pathlib.Path, event: str, at: int, last: int) -> None:
    """Just before a checkpoint gets its name (the first rename is Orbax's); and in removing one."""
    assert last_after_a_kill(tmp_path, at, (event,)) == last


@posix
@pytest.mark.slow
def test_a_kill_at_any_point_of_a_save(tmp_path: pathlib.Path) -> None:
    """SIGKILL when the n-th file is opened, renamed or removed, in saving two checkpoints."""
    whole = child(COUNTED.format(at=-1, events=EVENTS), tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    count, points = int(whole.stdout), 12
    places = sorted({round(1 + (count - 1) * i / (points - 1)) for i in range(points)})
    steps = [last_after_a_kill(tmp_path / str(at), at) for at in places]
    assert len(steps) > 9
    assert steps == sorted(steps)
    assert {1, 2} <= {*steps} <= {1, 2, 3}


@posix
@pytest.mark.slow
def test_a_kill_at_any_time(tmp_path: pathlib.Path) -> None:
    """SIGKILL at random times, also while C++ writes: the last listed checkpoint is whole."""
    script = """
        import threading
        print("begun", flush=True)
        for step in range(2, 10_000):
            save(folder, step)
        """
    rng = random.Random(0)
    for i in range(6):
        text = f"import os, signal, threading\nthreading.Timer({rng.uniform(0.05, 0.8)}, "
        text += "os.kill, (os.getpid(), signal.SIGKILL)).start()\n" + textwrap.dedent(script)
        killed = child(text, tmp_path / str(i))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert check_last(tmp_path / str(i)) >= 1


@posix
def test_full_disk_and_read_only_folder() -> None:
    """The error names the folder, and the last checkpoint stays."""
    script = """
        def failed(step):
            try:
                save(folder, step)
            except OSError as error:
                print(error)
            else:
                print("saved")

        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        failed(2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        folder.chmod(0o555)
        if os.getuid() == 0:
            os.setuid(65534)  # root may write anywhere
        failed(3)
        """
    with tempfile.TemporaryDirectory() as parent:  # that of pytest is closed to other users
        folder = pathlib.Path(parent) / "run"
        folder.parent.chmod(0o755)
        done = child(script, folder)
        folder.chmod(0o755)
        assert check_last(folder) == 1
        save(folder, 4)
        assert sorted(each.name for each in folder.iterdir()) == ["1-step1", "2-step4"]
    full, _, denied = done.stdout.partition("could not save step 3")
    assert "could not save step 2" in full, done.stdout + done.stderr
    assert f"in {folder}: " in full
    assert "Permission denied" in denied, done.stdout + done.stderr


@posix
def test_two_runs_do_not_write_into_one_folder(copy: pathlib.Path) -> None:
    """While one saves the other is refused; a lock of a process that ended is none."""
    with _folder.alone(copy):
        with pytest.raises(OSError, match=r"could not save step 3 in .*: another run is saving"):
            save(copy, 3)
        assert check_last(copy) == 2
    save(copy, 3)
    assert check_last(copy) == 3


@posix
def test_sigterm_saves_and_exits(tmp_path: pathlib.Path) -> None:
    """One that no check saw has its usual effect after the block; the code may be another."""
    script = """
        from adamw_jax.state import save_on_sigterm
        signal.signal(signal.SIGTERM, lambda *_: print("as before"))
        with save_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            with save_on_sigterm(3) as check:
                os.kill(os.getpid(), signal.SIGTERM)
                check(2, lambda: print("saved"))
        except SystemExit as end:
            print(end.code)
        with save_on_sigterm() as check:
            for step in range(2, 10):
                if step == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                check(step, lambda: save(folder, step))
        print("not reached")
        """
    done = child(script, tmp_path / "run")
    assert done.stdout == "as before\nsaved\n3\n", done.stderr
    assert done.returncode == PREEMPTED
    assert check_last(tmp_path / "run") == 5
