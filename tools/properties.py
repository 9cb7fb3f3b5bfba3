"""Write docs/properties.md: which property each optimizer has, by the tests that exist.

    python tools/properties.py --measure     # runs the tests (minutes), then writes
    python tools/properties.py --measure orbax strict     # the tests of these columns only
    python tools/properties.py [--check]     # from docs/results/properties.csv

A cell is what the tests of this optimizer said: pass, fail, or empty if there is no such test for
it. Two columns are facts that the registry states and tests prove.
"""

from __future__ import annotations

import csv
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import adamw_jax as aj
from adamw_jax.lab.plots.style import RC, SERIES

ROOT = pathlib.Path(__file__).parents[1]
PAGE, TABLE = ROOT / "docs" / "properties.md", ROOT / "docs" / "results" / "properties.csv"
PICTURE = ROOT / "docs" / "results" / "properties.png"
SMALL_TASKS = ROOT / "docs" / "results" / "small_tasks"
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}

FACTS = {
    "scale": "The step does not depend on the scale of the gradient (eps = 0)",
    "element": "The step of an element depends on its own gradients alone",
}
TESTS = {
    "dtypes": ("State and update keep their dtypes", "test_precision.py::test_dtypes"),
    "mixed": (
        "Parameters and gradients of different dtypes",
        "test_precision.py::test_mixed_dtypes",
    ),
    "bf16": (
        "Training in bfloat16 and float16 follows float32",
        "test_precision.py::test_half_precision_follows_float32",
    ),
    "strict": (
        "No operation promotes a dtype or makes a NaN (strict promotion, jax_debug_nans)",
        "test_precision.py::test_debug_nans",
    ),
    "complex": (
        "Complex parameters turn with the gradient",
        "test_precision.py::test_complex_is_real_when_real_and_turns_with_the_gradient",
    ),
    "zeros": ("Zero gradients move nothing", "test_precision.py::test_zero_gradients_stay_still"),
    "NaN": (
        "A NaN stays in its element",
        "test_precision.py::test_a_bad_gradient_stays_in_its_element",
    ),
    "skip": ("Bad steps are skipped to the bit", "test_skip_bad_steps.py::test_every_optimizer"),
    "sum": ("Gradients accumulate", "test_accumulate.py::test_every_optimizer"),
    "fp16": (
        "A loss scale changes nothing",
        "test_dynamic_loss_scale.py::test_a_scale_that_is_a_power_of_two_changes_nothing",
    ),
    "once": ("Five steps compile once", "test_one_trace.py::test_five_steps_compile_once"),
    "live": ("Hyperparameters are live", "test_one_trace.py::test_pinning_compiles_nothing"),
    "owns": (
        "The state owns its buffers, so it can be donated",
        "test_buffers.py::test_an_eager_step_keeps_no_array_of_the_caller",
    ),
    "orbax": ("An Orbax round trip changes no bit", "test_checkpoints.py::test_every_optimizer"),
    "width": (
        "A state of another float width is converted",
        "test_migration.py::test_another_float_width_is_converted",
    ),
    "shards": ("Sharded, no step gathers an array", "test_collectives.py::test_every_optimizer"),
    "sparse": ("Sparse gradients converge", "test_convergence.py::test_sparse_gradients_converge"),
}
SIGNS = {"pass": "✓", "fail": "✗", "yes": "✓", "no": "–", "": ""}


def measure(columns: list[str]) -> list[dict[str, str]]:
    """Run the tests, of some columns or all, and return a row for each optimizer."""
    found: dict[tuple[str, str], set[str]] = {}
    before = {row["optimizer"]: row for row in read()} if columns else {}
    for devices, more in ((False, {}), (True, EIGHT)):
        names = [key for key in columns or TESTS if ("collectives" in TESTS[key][1]) == devices]
        if not names:
            continue
        for key, name, status in _run([TESTS[key][1] for key in names], more):
            short = next(k for k in names if TESTS[k][1].endswith(key))
            found.setdefault((name, short), set()).add(status)
    rows = []
    for name in aj.list_optimizers():
        row = aj.info(name)
        facts = {"scale": row.degree == 0, "element": row.scope == "element"}
        cells = {key: "yes" if value else "no" for key, value in facts.items()}
        for key in TESTS:
            if columns and key not in columns:
                cells[key] = before[name][key]
                continue
            said = found.get((name, key), set())
            cells[key] = "fail" if "fail" in said else "pass" if said else ""
        rows.append({"optimizer": name, **cells})
    return rows


