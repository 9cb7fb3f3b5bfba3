"""The folder of a run: one checkpoint is written at a time, and named when it is whole."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from adamw_jax.state._sealed import seal, to_disk

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

NAME = re.compile(r"(\d+)-step(\d+)")
PARTIAL = ".partial"


def _listed(root: Path) -> list[tuple[int, int, Path]]:
    """Return number, step and folder of each checkpoint, in the order in which they were saved."""
    files = root.iterdir() if root.is_dir() else ()
    named = ((NAME.fullmatch(file.name), file) for file in files)
    return sorted((int(found[1]), int(found[2]), file) for found, file in named if found)


def chosen(root: Path, step: int | None) -> Path:
    """Return the newest checkpoint, or the newest of ``step``."""
    listed = _listed(root)
    fit = [file for _, saved, file in listed if step is None or saved == step]
    if not fit:
        steps = sorted({saved for _, saved, _ in listed})
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise FileNotFoundError(f"there is no {what} in {root}; it has those of steps {steps}.")
    return fit[-1]


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Lock the folder, so that no other run writes into it meanwhile; a kill unlocks it."""
    if jax.process_index() > 0 or fcntl is None:
        yield
        return
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError("another run is saving there: give each a folder") from error
        yield
    finally:
        os.close(handle)


def write(orbax: Any, root: Path, step: int, arrays: dict[str, Any], about: str) -> Path:
    """Write all files of a checkpoint, and then give it its name."""
    number = max((number for number, _, _ in _listed(root)), default=0) + 1
    path = root / f"{number}-step{step}"
    partial = path.with_name(path.name + PARTIAL)
    _first_only(lambda: _make_room(partial))
    try:
        with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(partial / "arrays", args=orbax.args.StandardSave(arrays))
        _first_only(lambda: (partial / "manifest.json").write_text(about, encoding="utf-8"))
        seal(partial)
        _first_only(lambda: to_disk(partial.rename(path).parent))
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk has room again
        raise
    return path


def _make_room(partial: Path) -> None:
    """Remove what earlier saves left behind, which were killed."""
    for left in partial.parent.glob(f"*{PARTIAL}"):
        if NAME.fullmatch(left.name.removesuffix(PARTIAL)):
            shutil.rmtree(left)
    partial.mkdir()


def remove_old(root: Path, keep: int) -> None:
    """Remove all but the last checkpoints; a half removed one has the name of a partial one."""

    def remove() -> None:
        for _, _, old in _listed(root)[:-keep]:
            shutil.rmtree(old.rename(old.with_name(old.name + PARTIAL)))

    _first_only(remove)


def _first_only(act: Callable[[], object]) -> None:
    """Let the first process act, while the others wait."""
    if jax.process_index() == 0:
        act()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("adamw_jax.checkpoint")
