"""Build the site from README, docs, notebooks and docstrings: python tools/site.py [FOLDER].

Pages are copied with the layout of this repository, so that their links hold here and on the site.
What is in the code is written at each build: the reference, from every ``__all__``, and the
gallery.
A warning of Sphinx is an error, and so is a public name that the reference lacks.
"""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator

from sphinx.cmd.build import main as sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inventory import InventoryFile

import adamw_jax as aj

ROOT = pathlib.Path(__file__).parents[1]
BUILD = ROOT / "build" / "site"
COPIED = (
    *("docs", "notebooks", "examples"),
    *("README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"),
)

SECTIONS = {
    "Get started": (
        "docs/first_training",
        "notebooks/first_steps",
        "notebooks/one_cycle",
        "examples/index",
        "docs/choosing",
    ),
    "How to": (
        *("docs/groups", "docs/averaging", "docs/checkpoints", "docs/robust", "docs/sharding"),
        *("docs/communication", "docs/packing", "docs/low_precision", "docs/diagnostics"),
        *("docs/curvature", "docs/initialization", "docs/foreign", "docs/own_stage"),
        *("notebooks/own_optimizer", "notebooks/small_state", "notebooks/curvature"),
        *("docs/compare", "The same in a notebook <notebooks/compare>", "docs/cookbook"),
    ),
    "When something is wrong": ("docs/slow_step", "docs/nan_loss", "docs/full_memory"),
    "Coming from": tuple(
        f"docs/coming_from/{name}"
        for name in ("torch", "timm", "hugging_face", "keras", "fastai", "optax")
    ),
    "Concepts": (
        *("docs/decay", "docs/amsgrad", "docs/radam", "docs/clocks", "docs/schedules"),
        *("docs/differences", "docs/scale"),
    ),
    "Optimizers": ("gallery", "docs/optimizers/README"),
    "Reference": ("reference/index",),
    "Results": ("docs/article", "docs/article_text", "docs/results/README", "docs/properties"),
    "The project": (
        "docs/README",
        "README.zh",
        "docs/architecture",
        "CONTRIBUTING",
        "CHANGELOG",
    ),
}
"""The navigation; pages of a folder that are not named hang below its README, or below a report."""

GALLERY = """# Gallery

The path of each optimizer on two valleys; a click leads to its page.

::::{grid} 1 1 2 2
"""


