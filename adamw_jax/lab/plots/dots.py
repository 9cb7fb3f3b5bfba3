"""Draw one dot per seed, joined between contenders, and the mean next to them.

Rows: ``series`` (contender), ``seed``, ``value``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter

from adamw_jax.lab.plots.style import INK, MUTED, PAPER, series_style
from adamw_jax.lab.results import Row


def paired_dots(ylabel: str, *, percent: bool = False) -> Callable[[Any, Sequence[Row]], None]:
    """Return a drawing with one column per contender.

    Args:
      ylabel: label of the axis.
      percent: print values as per cent.
    """

    def draw(ax: Any, rows: Sequence[Row]) -> None:
        names = list(dict.fromkeys(row["series"] for row in rows))
        seeds = sorted({row["seed"] for row in rows})
        value = {(row["series"], row["seed"]): row["value"] for row in rows}
        for seed in seeds:
            points = [(i, value[name, seed]) for i, name in enumerate(names)]
            ax.plot(*zip(*points, strict=True), color=MUTED, linewidth=0.9, alpha=0.6, zorder=1)
        for i, name in enumerate(names):
            style = series_style(i)
            values = [value[name, seed] for seed in seeds]
            ax.plot([i] * len(values), values, linestyle="none", marker=style["marker"],
                    color=style["color"], markersize=6.5, zorder=3)  # fmt: skip
            mean = sum(values) / len(values)
            ax.hlines(mean, i - 0.17, i + 0.17, color=INK, linewidth=2.2, zorder=2)
            label = f"{100 * mean:.1f} %" if percent else f"{mean:.3f}"
            box = {"boxstyle": "square,pad=0.12", "facecolor": PAPER, "edgecolor": "none"}
            ax.annotate(label, (i + 0.2, mean), va="center", fontsize=9.5, bbox=box)
        ax.set_xticks(range(len(names)), [n.replace("_", "_\n") for n in names])
        ax.set_xlim(-0.4, len(names) - 0.35 + 0.05 * len(names))
        ax.margins(y=0.12)
        ax.grid(False, axis="x")
        ax.set_ylabel(ylabel)
        if percent:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))

    return draw
