"""Read and write files of JSON and of text, each whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; a missing or damaged file is a ``ValueError``."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"cannot read {path}: it must hold an object, got {type(found).__name__}.")
    return found


def write_json(path: Path, content: Any) -> None:
    """Write one JSON object."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place and move it there, so that the old one stays until then."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def refuse(constant: str) -> Any:
    """Refuse infinity and NaN, which JSON does not have."""
    raise ValueError(f"{constant} is no JSON")
