"""Read named members of an archive into memory; nothing is ever extracted to the disk."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

OTHERS = 16 << 20
"""Bytes that all other members of a tar archive may have together."""


def members(path: Path, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """Return the contents of members of a ``.tar.gz`` or ``.zip`` archive.

    An archive with a link, a device, an absolute name, ``..`` or two members of one name is
    refused, also if that member is not wanted. Members that are not wanted are never read.

    Args:
      path: the archive.
      wanted: the largest size in bytes of each member, by its name; all must be there.

    Raises:
      ValueError: the archive is damaged, or not as described.
    """
    found: dict[str, bytes] = {}
    read = _zip if path.suffix == ".zip" else _tar
    try:
        for name, size, content in read(path, sum(wanted.values()) + OTHERS):
            if name not in wanted:
                continue
            if size > wanted[name]:
                raise ValueError(f"{name} has {size} bytes, more than {wanted[name]}")
            found[name] = content.read(size + 1)
            if len(found[name]) != size:
                raise ValueError(f"{name} does not have the {size} bytes that it declares")
        missing = [name for name in wanted if name not in found]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
    except (ValueError, EOFError, OSError, RuntimeError, zlib.error, tarfile.TarError,
            zipfile.BadZipFile, NotImplementedError) as error:  # fmt: skip
        raise ValueError(f"cannot read the archive {path}: {error}") from error
    return found


Member = tuple[str, int, IO[bytes]]


def _tar(path: Path, most: int) -> Iterator[Member]:
    with gzip.open(path) as plain:
        bounded: IO[bytes] = _Bounded(plain, most)  # type: ignore[assignment]
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            for one in _safe((each.name, each.isfile(), each.isdir(), each) for each in archive):
                content = archive.extractfile(one)
                assert content is not None  # it is a file
                yield one.name, one.size, content
        while bounded.read(1 << 20):  # to its end, where gzip checks the sum
            pass


def _zip(path: Path, most: int) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        listed = []
        for each in archive.infolist():
            kind = stat.S_IFMT(each.external_attr >> 16)
            file = not each.is_dir() and kind in (0, stat.S_IFREG)
            listed.append((each.filename, file, each.is_dir() and kind in (0, stat.S_IFDIR), each))
        for one in [*_safe(listed)]:
            with archive.open(one) as content:
                yield one.filename, one.file_size, content


def _safe(listed: Iterable[tuple[str, bool, bool, object]]) -> Iterator:
    """Yield the files; raise ``ValueError`` at a member that no honest data set has."""
    seen = set()
    for name, is_file, is_folder, member in listed:
        if not (is_file or is_folder):
            raise ValueError(f"{name!r} is a link or a device")
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            raise ValueError(f"{name!r} points outside the archive")
        if is_file:
            if parts in seen:
                raise ValueError(f"{name!r} occurs twice")
            seen.add(parts)
            yield member


class _Bounded:
    """A stream that ends with an error after some bytes, so that a bomb cannot expand."""

    def __init__(self, source: IO[bytes], most: int):
        self.source, self.left = source, most

    def read(self, size: int) -> bytes:
        portion = self.source.read(size)
        self.left -= len(portion)
        if self.left < 0:
            raise ValueError("it expands to more bytes than the data set has")
        return portion
