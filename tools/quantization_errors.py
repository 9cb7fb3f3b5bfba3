"""Measure the error of each storage format: docs/results/quantization_errors.csv.

    python tools/quantization_errors.py            measures, and writes the table and its page
    python tools/quantization_errors.py --check    compares the page with the table

A million values each of first and second moments are encoded and decoded again:

    normal   z ~ N(0, 1)                                   mean |x' - x| / mean |x|
    scaled   s z, s = 10^u, u ~ U(-2.5, 0)                 the same
    second   s^2 times the mean of 8 squares of N(0, 1)    mean |v' - v| / v, and the share made 0
    step     m / (sqrt(v) + 1e-8), m = 0.3 s z, that v     mean and largest |step' - step|
"""

from __future__ import annotations

import csv
import io
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adamw_jax._core.blocks import Blocks
from adamw_jax.storage import Format, bfloat16, eight_bit, float8, four_bit, roots
from adamw_jax.storage._block_wise import BlockWise
from adamw_jax.storage._levels import Levels, Segment
from adamw_jax.storage._roots import Roots

ROOT = pathlib.Path(__file__).parents[1]
CSV = ROOT / "docs/results/quantization_errors.csv"
PAGE = ROOT / "docs/low_precision.md"
BEGIN, END = "<!-- codes: begin -->", "<!-- codes: end -->"
WIDTH = 1024
EPS = 1e-8


def linear(block_size: int | None) -> Format:
    """Return equally spaced 8-bit levels, k / 127 signed and k / 255 unsigned, for comparison."""
    signed = Levels("linear", (Segment(0, 128, 1 / 127, 1, 0),), 128)
    unsigned = Levels("linear", (Segment(0, 256, 1 / 255, 1, 0),), 255)
    blocks = Blocks(block_size, "flat")
    return Format(
        BlockWise(signed, 8, blocks, signed=True), BlockWise(unsigned, 8, blocks, signed=False)
    )


class FlashOptim(Roots):
    """The formulas of arXiv 2602.23349, z = 2 s / (1 + |s|) and the square root, for comparison."""

    def index(self, part: jax.Array) -> jax.Array:
        """Return the index, not yet whole, of a part of the scale."""
        return self.top * (2 * part / (1 + part) if self.signed else jnp.sqrt(part))

    def level(self, index: jax.Array) -> jax.Array:
        """Return the part of the scale that an index stands for."""
        z = index / self.top
        return z / (2 - z) if self.signed else z * z


def formats() -> dict[str, Format]:
    """Return the formats by name in the table."""
    found = {
        '"8bit"': eight_bit(),
        "eight_bit(root=True)": eight_bit(root=True),
        '"roots"': roots(),
        "FlashOptim's formulas, blocks of 32": Format(
            FlashOptim(Blocks(32), signed=True), FlashOptim(Blocks(32), signed=False)
        ),
        '"float8"': float8(),
        '"bfloat16"': bfloat16(),
        '"4bit"': four_bit(),
    }
    for size in (256, 2048, None):
        blocks = "whole array" if size is None else f"blocks of {size}"
        found[f"8-bit dynamic without floor, {blocks}"] = eight_bit(size, order="flat", floor=False)
        found[f"8-bit linear, {blocks}"] = linear(size)
    return found


def draw(rows: int, seed: int = 0) -> dict[str, jax.Array]:
    """Draw the arrays, float32 of shape (rows, WIDTH)."""
    rng = np.random.default_rng(seed)
    shape = rows, WIDTH
    scale = 10.0 ** rng.uniform(-2.5, 0, shape)
    arrays = {
        "normal": rng.standard_normal(shape),
        "scaled": scale * rng.standard_normal(shape),
        "first": 0.3 * scale * rng.standard_normal(shape),
        "second": scale**2 * rng.chisquare(8, shape) / 8,
    }
    return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


def back(codec: Any, x: jax.Array) -> jax.Array:
    """Encode and decode in two programs; in one, XLA would remove a cast and its inverse."""
    return jax.jit(lambda stored: stored.decode())(jax.jit(codec.encode)(x))


def errors(form: Format, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return the columns of the table."""

    def relative(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(back(form.signed, x) - x)) / jnp.mean(jnp.abs(x))

    m, v = arrays["first"], arrays["second"]
    stored = back(form.unsigned, v)
    step = m / (jnp.sqrt(v) + EPS)
    off = jnp.abs(back(form.signed, m) / (jnp.sqrt(stored) + EPS) - step)
    return {
        "normal": relative(arrays["normal"]),
        "scaled": relative(arrays["scaled"]),
        "second": jnp.mean(jnp.abs(stored - v) / v),
        "zeroed": jnp.mean(stored == 0, dtype=jnp.float32),
        "step": jnp.mean(off),
        "worst_step": jnp.max(off),
    }


def measure(rows: int = 1024) -> list[dict[str, str]]:
    """Return one row per format, with numbers rounded to three digits."""
    arrays = draw(rows)
    return [
        {"state": name}
        | {key: f"{float(value):.3g}" for key, value in errors(form, arrays).items()}
        for name, form in formats().items()
    ]


HEADINGS = {
    "state": "storage",
    "normal": "m, normal",
    "scaled": "m, scaled",
    "second": "v",
    "zeroed": "v made 0",
    "step": "step",
    "worst_step": "worst step",
}


def table(rows: list[dict[str, str]]) -> str:
    """Return the rows in Markdown."""
    lines = [f"| {' | '.join(HEADINGS.values())} |", f"|---|{'---:|' * (len(HEADINGS) - 1)}"]
    for row in rows:
        name = row["state"]
        cells = [f"`{name}`" if '"' in name or "(" in name else name]
        cells += [_cell(key, float(row[key])) for key in HEADINGS if key != "state"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(key: str, value: float) -> str:
    if key == "zeroed":
        return f"{value:.0%}" if value >= 0.01 else "0" if value == 0 else f"{value:.0e}"
    if key in ("step", "worst_step"):
        return f"{value:.1e}" if value > 100 else f"{value:.2g}"
    return f"{value:.1%}" if value < 10 else f"{value:.0f}-fold"


def main(arguments: list[str]) -> int:
    """Measure and write, or check the page and return 1 if it is old."""
    checking = "--check" in arguments
    if not checking:
        rows = measure()
        out = io.StringIO()
        writer = csv.DictWriter(out, list(HEADINGS), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        CSV.write_text(out.getvalue(), encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(CSV.read_text(encoding="utf-8"))))
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    new = f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"
    if checking and new != text:
        print("docs/low_precision.md: old; run python tools/quantization_errors.py")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
