"""Download data sets into a cache folder: over https, checked before anything is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import filelock
import platformdirs

FOLDER, OFFLINE = "ADAMW_JAX_DATA", "ADAMW_JAX_OFFLINE"
"""Environment variables: the cache folder, and 1 to keep off the network."""

TRIES, TIMEOUT, PORTION = 4, 30.0, 1 << 20


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file on the web.

    Attributes:
      name: its name in the cache folder.
      url: its address, with https.
      sha256: its SHA-256, 64 hexadecimal digits.
      size: its size in bytes; a download is stopped where it exceeds this.
    """

    name: str
    url: str
    sha256: str
    size: int


def folder() -> Path:
    """Return the cache folder: that of ``ADAMW_JAX_DATA``, or the usual one of the platform."""
    named = os.environ.get(FOLDER)
    return Path(named).expanduser() if named else platformdirs.user_cache_path("adamw-jax")


def offline() -> bool:
    """Return whether ``ADAMW_JAX_OFFLINE`` forbids the network."""
    return os.environ.get(OFFLINE, "").lower() not in ("", "0", "false", "no")


def keep_off_the_network() -> None:
    """Forbid the network to this process and its children."""
    os.environ[OFFLINE] = "1"


def secure(url: str) -> bool:
    """Return whether an address may be read."""
    return url.lower().startswith("https://")


def get(remote: Remote) -> Path:
    """Return the path of a file in the cache, after a download if it is not there.

    Size and SHA-256 are checked in any case. An interrupted download is continued by the next
    call. The file appears under its name only when it is whole.

    Args:
      remote: the file.

    Raises:
      ValueError: the file is missing offline, or is not the expected one, or cannot be read.

    >>> import tempfile
    >>> os.environ[FOLDER], os.environ[OFFLINE] = tempfile.mkdtemp(), "1"
    >>> get(Remote("some.bin", "https://example.org/some.bin", 64 * "0", 12))
    Traceback (most recent call last):
        ...
    ValueError: some.bin is not in ... and ADAMW_JAX_OFFLINE forbids to download it: ...
    """
    path = folder() / remote.name
    if path.exists():
        verify(path, remote)
        return path
    if offline():
        raise ValueError(
            f"{remote.name} is not in {path.parent}, and {OFFLINE} forbids to download it: copy it "
            f"there from {remote.url}, or unset {OFFLINE}."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f"{path.name}.lock")):
        if not path.exists():  # else another process was faster
            _download(remote, path)
    return path


def verify(path: Path, remote: Remote) -> None:
    """Raise ``ValueError`` if a file is not the expected one, by size and SHA-256."""
    size = path.stat().st_size
    if size != remote.size:
        wrong = f"it has {size} bytes, not {remote.size}"
    elif (found := sha256(path)) != remote.sha256:
        wrong = f"its SHA-256 is {found}, not {remote.sha256}"
    else:
        return
    raise ValueError(f"{path} is not the file of {remote.url}: {wrong}. Delete it and try again.")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(remote: Remote, path: Path) -> None:
    """Download a file beside its place, check it there, and move it."""
    part = path.with_name(f"{path.name}.part")
    free = shutil.disk_usage(path.parent).free
    if free < remote.size:
        raise ValueError(
            f"{path.parent} has {free} bytes left for the {remote.size} of {remote.name}: free "
            f"some, or name another folder by {FOLDER}."
        )
    print(f"Downloading {remote.url} ({remote.size / 1e6:.0f} MB) to {path}", file=sys.stderr)
    for left in reversed(range(TRIES)):
        try:
            _continue(remote, part)
            break
        except (OSError, HTTPException) as error:
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if refused or not left:
                raise ValueError(
                    f"cannot download {remote.url}: {error}. Try again, which continues, or copy "
                    f"the file to {path}."
                ) from error
    try:
        verify(part, remote)
    except ValueError as error:
        part.unlink()
        raise ValueError(str(error).replace(" Delete it and t", " It is deleted; t")) from None
    os.replace(part, path)


def _continue(remote: Remote, part: Path) -> None:
    """Append to a part of a file until it is whole."""
    have = part.stat().st_size if part.exists() else 0
    if have >= remote.size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with _open(remote.url, headers) as response:
        goes_on = response.status == 206 and (
            response.headers.get("Content-Range") or ""
        ).startswith(f"bytes {have}-")
        have = have if goes_on else 0
        with open(part, "ab" if goes_on else "wb") as file:
            while portion := response.read(min(PORTION, remote.size + 1 - have)):
                have += len(portion)
                if have > remote.size:
                    raise ValueError(
                        f"{remote.url} has more than the expected {remote.size} bytes, so it is "
                        "another file: look whether the publisher has changed it."
                    )
                file.write(portion)
    if have < remote.size:
        raise ConnectionError(f"it ended after {have} of {remote.size} bytes")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to secure addresses only."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        """Return the next request."""
        _check(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: Mapping[str, str]) -> Any:
    _check(url)
    request = urllib.request.Request(url, headers=dict(headers))
    return urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)


def _check(url: str) -> None:
    if not secure(url):
        raise ValueError(f"the address of a download must begin with https://, got {url!r}.")