def _run(tests: list[str], more: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return file and function, optimizer and status of each test."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.xml"
        command = (sys.executable, "-m", "pytest", "-m", "slow or not slow", f"--junitxml={report}")
        paths = [f"tests/{test}" for test in tests]
        environment = {"JAX_PLATFORMS": "cpu", **os.environ, **more}
        subprocess.run([*command, *paths], cwd=ROOT, check=False, env=environment)
        cases = ET.parse(report).getroot().iter("testcase")
        found = []
        for case in cases:
            function, _, label = case.attrib["name"].partition("[")
            name = label.rstrip("]").partition("-")[0]
            bad = any(child.tag in ("failure", "error") for child in case)
            if not any(child.tag == "skipped" for child in case):
                file = case.attrib["classname"].rpartition(".")[2]
                found.append((f"{file}.py::{function}", name, "fail" if bad else "pass"))
        return found


def read() -> list[dict[str, str]]:
    """Return the rows measured last."""
    with TABLE.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page(rows: list[dict[str, str]]) -> str:
    """Return the text of the page."""
    about = {**FACTS, **{key: said for key, (said, _) in TESTS.items()}}
    lines = [
        "# Properties",
        "",
        "Which optimizer has which property. A ✓ is a test that passed for this optimizer alone, a",
        "✗ one that failed, – a property that the method does not have, and an empty cell a test",
        "that does not concern it. `python tools/properties.py --measure` runs the tests and",
        "writes this page.",
        "",
        "![A heat map of the table below](results/properties.png)",
        "",
        "| column | property | test |",
        "|---|---|---|",
    ]
    for key, said in about.items():
        test = f"`tests/{TESTS[key][1]}`" if key in TESTS else "the registry (`info(name)`)"
        lines.append(f"| {key} | {said} | {test} |")
    lines += ["", f"| optimizer | {' | '.join(about)} |", "|---" * (len(about) + 1) + "|"]
    for row in rows:
        cells = " | ".join(SIGNS[row[key]] for key in about)
        name = row["optimizer"]
        lines.append(f"| [`{name}`](optimizers/{name}.md) | {cells} |")
    if SMALL_TASKS.exists():
        lines += ["", *small_tasks()]
    return "\n".join(lines) + "\n"


def small_tasks() -> list[str]:
    """Return the lines on the small tasks, as ``adamw-jax run small_tasks`` recorded them."""
    table, where = SMALL_TASKS / "tables" / "small_tasks-ranking.csv", "results/small_tasks"
    lines = [
        "## Small tasks",
        "",
        "How often some learning rate solves small tasks that are hard in one way, and how many",
        f"were tried for it. [Tasks and numbers]({where}/details/small_tasks.md);",
        "`adamw-jax run small_tasks` makes them. They show what an optimizer cannot do in a fixed",
        "number of steps. They are no ranking for networks, where other things are hard.",
        "",
        f"![A heat map of optimizers and tasks]({where}/figures/small_tasks-success.png)",
        "",
        "| optimizer | solved | attempts |",
        "|---|---|---|",
    ]
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name, tried = row["optimizer"], row["attempts"] and f"{float(row['attempts']):.1f}"
            lines.append(
                f"| [`{name}`](optimizers/{name}.md) | {float(row['rate']):.0%} | {tried} |"
            )
    return lines


def draw(rows: list[dict[str, str]]) -> None:
    """Draw the table as a heat map; the signs are in the cells, so colour is not all."""
    keys = [*FACTS, *TESTS]
    levels = {"": 0, "no": 1, "yes": 2, "pass": 2, "fail": 3}
    with mpl.rc_context(RC):
        canvas = Figure((8, 9), layout="constrained")
        ax = canvas.subplots()
        values = [[levels[row[key]] for key in keys] for row in rows]
        ax.imshow(
            values, ListedColormap(["white", "#e4e7ec", SERIES[2], SERIES[1]]), vmin=0, vmax=3
        )
        for i, row in enumerate(rows):
            for j, key in enumerate(keys):
                ax.text(j, i, SIGNS[row[key]], ha="center", va="center", fontsize=7)
        ax.set_xticks(range(len(keys)), keys, rotation=60, ha="left", rotation_mode="anchor")
        ax.set_yticks(range(len(rows)), [row["optimizer"] for row in rows])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        FigureCanvasAgg(canvas)
        canvas.savefig(PICTURE, dpi=110, metadata={"Software": None})


def main(arguments: list[str]) -> int:
    """Measure, write or compare; return 1 if the page is old or a test failed."""
    if arguments[:1] == ["--measure"]:
        rows = measure(arguments[1:])
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        draw(rows)
    rows = read()
    if [row["optimizer"] for row in rows] != list(aj.list_optimizers()):
        print("docs/results/properties.csv lacks optimizers; run tools/properties.py --measure")
        return 1
    if "--check" in arguments:
        is_old = page(rows) != PAGE.read_text(encoding="utf-8")
        if is_old:
            print("docs/properties.md is old; run python tools/properties.py")
        return int(is_old)
    PAGE.write_text(page(rows), encoding="utf-8")
    return int(any("fail" in row.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
