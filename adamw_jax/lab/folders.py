"""Open a folder for results: locked, never lost, and replaced only by what is whole."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock

ROOT = Path("adamw-jax-results")
MARK, LOCK, NEW = "run.json", ".lock", ".new"
WRITTEN = ("logs", "details", "figures", "tables", "report.html", "report.md", "verdicts.csv", MARK)
"""What a run writes, and no other file is ever deleted."""


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; what is finished is kept."""

    def __init__(self, folder: Path):
        """Say where the results are."""
        super().__init__(
            f"interrupted; finished runs are kept in {folder}: continue with --resume --out "
            f"{folder}, or see them with adamw-jax report {folder}"
        )


@contextlib.contextmanager
def open_folder(folder: Path, *, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield a folder to write results into; only one process at a time gets it.

    Args:
      folder: the folder, which is made if it does not exist.
      overwrite: replace earlier results. They stay until the new ones are whole; until then these
        are in the folder ``.new`` inside.
      resume: continue what is there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(
            f"{folder} is being written by another process: wait for it, or give another folder "
            "(--out)."
        ) from None
    except OSError as error:
        raise ValueError(
            f"cannot write results into {folder}: {error.strerror}; give another folder (--out)."
        ) from error
    try:
        place = _prepared(folder, overwrite, resume)
        yield place
        if place != folder:
            _replace(place, folder)
    except KeyboardInterrupt:
        raise Interrupted(folder) from None
    finally:
        lock.release()


def chosen_folder(out: Path | None, kind: str, resume: bool) -> Path:
    """Return the user's folder, or a new one under ``adamw-jax-results``, not made yet."""
    if out is not None:
        return out
    if resume:
        raise ValueError("--resume needs the folder to continue: give it as --out.")
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return ROOT / f"{kind}-{stamp}-{os.getpid()}"


def _prepared(folder: Path, overwrite: bool, resume: bool) -> Path:
    """Return where to write: the folder, or the new results beside the old ones."""
    others = {path.name for path in folder.iterdir()} - {LOCK}
    staged = folder / NEW
    if resume:
        if others and not (folder / MARK).is_file() and not staged.is_dir():
            raise ValueError(
                f"{folder} has files but no results ({MARK}) to continue: give another folder "
                "(--out)."
            )
        return staged if staged.is_dir() else folder
    if not others:
        return folder
    if not overwrite:
        raise ValueError(
            f"{folder} is not empty: choose another folder (--out), continue what is there "
            "(--resume) or replace it (--overwrite)."
        )
    if not (folder / MARK).is_file():
        raise ValueError(
            f"{folder} has files but no earlier results ({MARK}), so nothing is replaced: choose "
            "another folder (--out)."
        )
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    return staged


def _replace(new: Path, folder: Path) -> None:
    """Put whole results in the place of earlier ones."""
    for name in WRITTEN:
        old = folder / name
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
        if (new / name).exists():
            os.replace(new / name, old)
    shutil.rmtree(new)
