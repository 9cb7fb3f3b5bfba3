"""Set the style of pictures: named colours, font sizes, deterministic files.

Line style and marker differ in addition to colour. The same picture is used on light and dark
pages: in the SVG of the page each colour below becomes a variable of the style sheet.
"""

from __future__ import annotations

from typing import Any

INK = "#1b2230"
MUTED = "#5a6475"
GRID = "#dde1e8"
PAPER = "#ffffff"
SERIES = ("#2563c9", "#d9660c", "#15876b", "#8a4fc7", "#b3264e", "#6b7280")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.2, 1.6)),
    (0, (6, 2, 1.2, 2)),
    "-",
    (0, (3, 1.5)),
)
MARKERS = ("o", "s", "^", "D", "v", "P")

VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    **{color: f"--series-{i}" for i, color in enumerate(SERIES)},
}
"""Colour in a file -> variable of the page."""

RC: Any = {
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "svg.hashsalt": "adamw_jax",
    "svg.fonttype": "path",
    "path.simplify": True,
}


def series_style(index: int) -> dict[str, Any]:
    """Return colour, line style and marker of the series with this number."""
    i = index % len(SERIES)
    return {"color": SERIES[i], "linestyle": DASHES[i], "marker": MARKERS[i]}
