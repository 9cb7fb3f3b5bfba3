"""What devices say to each other in a step, read from XLA's programs: reductions, no parameters."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from adamw_jax._core.sequential import compiled_for
from tests.collectives import (
    KINDS,
    LAYOUTS,
    PAGE,
    ROWS,
    SHAPES,
    Row,
    cell,
    collectives,
    largest,
    recorded,
    recorded_with,
)

pytestmark = [pytest.mark.devices, pytest.mark.optimized]

LIMIT = 256
"""Elements that a reduction may send: more than any row or column, less than any matrix."""

in_this_repository = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not in the wheel")


def check(row: Row, kind: AxisType = AxisType.Auto, memory: str = "device") -> list[str]:
    """None in element-wise steps, sums of rows and scalars in others, one gather in ZeRO-1.

    There whole parameters get parts of the update, each once; without a cut state no part is made.
    """
    found = {layout: collectives(row, layout, kind, memory) for layout in LAYOUTS}
    assert not found["data parallel"]
    for layout in ("FSDP", "FSDP x tensor parallel"):
        if row.scope == "element":
            assert not found[layout]
        else:
            assert set(found[layout]) == {"all-reduce"}
            assert largest(found[layout]["all-reduce"]) <= LIMIT
    zero = found["ZeRO-1"]
    assert set(zero) <= {"all-gather", "all-reduce"}
    assert len(zero.get("all-gather", [])) in (0, len(SHAPES))
    assert largest(zero.get("all-reduce", [])) <= LIMIT
    return [cell(each) for each in found.values()]


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", ROWS)
def test_every_optimizer(name: str) -> None:
    """And every tail, storage and wrapper."""
    agree(check(ROWS[name]), name, "automatic")


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ROWS)
def test_explicit_axes(name: str) -> None:
    """The same in a mesh whose axes are in the types."""
    agree(check(ROWS[name], AxisType.Explicit), name, "explicit")


def agree(cells: list[str], name: str, kind: str) -> None:
    """The table in docs/ has these cells; another XLA may combine other collectives."""
    if PAGE.exists() and recorded_with() == jax.__version__:
        assert cells == recorded()[name, kind]


@in_this_repository
def test_the_page_has_every_row() -> None:
    assert set(recorded()) == {(name, kind) for name in ROWS for kind in KINDS}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adamw", "lamb", "adafactor-factored", "koala_m", "lookahead",
                                  "storage=8bit", "skip_bad_steps"])  # fmt: skip
def test_a_state_in_host_memory(name: str, kind: str) -> None:
    """The way to the device and back sends nothing more."""
    assert check(ROWS[name], KINDS[kind], "pinned_host") == check(ROWS[name], KINDS[kind])


def test_norms_as_a_gpu_takes_them() -> None:
    """There both sums of a norm are taken in one pass; a reduction of two arrays would gather."""
    with compiled_for("gpu"):
        check(ROWS["lamb"])


@pytest.mark.parametrize("layout", ["FSDP", "FSDP x tensor parallel"])
def test_a_guard_sends_scalars(layout: str) -> None:
    """One answer of each leaf, and as many for the cause, which is looked for in a bad step."""
    found = collectives(ROWS["skip_bad_steps"], layout)
    assert set(found) == {"all-reduce"}
    assert largest(found["all-reduce"]) == 1
