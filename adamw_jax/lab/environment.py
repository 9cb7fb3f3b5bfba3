"""Record hardware, versions and commit of a result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

PACKAGES = (
    "adamw-jax", "jax", "jaxlib", "optax", "flax", "numpy", "scipy", "scikit-learn", "matplotlib",
    "orbax-checkpoint", "matfree", "tyro", "rich", "filelock", "scikit-image",
)  # fmt: skip


def environment() -> dict[str, str]:
    """Return what a reader needs to know to reproduce or question a number."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": str(cores()),
        "devices": ", ".join(sorted({f"{d.platform} ({d.device_kind})" for d in jax.devices()})),
        "commit": commit() or "not in a git repository",
    }
    return found | {name: version for name, version in versions().items() if version}


def versions() -> dict[str, str | None]:
    """Return installed versions; None for packages that are not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """Return the name of the processor, as given by the system."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def commit() -> str:
    """Return the commit of the library's checkout, ``+`` if files changed, or an empty string."""
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "--short=12", "HEAD")
        tracked = _git(here, "ls-files", Path(__file__).name)
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    if not tracked:
        return ""  # another repository around the environment
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
