"""Show the schedules of an object as a table or a picture.

>>> from adamw_jax import one_cycle
>>> print(one_cycle(1e-2, total_steps=100).table(rows=3))
step  learning_rate  momentum
   0         0.0004      0.95
  50      0.0081175   0.86883
  99     5.0746e-06   0.94995
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from adamw_jax._core.checks import whole_number


class Viewed:
    """Add ``table`` and ``plot`` to a dataclass of schedules.

    Its fields that are functions are the schedules; ``total_steps``, if it has one, is their
    length.
    """

    def table(self, rows: int = 11, *, steps: int | None = None) -> str:
        """Return the values of the schedules at evenly spaced steps, as plain text.

        Args:
          rows: number of rows, >= 2, the first and the last step among them.
          steps: number of steps to show, >= 2; None for ``total_steps``.
        """
        counts, values = self._sampled(whole_number("rows", rows, least=2), steps)
        columns = [("step", [str(count) for count in counts])]
        columns += [(name, [f"{x:.5g}" for x in column]) for name, column in values.items()]
        widths = [max(map(len, (name, *column))) for name, column in columns]
        lines = [[name for name, _ in columns], *zip(*(c for _, c in columns), strict=True)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def plot(self, axes: Any = None, *, steps: int | None = None) -> Any:
        """Draw every schedule, each with a scale of its own; needs matplotlib.

        Args:
          axes: a sequence of matplotlib axes, one for each schedule; None makes a figure.
          steps: number of steps to draw, >= 2; None for ``total_steps``.

        Returns:
          The axes.
        """
        counts, values = self._sampled(500, steps)
        if axes is None:
            try:
                import matplotlib.pyplot as plt
            except ImportError as error:
                raise ImportError("plot needs matplotlib: pip install matplotlib.") from error
            figure = plt.figure(figsize=(4.5 * len(values), 3), layout="constrained")
            axes = figure.subplots(1, len(values), squeeze=False)[0]
        elif len(axes) != len(values):
            raise ValueError(
                f"axes must be one for each of the schedules {[*values]}, got {len(axes)}."
            )
        for one, (name, column) in zip(axes, values.items(), strict=True):
            one.plot(counts, column)
            one.set_xlabel("step")
            one.set_ylabel(name.replace("_", " "))
        return axes

    def _sampled(self, most: int, steps: int | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        length = getattr(self, "total_steps", None) if steps is None else steps
        if length is None:
            raise ValueError("these schedules have no end: give steps, the number to show.")
        last = whole_number("steps", length, least=2) - 1
        counts = np.unique(np.linspace(0, last, most).round().astype(np.int32))
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        schedules = {name: value for name, value in fields.items() if callable(value)}
        sampled = {name: jax.vmap(schedule)(counts) for name, schedule in schedules.items()}
        return counts, {name: np.asarray(column) for name, column in sampled.items()}
