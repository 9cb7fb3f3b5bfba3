"""Run the comparisons of docs/results/benchmarks.md and check their bounds.

A section is one command line of this package. Its raw figures are kept in a folder, so a section
disturbed by other work can be repeated alone; then the page is written again from all figures.
"""

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks import report

Row = dict[str, Any]

OUR_AMSGRAD = "ours:amsgrad(maximum='corrected')"
OUR_PACKED = "ours:adamw+pack_small_leaves"
OUR_RADAM = "ours:radam(below='momentum')"


@dataclasses.dataclass(frozen=True)
class Bound:
    """An upper bound for a figure of one contender, divided by that of another if given."""

    contender: str
    against: str | None
    limit: float
    key: str = "ratio_paired"

    def value(self, rows: dict[str, Row]) -> float | None:
        """Return the figure, or None if a contender did not run."""
        mine = rows.get(self.contender, {}).get(self.key)
        if self.against is None or mine is None:
            return mine
        its = rows.get(self.against, {}).get(self.key)
        return None if its is None else mine / its

    def says(self, rows: dict[str, Row]) -> str:
        """Return one line for the page."""
        value = self.value(rows)
        what = f"`{self.contender}`"
        what += f" / `{self.against}`" if self.against else f" {self.key}"
        if value is None:
            return f"- {what}: not measured"
        verdict = "met" if value <= self.limit else "**missed**"
        names = (self.contender, self.against or self.contender)
        if self.key.startswith("ratio") and any("other work" in rows[n]["note"] for n in names):
            verdict += ", but other work ran: undecided until run again"
        return f"- {what}: {value:.3f}, at most {self.limit:g}: {verdict}"


@dataclasses.dataclass(frozen=True)
class Section:
    """One run and its bounds."""

    title: str
    arguments: tuple[str, ...]
    bounds: tuple[Bound, ...]


MANY_ROUNDS = ("--repeats", "45")
"""For bounds of a few per cent: the medians of 15 rounds differ by as much."""


def _rule(tree: str, rule: str, ours: str, *others: str) -> Section:
    """Compare a rule with that of optax, which runs twice to show the noise."""
    twin = f"optax:{rule}"
    arguments = ("step", "--tree", tree, *MANY_ROUNDS, twin, ours, f"again={twin}", *others)
    if tree in ("gpt2", "one67m"):
        arguments = (*arguments, "--memory-gib", "12")
    bounds = (Bound(ours, twin, 1.03), Bound(ours, None, 0.01, "scratch_per_param"))
    return Section(f"{rule}, {tree}", arguments, bounds)


def _small_state(tree: str) -> Section:
    """Compare storages of the state with full precision, and bitsandbytes if installed."""
    eight, four, peer = "ours:adamw(storage='8bit')", "ours:adamw(storage='4bit')", "bnb:adamw8bit"
    others = ("ours:adamw(storage='float8')", "ours:adamw(storage='bfloat16')")
    roots = "ours:adamw(storage='roots')"
    return Section(
        f"adamw with small state, {tree}",
        (
            *("step", "--tree", tree, "--memory-gib", "12", "optax:adamw", "ours:adamw"),
            *(eight, roots, four, *others, peer, "again=optax:adamw"),
        ),
        (
            Bound(eight, None, 2.04, "state_per_param"),
            Bound(roots, None, 2.04, "state_per_param"),
            Bound(roots, "ours:adamw", 5.0),
            Bound(four, None, 1.08, "state_per_param"),
            Bound(eight, None, 8.0, "scratch_per_param"),
            Bound(eight, peer, 0.45),
        ),
    )


