"""Real processes: one is killed, and the run goes on in another number of processes."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from adamw_jax.state import PREEMPTED

ROOT = pathlib.Path(__file__).parents[1]
UNTIL, LONGEST = 32, 300  # steps, seconds
COMPILED_QUICKLY = "--xla_backend_optimization_level=0"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.first,
    pytest.mark.skipif(
        sys.platform == "win32", reason="jaxlib for Windows has no gloo, and there is no SIGKILL"
    ),
]


def start(
    count: int,
    folder: pathlib.Path,
    *options: str,
    devices: int = 1,
    until: int = UNTIL,
    fault: tuple[str, ...] = (),
    faulty: int = -1,
) -> list[Any]:
    """Start ``count`` processes with so many devices each; one, the last, has a fault."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} {COMPILED_QUICKLY}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    started = []
    for rank in range(count):
        given = {"rank": rank, "processes": count, "port": port, "folder": folder, "until": until}
        pairs = [f"--{name}={value}" for name, value in given.items()]
        own = fault if rank == faulty % count else ()
        command = [sys.executable, "-m", "tests.process_worker", *pairs, *options, *own]
        with folder.with_name(f"{folder.name}.{rank}.log").open("a") as log:
            to_log: Any = {"stdout": log, "stderr": log}
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **to_log))
    return started


def finish(processes: list[Any], seconds: float = LONGEST) -> list[int]:
    """Wait for all of them; what does not end is killed, and fails the test."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def killed(processes: list[Any], faulty: int = -1) -> None:
    """Wait until the faulty one has killed itself, and end the others, as a scheduler does.

    By themselves they wait for its heartbeat.
    """
    try:
        assert processes[faulty].wait(LONGEST) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.wait()


def steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(each.name.partition("-step")[2]) for each in folder.glob("*-step*[0-9]"))


def numbers(path: pathlib.Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[str(i)] for i in range(len(file.files))]


def assert_same(got: pathlib.Path, wanted: pathlib.Path) -> None:
    for x, y in zip(numbers(got), numbers(wanted), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run of two processes that nothing happens to; its numbers lie beside its folder."""
    folder = tmp_path_factory.mktemp("processes") / "unbroken"
    assert finish(start(2, folder, f"--end={folder.with_suffix('.npz')}")) == [0, 0]
    return folder


def test_a_killed_process_and_other_numbers_of_processes(
    tmp_path: pathlib.Path, unbroken: pathlib.Path
) -> None:
    """2, one killed: again 2, bitwise the unbroken run; or 4, one killed; 2 with two devices each,
    ended by SIGTERM; and then 1. In all of them a bad step of one process was skipped.
    """
    broken, moved = (tmp_path / name for name in ("broken", "moved"))
    ends = {folder: folder.with_suffix(".npz") for folder in (unbroken, broken, moved)}

    killed(start(2, broken, fault=("--fault=SIGKILL", "--at=13")))
    assert steps_in(broken)[-1] == 12
    shutil.copytree(broken, moved)

    assert finish(start(2, broken, f"--end={ends[broken]}")) == [0, 0]
    assert_same(ends[broken], ends[unbroken])

    killed(start(4, moved, fault=("--fault=SIGKILL", "--at=17")))
    assert steps_in(moved)[-1] == 16
    assert (
        finish(start(2, moved, devices=2, fault=("--fault=SIGTERM", "--at=21"))) == [PREEMPTED] * 2
    )
    assert 21 <= steps_in(moved)[-1] < UNTIL
    assert finish(start(1, moved, f"--end={ends[moved]}")) == [0]
    for got, want in zip(numbers(ends[moved]), numbers(ends[unbroken]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    for log in (f"{unbroken}.0.log", f"{unbroken}.1.log", f"{broken}.1.log", f"{moved}.0.log"):
        assert "{'skipped': 1, 'by_gradient': 1}" in pathlib.Path(log).read_text(), log


POINTS = {
    "before the first wrote all its arrays": (0, "os.rename", 1),
    "before it gets its name": (0, "os.rename", 2),
    "another process, before its first file": (-1, "open", 1),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_in_a_save_of_several_processes(
    tmp_path: pathlib.Path, unbroken: pathlib.Path, point: str
) -> None:
    """The save of step 12 is lost, that of step 8 is whole, and the run ends as the unbroken one.

    The first rename is Orbax's, of the arrays.
    """
    faulty, event, times = POINTS[point]
    folder, end = tmp_path / "run", tmp_path / "end.npz"
    fault = ("--fault=SIGKILL", "--at=11", f"--event={event}", f"--times={times}")
    killed(start(2, folder, fault=fault, faulty=faulty), faulty)
    assert steps_in(folder)[-1] == 8
    assert finish(start(2, folder, f"--end={end}")) == [0, 0]
    assert not [*folder.glob("*.partial")]
    assert_same(end, unbroken.with_suffix(".npz"))


def test_codes_and_averages_go_on(tmp_path: pathlib.Path) -> None:
    """8-bit codes, their scales and averages; 2 goes on bitwise, and 4 and 1 read what 2 wrote."""
    recipe = "--recipe=codes and averages"
    names = ("unbroken", "broken", "at 12", "read by 4", "read by 1")
    unbroken, broken, saved, by_4, by_1 = (tmp_path / name for name in names)
    ends = {folder: folder.with_suffix(".npz") for folder in (unbroken, broken, saved, by_4, by_1)}
    assert finish(start(2, unbroken, recipe, f"--end={ends[unbroken]}")) == [0, 0]
    killed(start(2, broken, recipe, fault=("--fault=SIGKILL", "--at=13")))
    for copy in (saved, by_4, by_1):
        shutil.copytree(broken, copy)
    assert finish(start(2, broken, recipe, f"--end={ends[broken]}")) == [0, 0]
    assert_same(ends[broken], ends[unbroken])
    for count, folder in ((2, saved), (4, by_4), (1, by_1)):
        done = finish(start(count, folder, recipe, f"--end={ends[folder]}", until=12))
        assert done == [0] * count
        assert_same(ends[folder], ends[saved])
    assert any(x.dtype == np.uint8 for x in numbers(ends[saved]))
