"""What is committed and what is packaged: no hosts, no stray paths, one version, a light import."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import adamw_jax

ROOT = pathlib.Path(__file__).parents[1]
LAB_ONLY = ("flax", "matplotlib", "rich", "sklearn", "tyro", "filelock", "orbax", "chex",
            "adamw_jax.lab")  # fmt: skip

# Put together here, so that this file does not contain what it looks for.
FORBIDDEN = [
    re.compile(pattern)
    for pattern in (
        "py" + r"pi\.(org|python|io)",
        "python" + "hosted",
        "index" + "[-_]url",
        "find" + "-links",
        "registry" + r" *= *[\"'{]",
        r"(?<![\w.~])/(wo" + "rk|ho" + "me|ro" + "ot|Us" + "ers|fa" + r"rm)/\w",
    )
]


def committed() -> list[pathlib.Path]:
    """The files that git knows, or would add; without a repository, the test says so."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git repository: {error}")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    assert len(paths) > 50
    return [path for path in paths if path.is_file()]


def test_no_committed_file_names_an_index_or_a_path_of_this_machine():
    found = []
    for path in committed():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # arrays and pictures
        for pattern in FORBIDDEN:
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found


def test_forbidden_patterns_match_what_they_are_for():
    bad = [
        "https://py" + "pi.org/simple",
        "files.python" + "hosted.org",
        "--index" + "-url https",
        "--find" + "-links x",
        "registry" + " = { x = 1 }",
        'open("/wo' + 'rk/file")',
    ]
    assert all(any(pattern.search(text) for pattern in FORBIDDEN) for text in bad)
    good = "https://github.com/google-deepmind/optax and ./notes/file and docs/ro" + "ot/page"
    assert not any(pattern.search(good) for pattern in FORBIDDEN)


def test_no_lock_file_and_constraints_without_addresses():
    assert not [path for path in committed() if path.name == "uv.lock"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = re.compile(r"[a-z0-9._-]+==[\w.]+( ; .+)?")
    assert [line for line in lines if not pinned.fullmatch(line)] == []


def test_constraints_cover_what_pyproject_names():
    """Every dependency of every extra is pinned, so a fresh environment is the one tested."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.split("==", line)[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[^\w.-]", line)[0].lower() for group in groups for line in group}
    assert names - pinned == {"adamw-jax"}


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    versions = {
        str(citation["version"]),
        importlib.metadata.version("adamw-jax"),
        newest[1],
    }
    assert versions == {adamw_jax.__version__}


def test_citation_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    assert all(author.keys() & {"name", "family-names"} for author in citation["authors"])


def test_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_package_is_typed():
    assert importlib.resources.files("adamw_jax").joinpath("py.typed").is_file()


IMPORT_WITH_BLOCKER = """
import sys
blocked = set(sys.argv[1:])
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in blocked or name.split(".")[0] in blocked:
            raise ImportError(f"the library imported {name}")
sys.meta_path.insert(0, Blocker())
import pkgutil
import adamw_jax, jax.numpy as jnp
for module in pkgutil.walk_packages(adamw_jax.__path__, "adamw_jax."):
    if not module.name.startswith("adamw_jax.lab"):
        __import__(module.name)
tx = adamw_jax.adamw(1e-3)
params = {"w": jnp.ones(3)}
tx.update(params, tx.init(params), params)
assert not blocked & set(sys.modules), blocked & set(sys.modules)
print("imported")
"""


def test_library_needs_jax_and_optax_only():
    """Every module but the lab's imports, and a step runs, where nothing else can be imported."""
    command = [sys.executable, "-c", IMPORT_WITH_BLOCKER, *LAB_ONLY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "imported", done.stderr
