"""Make an SVG picture part of a page: no references outside, own ids, colours of the page."""

from __future__ import annotations

import html
import re

from adamw_jax.lab.plots.style import VARIABLES


def inline(svg: str, prefix: str, alt: str) -> str:
    """Return the ``<svg>`` element for use inside HTML.

    Args:
      svg: a file written by matplotlib.
      prefix: put before every id, so that several pictures can share a page.
      alt: what the picture shows.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    head, _, rest = body.partition(">")
    box = re.search(r'viewBox="([^"]*)"', head)
    if box is None:
        raise ValueError(f"the picture {prefix} has no viewBox.")
    width = float(box.group(1).split()[2])
    rest = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', rest)
    rest = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", rest)
    rest = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', rest)
    for color, variable in VARIABLES.items():
        rest = re.sub(re.escape(color), f"var({variable})", rest, flags=re.IGNORECASE)
    return (
        f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" viewBox="{box.group(1)}" '
        f'style="max-width:{width * 1.45:.0f}px">{rest.strip()}'
    )
