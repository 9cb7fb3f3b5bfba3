"""Build reports from logs: one self-contained HTML page, and Markdown."""

from adamw_jax.lab.report.build import Report, Section, build

__all__ = ["Report", "Section", "build"]
