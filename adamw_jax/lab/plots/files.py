"""Draw figures and write them as PNG, SVG and CSV. The same numbers give the same bytes."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from adamw_jax.lab.plots.style import RC
from adamw_jax.lab.results import Figure, Row

DPI = 160


def draw(figure: Figure) -> Canvas:
    """Draw the figure on a new canvas, without global state of matplotlib."""
    with mpl.rc_context(RC):
        columns = min(figure.columns, len(figure.panels))
        lines = math.ceil(len(figure.panels) / columns)
        width, height = figure.panel_size
        canvas = Canvas(figsize=(columns * width, lines * height + 0.45), layout="constrained")
        canvas.suptitle(figure.title, fontsize=13, fontweight="bold", x=0.012, ha="left")
        canvas.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.06)  # type: ignore[union-attr,call-arg]
        axes = list(canvas.subplots(lines, columns, squeeze=False).flat)
        for ax, panel in zip(axes, figure.panels, strict=False):
            ax.set_title(panel.title)
            panel.draw(ax, panel.rows)
        for ax in axes[len(figure.panels) :]:
            ax.set_axis_off()
    return canvas


def write(figure: Figure, folder: Path) -> dict[str, Path]:
    """Write ``name.png``, ``name.svg`` and ``name.csv`` into a folder; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    canvas = draw(figure)
    paths = {kind: folder / f"{figure.name}.{kind}" for kind in ("png", "svg", "csv")}
    with mpl.rc_context(RC):
        FigureCanvasAgg(canvas)
        canvas.savefig(paths["png"], dpi=DPI, metadata={"Software": None, "Title": figure.title,
                                                        "Description": figure.alt})  # fmt: skip
        FigureCanvasSVG(canvas)
        canvas.savefig(paths["svg"], metadata={"Date": None, "Title": figure.title,
                                               "Description": figure.alt})  # fmt: skip
    lines = paths["svg"].read_text(encoding="utf-8").splitlines()
    paths["svg"].write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")
    paths["csv"].write_text(as_csv(plotted(figure)), encoding="utf-8")
    return paths


def plotted(figure: Figure) -> list[Row]:
    """Return all numbers in the picture, panel by panel."""
    return [{"panel": panel.title, **row} for panel in figure.panels for row in panel.rows]


def as_csv(rows: Any, columns: Sequence[str] | None = None) -> str:
    """Return rows as CSV with a heading and numbers in full precision; None for all columns."""
    rows = list(rows)
    keys = columns or list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
