"""Reports: one self-contained HTML page and one Markdown file, built from the logs alone."""

from adamw_jax.lab.report.build import Report, Section, build

__all__ = ["Report", "Section", "build"]
