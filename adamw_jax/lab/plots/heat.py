"""Draw a heat map over two hyperparameters; colour shows the gap to the best cell of the row.

Rows: ``x``, ``y``, ``mean``, ``sd``, ``gap`` (row's best minus this, >= 0) and ``best``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Rectangle

from adamw_jax.lab.results import Row

COLORS = LinearSegmentedColormap.from_list("gap", ["#14407a", "#3f7fbf", "#a9cbe6", "#f1f5f9"])
LIGHT, DARK, RING = "#fdfdfd", "#10151d", "#f2994a"


def heat(xlabel: str, ylabel: str, *, most: float) -> Callable[[Any, Sequence[Row]], None]:
    """Return a drawing of one cell per row, which shows its mean and spread.

    Args:
      xlabel: label of the x axis.
      ylabel: label of the y axis.
      most: largest gap with a colour of its own.
    """

    def draw(ax: Any, rows: Sequence[Row]) -> None:
        xs, ys = sorted({row["x"] for row in rows}), sorted({row["y"] for row in rows})
        norm = Normalize(0, most, clip=True)
        for row in rows:
            i, j = xs.index(row["x"]), ys.index(row["y"])
            tone = float(norm(row["gap"]))
            ax.add_patch(
                Rectangle((i - 0.5, j - 0.5), 1, 1, facecolor=COLORS(tone), edgecolor=LIGHT, lw=1.5)
            )
            ink = LIGHT if tone < 0.42 else DARK
            ax.text(i, j + 0.09, f"{100 * row['mean']:.1f}", ha="center", va="center", color=ink,
                    fontsize=11.5, fontweight="bold" if row["best"] else "normal")  # fmt: skip
            if row["sd"] is not None:
                ax.text(i, j - 0.25, f"± {100 * row['sd']:.1f}", ha="center", va="center",
                        color=ink, fontsize=8)  # fmt: skip
        for row in rows:
            if row["best"]:
                i, j = xs.index(row["x"]), ys.index(row["y"])
                ax.add_patch(
                    Rectangle((i - 0.45, j - 0.45), 0.9, 0.9, fill=False, edgecolor=RING, lw=3)
                )
        ax.set(xlim=(-0.5, len(xs) - 0.5), ylim=(-0.5, len(ys) - 0.5))
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.set_xticks(np.arange(len(xs)), [f"{x:g}" for x in xs])
        ax.set_yticks(np.arange(len(ys)), [f"{y:g}" for y in ys])
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)

    return draw
