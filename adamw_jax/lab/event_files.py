"""Write the runs of a comparison as event files for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def tensorboard(folder: str | Path) -> Callable[[list[dict[str, Any]]], None]:
    """Return a function for ``compare(..., on_rows=...)`` that writes event files.

    Every run has a folder of its own, ``optimizer/stage-trial-seed``, with its metrics by step. It
    needs the extra ``tensorboard`` (the package tensorboardX).

    Args:
      folder: where TensorBoard looks: ``tensorboard --logdir folder``.

    Example:
      >>> from adamw_jax.lab import tensorboard
      >>> write = tensorboard("events")  # compare(..., on_rows=write)
    """
    from tensorboardX import SummaryWriter

    def write(rows: list[dict[str, Any]]) -> None:
        runs: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            name = f"{row['optimizer']}/{row['stage']}-{row['trial']}-{row['seed']}"
            runs.setdefault(name, []).append(row)
        for name, own in runs.items():
            with SummaryWriter(str(Path(folder) / name)) as writer:
                for row in own:
                    for key, value in row.items():
                        if key.startswith(("train_", "validation_", "test_")) and value is not None:
                            writer.add_scalar(key, value, row["step"])

    return write
