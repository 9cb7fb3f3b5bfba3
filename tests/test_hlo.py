"""Composition is free: XLA makes of a recipe what it makes of its optax twin.

Counted on CPU, and ahead of time for a TPU v5e and an NVIDIA H200 where their compilers are
installed: kernels that write arrays, and bytes accessed. What may differ are scalars: clocks and
live hyperparameters.
"""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest

import adamw_jax as aj
from adamw_jax.storage import choose, eight_bit
from benchmarks import hlo
from tests.catalogue import FACTORED
from tests.hand_written import FORMULAS, state_of, step_of, usual_norms
from tools import scale

pytestmark = pytest.mark.optimized

NAMES = ("adamw", "amsgrad", "adamax", "adabelief", "radam")
SCALARS = 4096  # bytes a step
TILE = 128  # a TPU keeps a scalar in a tile of 128 words, and its cost model counts all of it


def _params(rows: int = 256) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    shapes = {"kernel": (rows, 128), "bias": (128,)}
    layer = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    return {f"layer{i}": layer for i in range(4)}


def _compiled(tx: optax.GradientTransformation, device: object = None, rows: int = 256):
    def step(params, state, gradients):
        update = optax.with_extra_args_support(tx).update
        updates, state = update(gradients, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    params = _params(rows)
    state = jax.eval_shape(tx.init, params)
    return hlo.compile_step(step, params, state, params, device=device)


def _twins(name: str) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    row = aj.info(name)
    return row.factory(1e-3, **row.twin_options), getattr(optax, row.twin)(1e-3)


def _compare(name: str, device: object = None, rows: int = 256) -> float:
    """Checks the kernels of a step and its twin, and gives the bytes that ours moves more."""
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        ours, theirs = (_compiled(tx, device, rows) for tx in _twins(name))
    mine, twin = (hlo.census(compiled.as_text()) for compiled in (ours, theirs))
    assert mine.array_fusions == twin.array_fusions
    assert mine.array_kernels <= twin.array_kernels
    assert mine.copies <= twin.copies
    return hlo.bytes_accessed(ours) - hlo.bytes_accessed(theirs)


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", NAMES)
def test_cpu_step_equals_its_twin(name: str) -> None:
    # AdaBelief's floor enters in another order, which saves optax's copy of the accumulator.
    assert _compare(name) <= SCALARS


for_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (there are wheels for Linux on x86-64 only)",
)


@for_tpu
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if i else ()) for i, n in enumerate(NAMES)]
)
def test_tpu_step_equals_its_twin(name: str) -> None:
    # Smaller and larger arrays the compiler may keep in fast memory, for one of the two only.
    more, more_when_larger = (_compare(name, hlo.tpu_device(), rows) for rows in (512, 1024))
    assert more_when_larger <= more  # scalars only: it does not grow with the arrays
    # Scalars, and the arrays of hyperparameters: each reader is counted with a whole tile.
    assert more <= 400 * 4 * TILE


for_gpu = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="the GPU compiler is not installed: pip install 'adamw-jax[gpu]', on Linux on x86-64",
)
SMALL = 2  # kernels on clocks and hyperparameters that ours has more on a GPU


@for_gpu
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if i else ()) for i, n in enumerate(NAMES)]
)
def test_gpu_step_equals_its_twin(name: str) -> None:
    """Its bytes are those of parameters, gradients and moments, and nothing is copied."""
    with jax.numpy_dtype_promotion("standard"):
        texts = [_compiled(tx, hlo.gpu_device()).as_text() for tx in _twins(name)]
    mine, twin = map(hlo.census, texts)
    assert mine.array_kernels <= twin.array_kernels
    assert mine.copies == 0
    assert mine.small_fusions <= twin.small_fusions + SMALL
    values = 3 + 2 * aj.info(name).state_values  # p, g -> p; each moment is read and written
    size = sum(leaf.size for leaf in jax.tree.leaves(_params()))
    assert hlo.bytes_moved(texts[0]) <= 4 * values * size + SCALARS


@for_gpu
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in aj.list_optimizers() if aj.info(n).twin])
def test_gpu_starts_few_kernels_on_scalars(name: str) -> None:
    """Each is a launch, which takes as long as a kernel on a small array."""
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (
            hlo.census(_compiled(tx, hlo.gpu_device()).as_text()) for tx in _twins(name)
        )
    assert ours.small_fusions <= theirs.small_fusions + SMALL


