"""Draw the loss over a growing learning rate, with suggested rates as labelled vertical lines.

Rows: ``kind`` (``"curve"`` or ``"suggestion"``), ``series``, ``x``, ``y``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adamw_jax.lab.plots.style import DASHES, INK, MUTED, SERIES
from adamw_jax.lab.results import Row


def finder() -> Callable[[Any, Sequence[Row]], None]:
    """Return a drawing of all curves, from below their minimum to well above their start."""

    def draw(ax: Any, rows: Sequence[Row]) -> None:
        curves = [row for row in rows if row["kind"] == "curve"]
        names = list(dict.fromkeys(row["series"] for row in curves))
        for i, name in enumerate(names):
            mine = [row for row in curves if row["series"] == name]
            ax.plot([r["x"] for r in mine], [r["y"] for r in mine], color=SERIES[0], alpha=0.75,
                    linewidth=1.6, linestyle=DASHES[i % len(DASHES)], label=name)  # fmt: skip
        ax.set(xscale="log", xlabel="learning rate", ylabel="smoothed training loss")
        start = max(next(r["y"] for r in curves if r["series"] == name) for name in names)
        drop = max(start - min(r["y"] for r in curves), 1e-3)
        ax.set_ylim(start - 1.2 * drop, start + 0.9 * drop)
        marks = sorted((row for row in rows if row["kind"] == "suggestion"), key=lambda r: r["x"])
        for i, row in enumerate(marks):
            ax.axvline(row["x"], color=MUTED, linewidth=1.1, linestyle=(0, (2, 2)))
            ax.annotate(
                f"{row['series']} {row['x']:.2g}", (row["x"], 0.97 - 0.075 * i), color=INK,
                xycoords=("data", "axes fraction"), xytext=(5, 0), textcoords="offset points",
                va="top", fontsize=9,
                bbox={"boxstyle": "square,pad=0.15", "facecolor": ax.get_facecolor(),
                      "edgecolor": "none"},
            )  # fmt: skip
        ax.legend(loc="lower left", handlelength=2.8)

    return draw