def _sections() -> dict[str, Section]:
    sections = {}
    for tree in ("resnet50", "wrn22-6", "gpt2", "one67m"):
        torch = ["torch:adamw-fused", "torch:adamw-foreach", "torch:adamw-loop"]
        torch = torch[:1] if tree in ("gpt2", "one67m") else torch
        amsgrad = ("ours:amsgrad", "torch:amsgrad-fused")
        radam = ("ours:radam", "torch:radam-foreach")  # which has no fused form
        sections[f"adamw-{tree}"] = _rule(tree, "adamw", "ours:adamw", *torch)
        sections[f"amsgrad-{tree}"] = _rule(tree, "amsgrad", OUR_AMSGRAD, *amsgrad)
        sections[f"radam-{tree}"] = _rule(tree, "radam", OUR_RADAM, *radam)
    for rule, ours, limit, scratch in (
        ("adan", "ours:adan", 1.0, 1.0),
        ("lamb", "ours:lamb", 0.65, 4.0),
        ("adafactor", "ours:adafactor(1e-3)", 0.85, 4.0),
        ("lars", "ours:lars", 1.0, 1.0),
    ):
        sections[f"{rule}-resnet50"] = Section(
            f"{rule}, resnet50",
            ("step", "--tree", "resnet50", f"optax:{rule}", ours, f"again=optax:{rule}"),
            (
                Bound(ours, f"optax:{rule}", limit),
                Bound(ours, None, scratch, "scratch_per_param"),
            ),
        )
    others = (
        *("ours:adamax", "ours:adabelief", "ours:sgdw", "ours:pnm", "ours:adapnm", "ours:acprop"),
        *("ours:diffgrad", "ours:generalized_signsgd", "ours:padam", "ours:gadam", "ours:gadamx"),
        *("ours:clipped_sgd(max_step=1.0)", "ours:normalized_sgd", "ours:norm_adaptive_sgd"),
        *("ours:koala_v", "ours:koala_m"),
    )
    sections["others-resnet50"] = Section(
        "the other optimizers against adamw, resnet50",
        (*("step", "--tree", "resnet50", "ours:adamw", *others, "again=ours:adamw"),),
        tuple(Bound(name, None, 1.0, "scratch_per_param") for name in others),
    )
    tail, optax_tail = "ours:adamw+lookahead", "optax:adamw+lookahead"
    sections["lookahead"] = Section(
        "Lookahead(AdamW), averaged over its period of 5, resnet50",
        ("lookahead", "ours:adamw", tail, optax_tail, "again=ours:adamw"),
        (Bound(tail, "ours:adamw", 1.15), Bound(tail, optax_tail, 0.40)),
    )
    guard, finite = "ours:adamw+skip_bad_steps", "optax:adamw+apply_if_finite(5)"
    sections["guard"] = Section(
        "adamw whose bad steps are skipped, resnet50",
        ("step", "--tree", "resnet50", "ours:adamw", guard, finite, "again=ours:adamw"),
        (Bound(guard, finite, 0.7), Bound(guard, None, 1.1, "scratch_per_param")),
    )
    mean, several = "ours:adamw+accumulate(4)", "optax:adamw+MultiSteps(4)"
    sections["accumulate"] = Section(
        "adamw once in 4 micro-batches, averaged over these, resnet50",
        ("lookahead", "--period", "4", "ours:adamw", mean, several, "again=ours:adamw"),
        (Bound(mean, several, 0.3), Bound(mean, None, 1.1, "scratch_per_param")),
    )
    sections["compile"] = Section(
        "Trace and compile, 1,000 leaves",
        (
            *("compile", "--leaves", "1000", "--repeats", "7"),
            *("optax:adamw", "ours:adamw", "again=optax:adamw"),
        ),
        (Bound("ours:adamw", "optax:adamw", 1.0),),
    )
    sections["bfloat16"] = Section(
        "bfloat16 parameters and gradients, resnet50; the moments of ours are float32",
        (
            *("step", "--tree", "resnet50", "--dtype", "bfloat16", *MANY_ROUNDS),
            *("optax:adamw", "ours:adamw", "torch:adamw-fused"),
        ),
        (Bound("ours:adamw", "optax:adamw", 0.6),),
    )
    sections["tiny"] = Section(
        "1,000 leaves of 64 elements: the cost of leaves",
        ("step", "--tree", "tiny:1000", "optax:adamw", "ours:adamw", "again=optax:adamw"),
        (),
    )
    packed = ("optax:adamw", "ours:adamw", OUR_PACKED, "again=optax:adamw")
    for tree, limit in (("tiny:1000", 0.45), ("resnet50", 1.03)):
        sections[f"packing-{tree.replace(':', '-')}"] = Section(
            f"adamw with the state of small leaves packed, {tree}",
            ("step", "--tree", tree, *packed),
            (Bound(OUR_PACKED, "optax:adamw", limit),),
        )
    for leaves, limit in (("1000", 0.5), ("5000", 0.25)):
        sections[f"packing-compile-{leaves}"] = Section(
            f"Trace and compile with the state of small leaves packed, {leaves} leaves of 64",
            ("compile", "--leaves", leaves, *packed[:3]),
            (Bound(OUR_PACKED, "optax:adamw", limit),),
        )
    sections["small"] = Section(
        "8 leaves of 256 x 128: the cost of a step",
        ("step", "--tree", "small", "optax:adamw", "ours:adamw", "again=optax:adamw"),
        (),
    )
    for name, tree in (("small-state", "gpt2:4:512"), ("small-state-one", "one:33554432")):
        sections[name] = _small_state(tree)
    return sections


SECTIONS = _sections()

HEAD = """# Benchmarks

Made by `python -m benchmarks suite`. Each contender has a process of its own; in every round each
gives one sample, in an order drawn anew; samples during which other programs ran are set aside.
One step is the update and its addition to the parameters in one `jit`, parameters and state
donated. "x" columns are ratios to the first row: of medians, of minima, the median of the ratios
within a round, and processor time. `again` is the first row once more: how far it is from 1 is the
noise of that run. What decides, and was chosen before anything was measured, is "x paired": the
median of the ratios within a round. It is also the least disturbed: the machines are shared and
noisy, so times differ from run to run and from section to section by more than the ratios do, and
a difference smaller than that of `again` says nothing. Kernels, copies and bytes are what XLA
says of the compiled step; scratch is memory beyond arguments and results; "trace+compile" in the
step tables was taken once, so compare compilation in its own section. GB/s are the bytes that XLA
counts as moved over the median time: not what the memory bus saw, where caches hold a part.
"""


def wait_for_quiet(load: float, patience: float) -> None:
    """Wait until there is little other work, at most `patience` seconds."""
    until = time.monotonic() + patience
    while os.getloadavg()[0] > load and time.monotonic() < until:
        time.sleep(5)


def page(raw: Path) -> str:
    """Return the Markdown page of all sections that have figures."""
    parts = [HEAD]
    for name, section in SECTIONS.items():
        file = raw / f"{name}.json"
        if not file.exists():
            continue
        found = json.loads(file.read_text())
        rows = found["rows"]
        cells = report.table(rows, section.arguments[0] == "compile")
        by_name = {row["contender"]: row for row in rows}
        parts.append(f"## {section.title}\n")
        parts.append(f"`{found['command']}`\\\n{found['machine']}\n")
        parts.append(report.markdown(cells) + "\n")
        parts += [bound.says(by_name) for bound in section.bounds]
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def rows_csv(raw: Path, path: Path) -> None:
    """Write one CSV of the rows of all sections."""
    rows = []
    for name in SECTIONS:
        file = raw / f"{name}.json"
        if file.exists():
            found = json.loads(file.read_text())["rows"]
            rows += [{"section": name, **row} for row in found]
    path.write_text(report.as_csv(rows))