@for_gpu
@pytest.mark.parametrize(("name", "most"), [("adafactor", 0.93), ("lamb", 1.01), ("lars", 0.8)])
def test_gpu_norms_need_no_branch(name: str, most: float) -> None:
    """A branch would write its operands, such as LAMB's direction. ``most`` is the share of optax's
    bytes; LAMB's direction is written once, as in optax's step."""
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (
            hlo.bytes_moved(_compiled(tx, hlo.gpu_device()).as_text()) for tx in _twins(name)
        )
    assert ours <= most * theirs


@for_gpu
@pytest.mark.parametrize("options", [{}, {"b1": 0.9}])
def test_gpu_keeps_no_factored_direction(options: dict[str, float]) -> None:
    """The direction is computed for its norm and once more for the update; optax stores leaves."""
    ours = _on_large_leaves(aj.adafactor(1e-3, **options))
    with jax.numpy_dtype_promotion("standard"):
        theirs = _on_large_leaves(optax.adafactor(1e-3, momentum=options.get("b1")))
    assert ours["scratch"] <= 0.2 < theirs["scratch"]
    assert ours["moved"] <= 0.86 * theirs["moved"]


def _on_large_leaves(tx: optax.GradientTransformation) -> dict[str, float]:
    """Return bytes moved and of scratch, for each parameter, of a step compiled for a GPU."""
    shapes = {"a": (1024, 4096), "b": (4096, 1024), "c": (1024, 1024)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = hlo.compile_step(step, params, state, params, device=hlo.gpu_device())
    size = sum(leaf.size for leaf in params.values())
    moved, scratch = hlo.bytes_moved(compiled.as_text()), hlo.scratch_bytes(compiled)
    return {"moved": moved / size, "scratch": scratch / size}


@for_gpu
@pytest.mark.slow
@pytest.mark.parametrize("word", ["roots", "float8"])
def test_gpu_reads_the_gradients_twice_for_small_state(word: str) -> None:
    """All scales are made in one pass over gradients and codes, all codes in another."""
    found = _on_large_leaves(aj.adamw(1e-3, storage=word))
    # Gradients twice, parameters in and out; two codes read twice and written.
    assert found["moved"] <= 2 * 4 + 2 * 4 + 3 * 2 + 0.75
    assert found["scratch"] <= 0.2


@for_gpu
@pytest.mark.parametrize("storage", [None, "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_gpu_step_moves_what_docs_scale_says(name: str, storage: str | None) -> None:
    """Parameters and gradients are bfloat16, as on that page."""
    params = scale.shapes(256, 2)
    tx = scale.OPTIMIZERS[name](1e-3, storage=storage)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    compiled = hlo.compile_step(step, params, state, params, device=hlo.gpu_device())
    expected = scale.moved_bytes(tx, params) * scale.size(params)
    assert hlo.bytes_moved(compiled.as_text()) == pytest.approx(expected, rel=0.01)


@for_tpu
def test_a_tpu_lays_out_codes_of_whole_rows_without_copies() -> None:
    """Blocks of 256 are an axis of their own, for which it copies every array, several times.

    All at once: in order, XLA copies donated codes of all leaves but the first, in their layout.
    """
    size = 1024 * 512
    params = {f"layer{i}": jax.ShapeDtypeStruct((1024, 512), jnp.float32) for i in range(2)}
    found = {}
    for block_size in (None, 256):
        tx = aj.adamw(1e-3, storage=choose(eight_bit(block_size), sequential=False))

        def step(params, state, gradients, update=tx.update):
            updates, state = update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(tx.init, params)
        compiled = hlo.compile_step(step, params, state, params, device=hlo.tpu_device())
        found[block_size] = hlo.census(compiled.as_text(), array_sized=size)
    assert found[None].copies == found[None].others == 0
    assert found[256].copies >= 2 * len(params)


@pytest.mark.parametrize("name", NAMES)
def test_state_bytes_per_parameter_equal_the_twin(name: str) -> None:
    params = jax.ShapeDtypeStruct((1000, 100), jnp.float32)

    def array_bytes(tx: optax.GradientTransformation) -> int:
        state = jax.eval_shape(tx.init, params)
        leaves = jax.tree.leaves(getattr(state, "stages", state))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim)

    ours, theirs = _twins(name)
    assert array_bytes(ours) == array_bytes(theirs) == 4 * aj.info(name).state_values * params.size


def test_no_moment_stores_nothing() -> None:
    params = jnp.zeros((10, 10))
    tx = aj.compose(
        aj.estimate_moments(aj.no_moment(), aj.ema_of_squares(0.999)),
        aj.correct_bias(),
        aj.precondition(),
    )
    assert [leaf.shape for leaf in jax.tree.leaves(tx.init(params).stages) if leaf.ndim] == [
        (10, 10)
    ]
    assert "4.00" in aj.summary(tx, params).splitlines()[2]


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", NAMES)
def test_float32_step_needs_no_array_scratch(name: str) -> None:
    """Temporary memory beyond the twin's is scalars only."""
    with jax.numpy_dtype_promotion("standard"):
        ours, theirs = (hlo.scratch_bytes(_compiled(tx)) for tx in _twins(name))
    assert ours <= theirs + SCALARS


#: Directions that are whole before they are used, one leaf after the other: leaves of scratch.
WHOLE = {
    **{"acprop": 1, "adafactor": 1, "lamb": 1},
    **{"schedule_free_adamw": 1, "schedule_free_radam": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", aj.list_optimizers())
def test_a_step_moves_no_more_than_the_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Array traffic and scratch are at most those of the formula written by hand, without copies.

    For Adafactor the formula is optax's. Scratch is at most the largest leaf, or two of them.
    """
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    params, row = _params(), aj.info(name)
    ours = _compiled(row.factory(1e-3, **row.example))
    with usual_norms():
        moved = hlo.bytes_accessed(_compiled(row.factory(1e-3, **row.example)))
    if name in FORMULAS:
        formula = hlo.compile_step(step_of(name), params, state_of(name, params), params)
    else:
        with jax.numpy_dtype_promotion("standard"):
            formula = _compiled(getattr(optax, name)(1e-3))
    assert moved <= hlo.bytes_accessed(formula) + 2 * SCALARS
    assert hlo.scratch_bytes(ours) <= hlo.scratch_bytes(formula) + SCALARS
    largest = max(leaf.size for leaf in jax.tree.leaves(params))
    assert hlo.scratch_bytes(ours) <= 4 * largest * WHOLE.get(name, 0) + 2 * SCALARS
    assert hlo.census(ours.as_text()).copies == 0


@pytest.mark.parametrize("name", aj.list_optimizers())
def test_state_values_are_the_registry_s(name: str) -> None:
    """No array is stored twice; of a factored matrix there are its rows and columns."""
    params, row = _params(), aj.info(name)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    factors = sum(sum(leaf.shape) for leaf in jax.tree.leaves(params))
    state = jax.eval_shape(row.factory(1e-3, **row.example).init, params)
    held = sum(leaf.size for leaf in jax.tree.leaves(state.stages) if leaf.ndim)
    assert held == (factors if name in FACTORED else row.state_values * size)


@pytest.mark.parametrize("device", ["CPU", pytest.param("TPU", marks=[pytest.mark.slow, for_tpu])])
def test_a_guard_makes_no_copy_and_writes_no_array_twice(device: str) -> None:
    """The first pass reads; the second has the kernels of the plain step."""
    rows = 512 if device == "CPU" else 1 << 14  # smaller arrays a TPU keeps in fast memory
    params = {f"layer{i}": jax.ShapeDtypeStruct((rows, 1024), jnp.float32) for i in range(2)}
    size, found = 2 * rows * 1024, []
    for tx in (aj.adamw(0.1), aj.skip_bad_steps(aj.adamw(0.1))):

        def step(params, state, gradient, tx=tx):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        on = hlo.tpu_device() if device == "TPU" else None
        state = jax.eval_shape(tx.init, params)
        found.append(hlo.compile_step(step, params, state, params, device=on))
    moved = [hlo.bytes_accessed(x) / size for x in found]
    scratch = [hlo.scratch_bytes(x) / size for x in found]
    reads = 4 * 4  # gradient, two moments, parameter
    flags = 2 * 2  # on a CPU one byte for each element, and as many to find the cause
    assert moved[1] - moved[0] < reads + 4 + flags + 0.2
    assert scratch[1] - scratch[0] < 1.1
    assert hlo.census(found[1].as_text()).copies == 0
