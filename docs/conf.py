"""Configure Sphinx; tools/site.py gathers the sources and calls it."""

import os
import re

import adamw_jax

project = "adamw_jax"
author = "The adamw_jax authors"
copyright = "the adamw_jax authors"
version = release = adamw_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
nb_execution_mode = "off"  # make check runs the notebooks and the code of the pages
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature and the section Args say it
autodoc_typehints_format = "short"
napoleon_use_ivar = True  # an attribute is described once
napoleon_use_rtype = False
napoleon_preprocess_types = False
suppress_warnings = ["myst.header"]  # pages of tables may begin with a second level
# Publishing sets it; a build without a network knows no other project.
intersphinx_mapping = (
    {
        "jax": ("https://docs.jax.dev/en/latest/", None),
        "optax": ("https://optax.readthedocs.io/en/latest/", None),
        "flax": ("https://flax.readthedocs.io/en/latest/", None),
        "python": ("https://docs.python.org/3/", None),
    }
    if "ADAMW_JAX_DOCS_LINKED" in os.environ
    else {}
)

html_theme = "sphinx_book_theme"
html_title = "adamw_jax"
html_theme_options = {
    "show_navbar_depth": 1,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the search stands in the sidebar
    "use_download_button": False,
}
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

SECTION = re.compile(r"(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")


def equations(app, what, name, obj, options, lines):
    """Show indented equations as they are, and bars of absolute values as bars."""
    shown, literal, prose = [], False, True
    for before, line in zip(["", *lines], lines, strict=False):
        prose = prose and not SECTION.match(line)
        indented = line.startswith("    ")
        if prose and indented and not before and not literal:
            if not next((x for x in reversed(shown) if x), "").endswith("::"):
                shown += ["::", ""]
            literal = True
        elif line and not indented:
            literal = False
        if not literal:
            parts = line.split("``")
            parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
            line = "``".join(parts)
        shown.append(line)
    lines[:] = shown


def setup(app):
    """Run before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", equations, priority=400)
