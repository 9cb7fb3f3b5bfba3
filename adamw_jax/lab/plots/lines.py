"""Draw lines with bands or error bars.

Rows: ``series``, ``x``, ``y`` and, with a spread, ``low`` and ``high``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from adamw_jax.lab.plots.style import series_style
from adamw_jax.lab.results import Row

Draw = Callable[[Any, Sequence[Row]], None]


def lines(
    xlabel: str,
    ylabel: str,
    *,
    xscale: str = "linear",
    yscale: str = "linear",
    percent: bool = False,
    spread: str = "band",
    markers: bool = False,
    join: bool = True,
    ticks_at_data: bool = False,
    ylim: tuple[float | None, float | None] | None = None,
    legend: str | None = "best",
) -> Draw:
    """Return a drawing of one line per series.

    Args:
      xlabel: label of the x axis.
      ylabel: label of the y axis.
      xscale: ``"linear"`` or ``"log"``.
      yscale: the same.
      percent: print y as per cent.
      spread: ``"band"``, ``"bars"`` or ``"none"``.
      markers: mark the points.
      join: join the points by lines.
      ticks_at_data: set one tick per x in the data.
      ylim: range of y.
      legend: place of the legend; None for no legend.
    """

    def draw(ax: Any, rows: Sequence[Row]) -> None:
        names = list(dict.fromkeys(row["series"] for row in rows))
        for i, name in enumerate(names):
            mine = [row for row in rows if row["series"] == name]
            style = series_style(i) | ({} if join else {"linestyle": "none"})
            _one(ax, mine, name, style, spread, markers)
        ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
        if ylim is not None:
            ax.set_ylim(*ylim)
        if percent:
            low, high = ax.get_ylim()
            ax.set_ylim(max(low, -0.02), min(high, 1.02))  # error bars may leave [0, 1]
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
        if ticks_at_data:
            values = sorted({row["x"] for row in rows})
            ax.set_xticks(values, [f"{value:g}" for value in values])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_minor_formatter(NullFormatter())
        if legend is not None and len(names) > 1:
            ax.legend(loc=legend, handlelength=2.8)

    return draw


def _one(
    ax: Any, rows: Sequence[Row], name: str, style: dict[str, Any], spread: str, markers: bool
) -> None:
    x, y = [row["x"] for row in rows], [row["y"] for row in rows]
    style = dict(style)
    if not markers:
        style["marker"] = "none"
    ax.plot(x, y, label=name, **style)
    if spread == "none" or rows[0].get("low") is None:
        return
    low, high = [row["low"] for row in rows], [row["high"] for row in rows]
    if spread == "band":
        ax.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
    else:
        ax.vlines(x, low, high, color=style["color"], linewidth=1.4, alpha=0.8)
