"""The recorded results that are no trajectory of an optimizer, by system, and what checks them."""

from __future__ import annotations

from collections.abc import Callable

from tests import golden_curvature, golden_diagnostics, golden_initialization, golden_storage
from tests.golden_batch_norm import SYSTEM as BATCH_NORM, replay_batch_norm
from tests.golden_cases import Case, assert_arrays
from tests.golden_schedules import check_schedule


def check_batch_norm(case: Case) -> None:
    assert_arrays(case, replay_batch_norm(case))


CHECKS: dict[str, Callable[[Case], None]] = {
    "schedule": check_schedule,
    BATCH_NORM: check_batch_norm,
    **golden_curvature.CHECKS,
    **golden_diagnostics.CHECKS,
    **golden_initialization.CHECKS,
    **golden_storage.CHECKS,
}
