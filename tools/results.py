"""Publish results: python tools/results.py [FOLDER ...], with --check only compare the table.

The report of each folder is built anew from its logs, and what one reads of it is copied to
``docs/results/``, under the name of the folder. Then the table of claims in
``docs/results/README.md`` is written from the verdicts that lie there.
"""

from __future__ import annotations

import csv
import pathlib
import re
import shutil
import sys

from readme_table import authors

from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.report import build, markdown

RESULTS = pathlib.Path(__file__).parents[1] / "docs" / "results"
BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"
READ = ("run.json", "report.md", "verdicts.csv", "details", "figures", "tables")
"""What is published; the drawings for the page in the browser are not."""


def publish(folder: pathlib.Path) -> None:
    """Build the report of a folder and replace what is published of it."""
    build(folder)
    target = RESULTS / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for name in READ:
        path = folder / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=shutil.ignore_patterns("*.svg"))
        elif path.exists():
            shutil.copy(path, target / name)


def table() -> str:
    """Return one row for each claim: the claim, who made it, and the verdict on each task."""
    rows = []
    for path in sorted(
        RESULTS.glob("*/verdicts.csv"), key=lambda p: (p.parent.name != "article", p)
    ):
        claims: dict[tuple[str, str], dict[str, list[str]]] = {}
        for row in csv.DictReader(path.open(encoding="utf-8", newline="")):
            words = claims.setdefault((row["experiment"], row["claim"]), {})
            words.setdefault(row["word"], []).append(row["task"])
        for (name, claim), words in claims.items():
            details = f"{path.parent.name}/details/{name}.md"
            said = (
                f"**{word}**" + (f" ({'; '.join(tasks)})" if len(words) > 1 else "")
                for word, tasks in words.items()
            )
            source = source_of(get_experiment(name).reference)
            rows.append((f"[{claim}]({details})", source, ", ".join(said)))
    return markdown.grid(("Claim", "Source", "Verdict"), rows)


def source_of(reference: str) -> str:
    """Return the authors of the first paper in a reference, with a link if it has a number."""
    first = reference.partition(";")[0]
    number = re.search(r"arXiv (\d{4}\.\d{4,5})", first)
    return f"[{authors(first)}](https://arxiv.org/abs/{number[1]})" if number else authors(first)


def main(arguments: list[str]) -> int:
    """Publish and write the table, or with --check return 1 if it differs."""
    page = RESULTS / "README.md"
    folders = [pathlib.Path(each) for each in arguments if each != "--check"]
    for folder in folders:
        publish(folder.resolve())
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    new = f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}"
    if "--check" in arguments:
        if new != text:
            print("docs/results/README.md: the table is old; run python tools/results.py")
        return int(new != text)
    page.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
