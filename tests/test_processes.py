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
UNTIL = 32
COMPILED_QUICKLY = "--xla_backend_optimization_level=0"


pytestmark = [
    pytest.mark.slow,
    pytest.mark.first,
    pytest.mark.skipif(
        sys.platform == "win32", reason="jaxlib for Windows has no gloo, and there is no SIGKILL"
    ),
]


def start(
    count: int, folder: pathlib.Path, *options: Any, devices: int = 1, last: tuple[Any, ...] = ()
) -> list[Any]:
    """Start ``count`` processes with so many devices each; ``last`` are options of the last one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} {COMPILED_QUICKLY}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    started = []
    for rank in range(count):
        given = {"rank": rank, "processes": count, "port": port, "folder": folder, "until": UNTIL}
        pairs = [f"--{name}={value}" for name, value in given.items()]
        own = last if rank == count - 1 else ()
        command = [sys.executable, "-m", "tests.process_worker", *pairs, *options, *own]
        with folder.with_name(f"{folder.name}.{rank}.log").open("a") as log:
            to_log: Any = {"stdout": log, "stderr": log}
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, **to_log))
    return started


def finish(processes: list[Any], seconds: float = 60) -> list[int]:
    """Wait for all of them; what does not end is killed, and fails the test."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def killed(processes: list[Any]) -> None:
    """Wait until the last one has killed itself, and end the others, as a scheduler does.

    By themselves they wait for its heartbeat.
    """
    try:
        assert processes[-1].wait(60) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.wait()


def steps_in(folder: pathlib.Path) -> list[int]:
    return sorted(int(each.name.partition("-step")[2]) for each in folder.glob("*-step*[0-9]"))


def numbers(path: pathlib.Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[str(i)] for i in range(len(file.files))]


def test_a_killed_process_and_other_numbers_of_processes(tmp_path: pathlib.Path) -> None:
    """2, one killed: again 2, bitwise the unbroken run; or 4, one killed; 2 with two devices each,
    ended by SIGTERM; and then 1. In all of them a bad step of one process was skipped.
    """
    unbroken, broken, moved = (tmp_path / name for name in ("unbroken", "broken", "moved"))
    ends = {folder: folder.with_suffix(".npz") for folder in (unbroken, broken, moved)}
    assert finish(start(2, unbroken, f"--end={ends[unbroken]}")) == [0, 0]

    killed(start(2, broken, last=("--fault=SIGKILL", "--at=13")))
    assert steps_in(broken)[-1] == 12
    shutil.copytree(broken, moved)

    assert finish(start(2, broken, f"--end={ends[broken]}")) == [0, 0]
    for got, want in zip(numbers(ends[broken]), numbers(ends[unbroken]), strict=True):
        np.testing.assert_array_equal(got, want)

    killed(start(4, moved, last=("--fault=SIGKILL", "--at=17")))
    assert steps_in(moved)[-1] == 16
    assert (
        finish(start(2, moved, devices=2, last=("--fault=SIGTERM", "--at=21"))) == [PREEMPTED] * 2
    )
    assert 21 <= steps_in(moved)[-1] < UNTIL
    assert finish(start(1, moved, f"--end={ends[moved]}")) == [0]
    for got, want in zip(numbers(ends[moved]), numbers(ends[unbroken]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    for log in (f"{unbroken}.0.log", f"{unbroken}.1.log", f"{broken}.1.log", f"{moved}.0.log"):
        assert "{'skipped': 1, 'by_gradient': 1}" in pathlib.Path(log).read_text(), log
