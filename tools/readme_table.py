"""Write the table of optimizers in README.md from the registry; with --check, only compare."""

from __future__ import annotations

import pathlib
import sys

import adamw_jax as aj

BEGIN, END = "<!-- optimizers: begin -->", "<!-- optimizers: end -->"
README = pathlib.Path(__file__).parents[1] / "README.md"


def table() -> str:
    """Return the registry as a Markdown table."""
    rows = ["| name | step | state | paper |", "|---|---|---|---|"]
    for name in aj.list_optimizers():
        row = aj.info(name)
        step = row.equation.replace("theta", "θ").replace("<-", "←").replace("  ", " ")
        step = f"`{step}`".replace("|", "\\|")
        paper = authors(row.citation)
        link = f"[{row.arxiv}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else ""
        values = row.state
        rows.append(f"| `{name}` | {step} | {values} | {paper} {link} |")
    return "\n".join(rows)


def authors(citation: str) -> str:
    """Return the authors of a citation for the table: of three or more, the first "et al."."""
    first, *others = citation.split(", ")
    for other in others:
        if " & " in other:
            return f"{first} et al."
        if " " in other:  # the title
            break
    return first


def main(arguments: list[str]) -> int:
    """Update the README, or with --check return 1 if it differs."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    new = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in arguments:
        if new != text:
            print("README.md: the table of optimizers is old; run python tools/readme_table.py")
        return int(new != text)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
