"""Write docs/optimizers/ from the registry and the docstrings; with --check, only compare."""

from __future__ import annotations

import csv
import inspect
import pathlib
import re
import sys

import adamw_jax as aj

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "optimizers"
PICTURES = FOLDER.parent / "results" / "pictures"  # by tools/optimizer_pictures.py


def pages() -> dict[str, str]:
    """Return the text of each page by file name."""
    names = aj.list_optimizers()
    index = ["# Optimizers", "", "Which one: [how to choose](../choosing.md).", ""]
    index += [f"- [`{name}`]({name}.md): {_summary(name)}" for name in names]
    return {"README.md": "\n".join(index) + "\n", **{f"{n}.md": _page(n) for n in names}}


def _summary(name: str) -> str:
    return (aj.info(name).factory.__doc__ or "").split("\n", 1)[0]


def _page(name: str) -> str:
    row = aj.info(name)
    said = _sections(row)
    link = f", [{row.arxiv}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else ""
    lines = [f"# {row.title}", "", _summary(name), "", "```text", row.equation, "```", ""]
    lines += [*said["About"], *([""] if said["About"] else [])]
    lines += [
        f"- State: {row.state}, float32 at least.",
        f"- Reference: {row.citation}{link}.",
        f"- Direction alone: `scale_by_{name}`." if row.direction else "- Has no direction alone.",
    ]
    if row.differs:
        lines.append(f"- Differs: {row.differs}")
    if row.scope == "tree":
        lines.append("- Looks at all leaves at once: under `optax.partition` each part is alone.")
    if row.twin:
        options = ", ".join(f"{k}={v!r}" for k, v in row.twin_options.items())
        lines.append(
            f"- Same step in optax: `optax.{row.twin}`" + (f" ({options})." if options else ".")
        )
    recipe = row.factory(0.1, **row.example)
    lines += ["", "## Recipe", "", *(f"1. `{spec.name}`: {spec.kinds}" for spec in recipe.specs)]
    lines += ["", *_picture(row), "## Defaults", "", *_defaults(row), ""]
    for title, key in (("Arguments", "Args"), ("Returns", "Returns")):
        if said[key]:
            lines += [f"## {title}", "", *said[key], ""]
    return "\n".join(lines)


def _defaults(row: aj.OptimizerInfo) -> list[str]:
    """Return all arguments in order, each with its default."""
    lines = ["| argument | default |", "|---|---|"]
    for parameter in inspect.signature(row.factory).parameters.values():
        default = parameter.default
        shown = "none, must be given" if default is parameter.empty else f"`{_shown(default)}`"
        lines.append(f"| `{parameter.name}` | {shown} |")
    if row.refuses:
        names = ", ".join(f"`{name}`" for name in row.refuses)
        lines += ["", f"Does not take {names}: {row.lacks}."]
    return lines


def _shown(default: object) -> str:
    return re.sub(r'^\'([^\'"]*)\'$', r'"\1"', repr(default))


def _sections(row: aj.OptimizerInfo) -> dict[str, list[str]]:
    """Return the parts of the docstring that are not elsewhere on the page, as Markdown."""
    found: dict[str, list[str]] = {"About": [], "Args": [], "Returns": []}
    _, _, rest = (inspect.getdoc(row.factory) or "").partition(row.equation)
    for paragraph in rest.strip("\n").split("\n\n"):
        first, _, body = paragraph.partition("\n")
        key = first.removesuffix(":")
        if first.endswith(":") and key in found:
            found[key] = _items(body) if key == "Args" else [_joined(body)]
        elif not first.startswith(("Differs: ", "Reference: ", "Example:")):
            found["About"] += [*([""] if found["About"] else []), _joined(paragraph)]
    return found


def _items(body: str) -> list[str]:
    """Return the entries ``name: text`` of a section as a list, one line each."""
    entries = re.split(r"\n(?=  \S)", body)
    parts = (_joined(entry).partition(": ") for entry in entries)
    return [f"- `{name}`: {text}" for name, _, text in parts]


def _joined(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def _picture(row: aj.OptimizerInfo) -> list[str]:
    """Return the picture with its numbers, or nothing if it is not drawn yet."""
    if not (PICTURES / "numbers.csv").exists():
        return []
    with (PICTURES / "numbers.csv").open(encoding="utf-8", newline="") as file:
        mine = {r["valley"]: r for r in csv.DictReader(file) if r["optimizer"] == row.name}
    if not mine:
        return []
    said = {
        valley: f"with learning rate {r['learning_rate']} the loss is {r['loss']} after "
        f"{r['steps']} steps"
        for valley, r in mine.items()
    }
    alt = (
        f"Paths of {row.title} from a square towards the minimum, a star. On Rosenbrock's "
        f"function {said['rosenbrock']}, in a noisy valley {said['noisy']}. Right: both losses."
    )
    return [
        "## Path",
        "",
        f"![{alt}](../results/pictures/{row.name}.png)",
        "",
        "From the square towards the minimum, the star; the dot is the end. Left Rosenbrock's "
        "function, in the middle a quadratic of condition number 25 whose place is drawn anew at "
        "every step. The learning rate, on either, is the one of 11 from 0.0001 to 10 with the "
        "smallest mean loss over the last tenth of the steps; all else is at its default. Two "
        "numbers do not rank optimizers of networks. "
        "[Numbers of all optimizers](../results/pictures/numbers.csv).",
        "",
    ]


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check return 1 if they differ."""
    wanted = pages()
    if "--check" in arguments:
        have = {page.name: page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md")}
        if have != wanted:
            print("docs/optimizers is old; run python tools/optimizer_pages.py")
        return int(have != wanted)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for page in FOLDER.glob("*.md"):
        page.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
