"""The golden cases of GradInit: recorded results, compared through the public functions."""

from __future__ import annotations

from collections.abc import Callable

from tests.golden_cases import Case

CHECKS: dict[str, Callable[[Case], None]] = {}
