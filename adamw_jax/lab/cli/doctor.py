"""Check versions, devices and one step of ``adamw``, for ``adamw-jax doctor``."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from adamw_jax import adamw
from adamw_jax.lab.environment import commit, cores, processor, versions

OLDEST = (3, 11)


def show_doctor(console: Console) -> int:
    """Print the findings; return 1 if something is wrong, else 0."""
    grid = Table(show_header=False, box=None, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    wrong: list[str] = []

    grid.add_row("python", sys.version.split()[0])
    if sys.version_info < OLDEST:
        wrong.append(f"Python {'.'.join(map(str, OLDEST))} or newer is needed.")
    grid.add_row("processor", f"{processor()}, {cores()} cores for this process")
    for device in jax.devices():
        grid.add_row("device", f"{device.platform}: {device.device_kind}")
    grid.add_row(
        "float64",
        "on" if jax.dtypes.canonicalize_dtype(float).itemsize == 8 else "off (the default)",
    )
    cache = getattr(jax.config, "jax_compilation_cache_dir", None)
    grid.add_row("compilation cache", str(cache) if cache else "none (JAX_COMPILATION_CACHE_DIR)")
    grid.add_row("commit", commit() or "not in a git repository")
    for name, version in versions().items():
        grid.add_row(name, version or "not installed")

    try:
        params = jnp.ones(3, jnp.float32)
        tx = adamw(0.1, weight_decay=0.0)
        update, _ = tx.update(params, tx.init(params), params)
        works = bool(np.allclose(np.asarray(update), -0.1, atol=1e-5))
    except Exception as error:
        works, failure = False, f": {error}"
    else:
        failure = ""
    grid.add_row("a step of adamw", "right" if works else f"wrong{failure}")
    if not works:
        wrong.append(
            "a step of adamw fails or is wrong; compare the versions above with pyproject.toml."
        )
    console.print(grid)
    for line in wrong:
        console.print(f"[bold red]wrong:[/] {line}")
    return 1 if wrong else 0
