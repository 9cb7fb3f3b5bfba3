"""Folders whose files are listed with their SHA-256, so that a changed file is found by name.

The list has the form of ``sha256sum``, so that ``sha256sum -c files.sha256`` checks it, too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

LIST = "files.sha256"


def seal(folder: Path) -> None:
    """Write the list of the files in ``folder``, and both to the disk.

    Several processes read one share each; the first writes.
    """
    names = _names(folder)
    digests = _digests(folder, names)
    if jax.process_index() == 0:
        text = "".join(map(_line, digests, names))
        (folder / LIST).write_text(text, encoding="utf-8")
        for name in (LIST, *names, "."):
            to_disk(folder / name)


def check_seal(folder: Path) -> None:
    """Raise unless ``folder`` holds the files of its list, each as it was written."""
    listed = folder / LIST
    if not listed.is_file():
        raise ValueError(
            f"{listed} is missing: {folder} was not written by save_checkpoint, or is not whole. "
            f"{_REMEDY}"
        )
    names = _names(folder)
    lines = listed.read_bytes().split(b"\n")
    there = (line.decode("utf-8", "backslashreplace").partition("  ")[2] for line in lines if line)
    if gone := sorted({*there} - {*names}):
        raise ValueError(
            f"{folder / gone[0]} is missing, or {LIST} was changed, where it is listed. {_REMEDY}"
        )
    want = [_line(*each).encode()[:-1] for each in zip(_digests(folder, names), names, strict=True)]
    for name, line in zip(names, want, strict=True):
        if line not in lines:
            raise ValueError(
                f"{folder / name} is not the file that was saved, or {LIST} was changed, where "
                f"its SHA-256 is missing. {_REMEDY}"
            )
    if lines != [*want, b""]:
        raise ValueError(f"{listed} is not the list that was saved. {_REMEDY}")


_REMEDY = "Restore an earlier checkpoint with step=, or get this one from a copy."


def _names(folder: Path) -> list[str]:
    """Return the files, links and empty folders in ``folder`` and below, but for the list."""
    inside = (each.relative_to(folder).as_posix() for each in folder.rglob("*") if _is_end(each))
    return sorted(name for name in inside if name != LIST)


def _is_end(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir() or not any(path.iterdir())


def _line(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"


def _digests(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the SHA-256 of each file; that of a file that cannot be read is 0."""
    rows = np.zeros((len(names), 32), np.uint8)
    for i in range(jax.process_index(), len(names), jax.process_count()):
        try:
            with (folder / names[i]).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError:  # all processes must get to the exchange below
            continue
        rows[i] = np.frombuffer(digest, np.uint8)
    if jax.process_count() > 1:
        rows = np.asarray(multihost_utils.process_allgather(rows)).max(axis=0)
    return [row.tobytes().hex() for row in rows]


def to_disk(path: Path) -> None:
    """Have a file or folder written before what comes after it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
