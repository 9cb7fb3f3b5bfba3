"""What devices say to each other in a step, read from XLA's programs: reductions, no parameters."""

from __future__ import annotations

import collections
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import adamw_jax as aj
from adamw_jax._core.sequential import compiled_for
from tests.catalogue import EXTRA, PLAIN, Entry, label

pytestmark = [pytest.mark.devices, pytest.mark.optimized]

SHAPES = {"bias": (64,), "kernel": (64, 128), "stack": (8, 64, 32)}
ROW = 256
"""Elements that a reduction may send: more than any row or column, less than any matrix."""


class Layout(NamedTuple):
    """A mesh, and the axes along which parameters and state are sharded."""

    mesh: tuple[int, int]
    params: dict[str, P]
    state: dict[str, P]


_WHOLE, _ROWS = ({name: spec for name in SHAPES} for spec in (P(), P("data")))
_BOTH = {"bias": P("model"), "kernel": P("data", "model"), "stack": P(None, "data", "model")}
LAYOUTS = {
    "data parallel": Layout((8, 1), _WHOLE, _WHOLE),
    "FSDP": Layout((8, 1), _ROWS, _ROWS),
    "FSDP x tensor parallel": Layout((2, 4), _BOTH, _BOTH),
    "ZeRO-1": Layout((8, 1), _WHOLE, _ROWS),
}
_OPERATION = re.compile(
    r" = (\([^)]*\)|\S+) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def collectives(tx: Any, layout: str, kind: AxisType = AxisType.Auto) -> dict[str, list[int]]:
    """The sizes of the results of all collectives of a compiled step, by operation."""
    shape, params_specs, state_specs = LAYOUTS[layout]
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
    places, parts = (
        {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        for specs in (params_specs, state_specs)
    )
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=places[name])
        for name, shape in SHAPES.items()
    }
    wanted = aj.state_shardings(tx, params, parts)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        jax.eval_shape(tx.init, params),
        wanted,
    )

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params, **EXTRA)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(places, wanted))
        text = jitted.lower(params, state, params).compile().as_text()
    found = collections.defaultdict(list)
    for types, operation in _OPERATION.findall(text):
        arrays = re.findall(r"\w+\[([\d,]*)\]", types)
        found[operation].append(
            max(math.prod(map(int, filter(None, a.split(",")))) for a in arrays)
        )
    return dict(found)


def check(tx: Any, scope: str, kind: AxisType = AxisType.Auto) -> None:
    """None in element-wise steps, sums of rows and scalars in others, one gather in ZeRO-1."""
    assert not collectives(tx, "data parallel", kind)
    for layout in ("FSDP", "FSDP x tensor parallel"):
        found = collectives(tx, layout, kind)
        if scope == "element":
            assert not found
        else:
            assert set(found) == {"all-reduce"}
            assert max(found["all-reduce"]) <= ROW
    found = collectives(tx, "ZeRO-1", kind)  # whole parameters get parts of the update, each once
    assert set(found) <= {"all-gather", "all-reduce"}
    assert len(found.get("all-gather", [])) <= len(SHAPES)
    assert max(found.get("all-reduce", [0])) <= ROW


@pytest.mark.sample(3)
@pytest.mark.parametrize("entry", PLAIN, ids=label)
def test_every_optimizer(entry: Entry) -> None:
    check(entry.make(), entry.scope)


def test_norms_as_a_gpu_takes_them() -> None:
    """There both sums of a norm are taken in one pass; a reduction of two arrays would gather."""
    with compiled_for("gpu"):
        check(Entry("lamb", "lamb").make(), "leaf")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "lamb", "koala_m"])
def test_explicit_axes(name: str) -> None:
    """The same in a mesh whose axes are in the types; ZeRO-1 there needs gradients in parts."""
    entry = Entry(name, name)
    for layout in ("data parallel", "FSDP", "FSDP x tensor parallel"):
        kinds = (AxisType.Auto, AxisType.Explicit)
        auto, explicit = (collectives(entry.make(), layout, kind) for kind in kinds)
        assert set(explicit) == set(auto)
        assert max(explicit.get("all-reduce", [0])) <= ROW


@pytest.mark.parametrize("layout", ["FSDP", "FSDP x tensor parallel"])
def test_a_guard_sends_scalars(layout: str) -> None:
    """One answer of each leaf, and as many for the cause, which is looked for in a bad step."""
    found = collectives(aj.skip_bad_steps(aj.adamw(0.1)), layout)
    assert set(found) == {"all-reduce"}
    assert max(found["all-reduce"]) == 1