def gather(source: pathlib.Path) -> None:
    """Copy what is read, and write what is made."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in COPIED:
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, source / name)
    for page in [*source.glob("*.md"), *source.glob("docs/**/*.md")]:
        first = "" if page.parent == source else "../"
        if page.parent in (source, source / "docs"):
            text = page.read_text("utf-8").replace(f"]({first}README.md", f"]({first}index.md")
            page.write_text(text, "utf-8")
        for target in re.findall(r"\]\((\.\./[^)#]*\.py)\)", page.read_text("utf-8")):
            place = (page.parent / target).resolve()
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / place.relative_to(source.resolve()), place)
    (source / "index.md").write_text(index(), "utf-8")
    (source / "gallery.md").write_text(gallery(), "utf-8")
    (source / "examples" / "index.md").write_text(examples(source / "examples"), "utf-8")
    below(source / "docs" / "optimizers" / "README.md", "*.md")
    below(source / "docs" / "results" / "README.md", "*.md", "*/report.md")
    for report in source.glob("docs/results/*/report.md"):
        below(report, "details/*.md")
    (source / "reference").mkdir()
    for name, text in reference().items():
        (source / "reference" / f"{name}.md").write_text(text, "utf-8")


def tree(pages: Iterator[str] | tuple[str, ...], caption: str = "", depth: int = 1) -> str:
    """Return a table of contents that only the navigation shows."""
    head = [f":caption: {caption}"] if caption else []
    lines = ["```{toctree}", ":hidden:", f":maxdepth: {depth}", *head, "", *pages, "```"]
    return "\n".join(lines) + "\n"


def below(page: pathlib.Path, *patterns: str) -> None:
    """Hang the other pages of a folder below one of them; a report has the name of its folder."""
    found = {each for pattern in patterns for each in page.parent.glob(pattern)} - {page}
    names = []
    for each in sorted(found):
        name = str(each.relative_to(page.parent).with_suffix(""))
        title = each.parent.name.capitalize()
        names.append(f"{title} <{name}>" if each.stem == "report" else name)
    with page.open("a", encoding="utf-8") as file:
        file.write("\n" + tree(tuple(names)))


def index() -> str:
    """Return the first page: README with the navigation."""
    text = (ROOT / "README.md").read_text("utf-8")
    for name, page in (
        ("examples", "examples/index.md"),
        ("notebooks", "notebooks/first_steps.ipynb"),
    ):
        text = text.replace(f"]({name})", f"]({page})")
    return text + "\n" + "\n".join(tree(pages, caption) for caption, pages in SECTIONS.items())


def examples(folder: pathlib.Path) -> str:
    """Return a page with every script of the examples."""
    parts = ["# Examples", "", "Each runs by itself: `python examples/flax_nnx.py`.", ""]
    for path in sorted(folder.glob("*.py")):
        parts += [
            f"## {path.stem}",
            "",
            f"```{{literalinclude}} {path.name}",
            ":language: python",
            "```",
            "",
        ]
    return "\n".join(parts)


def gallery() -> str:
    """Return a page with the path of every optimizer, and every picture of the results."""
    lines = [GALLERY]
    for name in aj.list_optimizers():
        page, picture = f"docs/optimizers/{name}", f"docs/results/pictures/{name}.png"
        lines += [f":::{{grid-item-card}} {name}", f":link: {page}", ":link-type: doc"]
        lines += [f":img-bottom: {picture}", ":::", ""]
    lines += ["::::", ""]
    for report in sorted(ROOT.glob("docs/results/*/report.md")):
        folder, text = f"docs/results/{report.parent.name}", report.read_text("utf-8")
        title = text.partition("\n")[0].removeprefix("# ")
        lines += [f"## {title}", "", f"[The report]({folder}/report.md)", ""]
        pages = [report, *sorted(report.parent.glob("details/*.md"))]
        texts = "".join(page.read_text("utf-8") for page in pages)
        for alt, picture in re.findall(r"!\[([^\]]*)\]\((?:\.\./)?([^)]*)\)", texts):
            said = " ".join(alt.split())
            lines += [f"```{{figure}} {folder}/{picture}", f":alt: {said}", "", said, "```", ""]
    return "\n".join(lines)


def namespaces() -> list[str]:
    """Return the public modules, those for authors of stages last."""
    found = (m.name for m in pkgutil.iter_modules(aj.__path__) if not m.name.startswith("_"))
    return sorted(found, key=lambda name: (name == "extend", name))


def homes() -> dict[str, list[tuple[str, str]]]:
    """Return by namespace its public names, each in the first one that has it, and directives."""
    modules = {name: importlib.import_module(f"adamw_jax.{name}") for name in namespaces()}
    seen: set[int] = set()
    found: dict[str, list[tuple[str, str]]] = {}
    for name, module in {**modules, "adamw_jax": aj}.items():
        for public in module.__all__:
            thing = getattr(module, public)
            if not (inspect.ismodule(thing) or id(thing) in seen):
                seen.add(id(thing))
                found.setdefault(name, []).append((public, directive(thing)))
    return found


def directive(thing: object) -> str:
    """Return how autodoc describes an object."""
    if inspect.isclass(thing):
        return "autoclass"
    return "autofunction" if callable(thing) else "data"


def described(constant: str) -> str:
    """Return what stands below a constant where it is assigned; autodoc finds its class's text."""
    for name in sorted(sys.modules):
        if name.startswith("adamw_jax."):
            said = ModuleAnalyzer.for_module(name).find_attr_docs().get(("", constant))
            if said:
                return " ".join(said).strip()
    raise SystemExit(f"{constant} has no string below its assignment; write one")


def reference() -> dict[str, str]:
    """Return the text of each page of the reference."""
    found, pages, places = homes(), {}, {}
    for name, public in found.items():
        module = qualified(name)
        about = inspect.getdoc(importlib.import_module(module)) or ""
        lines = [f"# {module}", "", "```{eval-rst}", f".. currentmodule:: {module}", ""]
        lines += [about.partition("\n\n")[0], ""]
        for each, kind in public:
            lines += [f".. {kind}:: {each}", *["   :members:"] * (kind == "autoclass"), ""]
            if kind == "data":
                lines += [f"   {described(each)}", ""]
            places[each] = name
        pages[name] = "\n".join([*lines, "```", ""])
    lines = ["# Reference", "", "Every public name. Those of `adamw_jax` itself:", ""]
    lines += ["| name | described in |", "|---|---|"]
    for each in filter(places.__contains__, aj.__all__):
        module = qualified(places[each])
        lines.append(f"| {{any}}`{each} <{module}.{each}>` | [{module}]({places[each]}.md) |")
    pages["index"] = "\n".join([*lines, "", tree(tuple(found))])
    return pages


def qualified(namespace: str) -> str:
    """Return the full name of a public module."""
    return namespace if namespace == "adamw_jax" else f"adamw_jax.{namespace}"


def missing(site: pathlib.Path) -> list[str]:
    """Return public names that the built site does not describe."""
    known = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    described = {name for kind, names in known.items() if kind.startswith("py:") for name in names}
    wanted = (f"{qualified(name)}.{each}" for name, public in homes().items() for each, _ in public)
    return [name for name in wanted if name not in described]


def main(arguments: list[str]) -> int:
    """Build the site; return the exit status."""
    source, site = BUILD / "source", pathlib.Path(arguments[0]) if arguments else BUILD / "html"
    gather(source)
    options = ("-q", "-W", "--keep-going", "-j", "2", "-b", "html", "-c", str(ROOT / "docs"))
    if status := sphinx([*options, str(source), str(site)]):
        return status
    if names := missing(site):
        print(f"the reference lacks {', '.join(names)}")
        return 1
    print(f"   {site / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
