"""Make points of a line plot, with their spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adamw_jax.lab.stats import spread


def point(series: str, x: float, values: Sequence[float]) -> dict[str, Any]:
    """Return a row for ``lines``: the mean over seeds, and one deviation to either side."""
    s = spread(values)
    return {"series": series, "x": x, "y": s.mean, "low": s.mean - s.sd, "high": s.mean + s.sd}
