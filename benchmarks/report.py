"""Write tables of results as text, Markdown, CSV and JSON."""

import csv
import datetime
import importlib.metadata
import io
import json
import os
import platform
from pathlib import Path
from typing import Any

Row = dict[str, Any]

#: Heading, key in the row, factor, format.
STEP_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("contender", "contender", 1, ""),
    ("median ms", "median_s", 1e3, ".3f"),
    ("min ms", "min_s", 1e3, ".3f"),
    ("x median", "ratio_median", 1, ".3f"),
    ("x min", "ratio_min", 1, ".3f"),
    ("x paired", "ratio_paired", 1, ".3f"),
    ("x cpu", "ratio_cpu", 1, ".3f"),
    ("cores", "cores", 1, ".2f"),
    ("quiet", "quiet_rounds", 1, "d"),
    ("kernels", "kernels", 1, "d"),
    ("small", "small_kernels", 1, "d"),
    ("copies", "copies", 1, "d"),
    ("B/param moved", "bytes_per_param", 1, ".2f"),
    ("GB/s", "bandwidth", 1e-9, ".1f"),
    ("B/param scratch", "scratch_per_param", 1, ".2f"),
    ("B/param state", "state_per_param", 1, ".2f"),
    ("trace+compile s", "total_s", 1, ".2f"),
    ("peak MiB", "process_mib", 1, ".0f"),
    ("device MiB", "device_mib", 1, ".0f"),
    ("note", "note", 1, ""),
)
COMPILE_COLUMNS: tuple[tuple[str, str, float, str], ...] = (
    ("contender", "contender", 1, ""),
    ("median s", "median_s", 1, ".3f"),
    ("min s", "min_s", 1, ".3f"),
    ("x median", "ratio_median", 1, ".3f"),
    ("x min", "ratio_min", 1, ".3f"),
    ("x paired", "ratio_paired", 1, ".3f"),
    ("x cpu", "ratio_cpu", 1, ".3f"),
    ("trace s", "trace_s", 1, ".3f"),
    ("lower s", "lower_s", 1, ".3f"),
    ("compile s", "compile_s", 1, ".3f"),
    ("cores", "cores", 1, ".2f"),
    ("quiet", "quiet_rounds", 1, "d"),
    ("kernels", "kernels", 1, "d"),
    ("peak MiB", "process_mib", 1, ".0f"),
    ("note", "note", 1, ""),
)


def _cell(row: Row, key: str, factor: float, form: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not form:
        return str(value).strip().splitlines()[-1] if str(value).strip() else ""
    return format(value if form == "d" else value * factor, form)


def bandwidth(row: Row) -> float | None:
    """Return bytes per second, by XLA's count of bytes; None without this count or a time."""
    moved, params, seconds = (row.get(key) for key in ("bytes_per_param", "params", "median_s"))
    if moved is None or params is None or not seconds:
        return None
    return moved * params / seconds


def table(rows: list[Row], compile_only: bool = False) -> list[list[str]]:
    """Return headings and cells, without empty columns."""
    rows = [{**row, "bandwidth": bandwidth(row)} for row in rows]
    columns = COMPILE_COLUMNS if compile_only else STEP_COLUMNS
    cells = [[column[0] for column in columns]]
    cells += [[_cell(row, *column[1:]) for column in columns] for row in rows]
    used = [at for at in range(len(columns)) if any(line[at] for line in cells[1:])]
    return [[line[at] for at in used] for line in cells]


def text(cells: list[list[str]]) -> str:
    """Return a table for the terminal."""
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    lines = []
    for line in cells:
        padded = [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown(cells: list[list[str]]) -> str:
    """Return a Markdown table with figures aligned right."""
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    rule = ["---" if at == 0 or head == "note" else "---:" for at, head in enumerate(cells[0])]
    lines = [escaped[0], rule, *escaped[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine() -> str:
    """Return processor, versions and date in one line."""
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    versions = []
    for package in ("jax", "optax", "torch"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    today = datetime.date.today().isoformat()
    return f"{os.cpu_count()} x {model}; {', '.join(versions)}; {today}"


def as_csv(rows: list[Row]) -> str:
    """Return rows as CSV, without the samples."""
    keys = dict.fromkeys(key for row in rows for key in row if key != "samples")
    out = io.StringIO()
    writer = csv.DictWriter(out, list(keys), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write(path: Path, rows: list[Row], command: str, compile_only: bool = False) -> None:
    """Write results in the format of the suffix: `.md`, `.csv` or `.json`.

    Raises:
        ValueError: If the suffix is another.
    """
    check_suffix(path)
    if path.suffix == ".csv":
        content = as_csv(rows)
    elif path.suffix == ".json":
        content = json.dumps({"command": command, "machine": machine(), "rows": rows}, indent=1)
    else:
        head = f"`{command}`\n\n{machine()}\n\n"
        content = head + markdown(table(rows, compile_only)) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def check_suffix(path: Path) -> None:
    """Raise ValueError if `path` has no known suffix."""
    if path.suffix not in (".md", ".csv", ".json"):
        raise ValueError(f"out: no format for {path.name!r}; end it in .md, .csv or .json")
