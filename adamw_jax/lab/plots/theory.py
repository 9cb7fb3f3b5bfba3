"""Draw measured points and the analytic curve.

Rows: ``series``, ``kind`` (``"theory"`` or ``"measured"``), ``x``, ``y``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from adamw_jax.lab.plots.style import series_style
from adamw_jax.lab.results import Row


def theory(
    xlabel: str,
    ylabel: str,
    *,
    xscale: str = "linear",
    dense: bool = False,
    ylim: tuple[float, float] | None = None,
    legend: str = "best",
) -> Callable[[Any, Sequence[Row]], None]:
    """Return a drawing of measurements as markers (``dense``: pale lines) and theory as lines."""

    def draw(ax: Any, rows: Sequence[Row]) -> None:
        names = list(dict.fromkeys(row["series"] for row in rows))
        for i, name in enumerate(names):
            style = series_style(i)
            measured = [r for r in rows if r["series"] == name and r["kind"] == "measured"]
            curve = [r for r in rows if r["series"] == name and r["kind"] == "theory"]
            x, y = [r["x"] for r in measured], [r["y"] for r in measured]
            if dense:
                ax.plot(x, y, color=style["color"], linewidth=5, alpha=0.35,
                        solid_capstyle="round", label=f"{name}, measured")  # fmt: skip
            else:
                ax.plot(x, y, linestyle="none", marker=style["marker"], color=style["color"],
                        markersize=7.5, label=f"{name}, measured", zorder=3)  # fmt: skip
            x, y = [r["x"] for r in curve], [r["y"] for r in curve]
            ax.plot(x, y, color=style["color"], linestyle=style["linestyle"], linewidth=1.7,
                    label=f"{name}, theory")  # fmt: skip
        ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale)
        if ylim is not None:
            ax.set_ylim(*ylim)
        ax.legend(loc=legend, handlelength=2.8)

    return draw
