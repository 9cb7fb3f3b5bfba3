"""Codecs: nearest levels, exact zeros, odd blocks, and what a stored array is called."""

from __future__ import annotations

import functools
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.storage import bfloat16, eight_bit, float8, four_bit, roots
from adamw_jax.storage._levels import dynamic, linear_without_zero

pytestmark = pytest.mark.quick

BLOCK_WISE = {
    "8bit": eight_bit(4),
    "8bit flat": eight_bit(4, order="flat"),
    "8bit root": eight_bit(4, root=True),
    "8bit rows": eight_bit(None),
    "4bit": four_bit(4),
    "float8": float8(4),
    "roots": roots(4),
}
CODECS = {
    **{f"{name} signed": form.signed for name, form in BLOCK_WISE.items()},
    **{f"{name} unsigned": form.unsigned for name, form in BLOCK_WISE.items()},
    "bfloat16 signed": bfloat16().signed,
    "bfloat16 unsigned": bfloat16().unsigned,
    "16bit signed": bfloat16().signed.of(np.float64),
    "16bit unsigned": bfloat16().unsigned.of(np.float64),
}
SCALED = {name: codec for name, codec in CODECS.items() if "bfloat16" not in name}
UNSIGNED = {name: codec for name, codec in CODECS.items() if "unsigned" in name}
NO_ZERO = "4bit unsigned"

codecs = pytest.mark.parametrize("name", CODECS)
scaled = pytest.mark.parametrize("name", SCALED)


def values(name: str, shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    """Numbers over six decades, without a sign for an unsigned codec."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 0, size=shape)
    return jnp.asarray(np.abs(x) if "unsigned" in name else x, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def encode(codec: Any, x: jax.Array) -> Any:
    return codec.encode(x)


@functools.partial(jax.jit, static_argnums=0)
def decoded(codec: Any, x: jax.Array) -> jax.Array:
    return codec.encode(x).decode()


def round_trip(codec: Any, x: jax.Array) -> np.ndarray:
    return np.asarray(decoded(codec, x))


@pytest.mark.parametrize(
    "levels",
    [
        dynamic(8, signed=True),
        dynamic(8, signed=False),
        dynamic(4, signed=True),
        linear_without_zero(4),
    ],
    ids=lambda levels: f"{levels.name}-{levels.top}",
)
def test_the_nearest_level_is_taken(levels: Any) -> None:
    table = np.asarray(levels.level(jnp.arange(levels.top + 1.0)), np.float64)
    assert np.all(np.diff(table) > 0)
    assert table[-1] == 1.0
    rng = np.random.default_rng(0)
    x = np.concatenate([10.0 ** rng.uniform(-8, 0, 20000), rng.uniform(0, 1, 20000), [0.0, 1.0]])
    x = x.astype(np.float32)
    index = np.asarray(levels.nearest(jnp.asarray(x))).astype(int)
    got = np.abs(table[index] - x)
    best = np.min(np.abs(table[None] - x[:, None].astype(np.float64)), axis=1)
    np.testing.assert_array_less(got, best + 2e-7 * x + 1e-12)


@codecs
@pytest.mark.parametrize("shape", [(), (1,), (3,), (9,), (5, 4), (3, 7), (2, 3, 6)])
def test_shape_and_dtype_come_back(name: str, shape: tuple[int, ...]) -> None:
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    stored = jax.eval_shape(CODECS[name].encode, x)
    got = jax.eval_shape(lambda stored: stored.decode(), stored)
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    again = jax.eval_shape(lambda stored, x: stored.encode(x), stored, x)
    assert jax.tree.structure(again) == jax.tree.structure(stored)


@scaled
def test_scales_with_the_block(name: str) -> None:
    """A power of two times the array is stored by the same codes."""
    x = values(name, (4, 8))
    if "root" not in name:
        once, twice = encode(SCALED[name], x), encode(SCALED[name], 64.0 * x)
        np.testing.assert_array_equal(once.codes, twice.codes)
    once, twice = round_trip(SCALED[name], x), round_trip(SCALED[name], 64.0 * x)
    np.testing.assert_allclose(twice, 64.0 * once, rtol=1e-6)


@scaled
def test_a_zero_stays_zero(name: str) -> None:
    np.testing.assert_array_equal(round_trip(SCALED[name], jnp.zeros((2, 6))), 0.0)
    if not name.startswith(NO_ZERO):
        x = jnp.array([[0.0, 1.0, 0.0, 0.5]])
        np.testing.assert_array_equal(round_trip(SCALED[name], x)[0, [0, 2]], 0.0)


@pytest.mark.parametrize(
    ("name", "bad"),
    [(n, x) for n in SCALED for x in (np.nan, np.inf, -np.inf) if n not in UNSIGNED or x != np.inf],
)
def test_a_bad_value_is_stored_as_zero_and_leaves_its_block_alone(name: str, bad: float) -> None:
    x = values(name, (1, 4))
    good = np.asarray(x.at[0, 1].set(0.0))
    got = round_trip(SCALED[name], x.at[0, 1].set(bad))
    np.testing.assert_array_equal(got, round_trip(SCALED[name], jnp.asarray(good)))


@pytest.mark.optimized
@pytest.mark.parametrize("name", UNSIGNED)
def test_an_overflowed_second_moment_is_the_largest_number(name: str) -> None:
    """As 0 it would make the next step endlessly long. Not an infinity, also under a root."""
    for x in (jnp.array([[1.0, jnp.inf, 4.0, 1.0]]), jnp.full((3, 5), jnp.inf), jnp.full(3, 3e38)):
        got = round_trip(UNSIGNED[name], x)
        assert np.all(np.isfinite(got))
        np.testing.assert_array_equal(got > 2.9e38, np.asarray(x) > 2.9e38)
        if not name.startswith("bfloat16"):
            assert np.all(got > 0)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("size", [1e-300, 1e-60, 1e-39, 1.0, 1e60, 1e300])
def test_float64_keeps_its_range(name: str, size: float) -> None:
    """In its scales, which the bfloat16 of float32 arrays has not."""
    with jax.enable_x64(True):
        x = jnp.asarray([[1.0, 0.5, 0.8, 0.6, 0.9]], jnp.float64) * size
        x = x if "unsigned" in name else x * jnp.array([[1.0, -1.0, 1.0, -1.0, 1.0]])
        got = round_trip(SCALED[name], x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, x, rtol=0.25)


def test_an_outlier_flattens_its_own_block_only() -> None:
    x = jnp.full((1, 8), 1.0).at[0, 0].set(1e9)
    got = round_trip(CODECS["8bit signed"], x)
    np.testing.assert_array_equal(got[0, 1:4], 0.0)
    np.testing.assert_array_equal(got[0, 4:], 1.0)


@scaled
def test_too_small_to_be_inverted_is_zero(name: str) -> None:
    assert np.all(round_trip(SCALED[name], jnp.full((1, 4), 1e-39)) == 0.0)


@scaled
@pytest.mark.optimized
@pytest.mark.parametrize("largest", [4e37, 1e38, 3e38])
def test_the_largest_numbers_are_stored(name: str, largest: float) -> None:
    """The inverse of a scale over 2^126 is no normal number, which XLA flushes to 0."""
    x = largest * jnp.array([[1.0, 0.0, 0.5, 1.0]])
    got = round_trip(SCALED[name], x)
    np.testing.assert_allclose(got, round_trip(SCALED[name], x * 2.0**-20) * 2.0**20, rtol=1e-6)
    scale = 2.0**-7 if "roots" in name else 1e-6  # the error of a scale in bfloat16
    np.testing.assert_allclose(got[0, [0, 3]], x[0, [0, 3]], rtol=scale)


@pytest.mark.parametrize("codec", [float8(4).signed, float8(4).unsigned], ids=["signed", "not"])
@pytest.mark.parametrize("largest", [5e-36, 4e-36, 1e-37, 2e-38])
def test_float8_keeps_blocks_whose_scale_would_be_no_normal_number(
    codec: Any, largest: float
) -> None:
    got = round_trip(codec, largest * jnp.array([[1.0, 0.0, 0.75, 1.0]]))
    np.testing.assert_allclose(got, largest * np.array([[1.0, 0.0, 0.75, 1.0]]), rtol=1 / 16)


@pytest.mark.sample(10)
@codecs
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_an_empty_array_comes_back(name: str, shape: tuple[int, ...]) -> None:
    assert round_trip(CODECS[name], jnp.zeros(shape)).shape == shape


def test_a_positive_second_moment_never_becomes_zero() -> None:
    x = jnp.array([1.0, 1e-12, 0.0, 1e-30])
    with jax.enable_x64(True):
        far = np.array([1.0, 1e-37, 0.0, 1e-300])
        got = round_trip(CODECS["16bit unsigned"], jnp.asarray(far))
    np.testing.assert_allclose(got[:2], far[:2], rtol=2**-7)
    assert np.array_equal(got > 0, far > 0)
    assert np.array_equal(round_trip(eight_bit(4).unsigned, x) > 0, [True, True, False, True])
    assert np.array_equal(round_trip(float8(4).unsigned, x) > 0, [True, True, False, True])
    assert np.array_equal(round_trip(roots(4).unsigned, x) > 0, [True, True, False, True])
    off = round_trip(eight_bit(4, floor=False).unsigned, x)
    assert np.array_equal(off > 0, [True, False, False, False])


def test_roots_reach_further_down() -> None:
    x = jnp.array([1.0, 1e-9, 1e-11, 1e-12])
    plain, root = (round_trip(eight_bit(4, root=r).unsigned, x) for r in (False, True))
    np.testing.assert_allclose(root, x, rtol=0.6)
    assert plain[3] > 1e5 * x[3]


@pytest.mark.parametrize("size", [1, 4, 5, 12])
@hypothesis.given(hnp.arrays(np.float32, (2, 12), elements=st.floats(-1e6, 1e6, width=32)))
def test_rows_and_flat_agree_where_rows_are_whole_blocks(size: int, x: Any) -> None:
    rows, flat = (eight_bit(size, order=order).signed for order in ("rows", "flat"))
    if 12 % size == 0:
        np.testing.assert_array_equal(
            round_trip(rows, jnp.asarray(x)), round_trip(flat, jnp.asarray(x))
        )
    error = np.abs(round_trip(rows, jnp.asarray(x)) - x)
    largest = np.max(np.abs(x), axis=1, keepdims=True)
    assert np.all(error <= 0.0072 * largest + 1e-37)  # half the widest gap, and -0.993 for -1


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "name",
    [*("8bit signed", "4bit signed", "4bit unsigned"), *("float8 signed", "roots signed")],
)
def test_stochastic_rounding_has_the_right_mean(name: str) -> None:
    codec = CODECS[name]
    x = jnp.array([1.0, 0.31, 0.077, 0.85])
    noise = jax.random.uniform(jax.random.key(1), (4000, *x.shape))
    seen = np.asarray(jax.vmap(lambda n: codec.encode(x, n).decode())(noise), np.float64)
    error = seen.std(axis=0) / np.sqrt(len(noise))
    assert np.all(np.abs(seen.mean(axis=0) - np.asarray(x)) <= 5 * error + 1e-6)
    assert np.all(error[1:] > 0)


@pytest.mark.sample(3)
@scaled
def test_stochastic_rounding_stays_inside_the_map(name: str) -> None:
    """Zeros, the ends, and what lies under the lowest level have no neighbour beyond."""
    x = jnp.array([1.0, 0.03, 0.0, 0.5, 1e-12, 0.999])
    for chance in (0.0, 0.5, 1.0 - 2.0**-24):
        noise = jnp.full(x.shape, chance)
        stored = jax.jit(SCALED[name].encode)(x, noise)
        got = np.asarray(stored.decode())
        np.testing.assert_array_less(np.abs(got - x), 0.17)  # the widest gap, of 4 bits


def test_an_unsigned_codec_has_no_negative_values() -> None:
    for form in (eight_bit(4), eight_bit(4, root=True), four_bit(4), roots(4)):
        got = round_trip(form.unsigned, jnp.array([[1.0, -4.0, 0.5, 0.0]]))
        np.testing.assert_array_less(got[0, 1], 0.07)
        np.testing.assert_allclose(got[0, 0], 1.0, rtol=1e-5)


def test_bfloat16_rounds_by_chance_with_the_right_mean() -> None:
    x = jnp.array([1.0 + 1 / 512, -3.01, 1e-20, 0.0])
    noise = jax.random.uniform(jax.random.key(2), (4000, 4))
    codec = bfloat16().signed
    seen = np.asarray(jax.vmap(lambda n: codec.encode(x, n).decode())(noise), np.float64)
    error = seen.std(axis=0) / np.sqrt(len(noise))
    np.testing.assert_array_less(np.abs(seen.mean(axis=0) - np.asarray(x)), 5 * error + 1e-30)


@scaled
def test_under_jit_and_vmap(name: str) -> None:
    codec, x = SCALED[name], values(name, (3, 2, 6))
    both = jax.jit(jax.vmap(lambda x: codec.encode(x).decode()))(x)
    alone = np.stack([round_trip(codec, row) for row in x])
    np.testing.assert_allclose(both, alone, rtol=1e-6)


def test_the_layout_is_in_the_names() -> None:
    stored = jax.eval_shape(eight_bit(128).unsigned.encode, jnp.ones(256))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(stored)]
    assert names == [f".dynamic8_unsigned_rows128_v1_{kind}" for kind in ("codes", "scales")]


def test_sizes() -> None:
    x = jnp.ones((64, 1024))
    for form, signed, unsigned in (
        (eight_bit(), 1 + 4 / 256, 1 + 4 / 256),
        (four_bit(), 0.5 + 4 / 128, 0.5 + 4 * (64 + 1024) / x.size),
        (float8(), 1 + 4 / 256, 1 + 4 / 256),
        (roots(), 1 + 2 / 128, 1 + 2 / 128),
        (bfloat16(), 2.0, 2.0),
    ):
        for codec, expected in ((form.signed, signed), (form.unsigned, unsigned)):
            stored = jax.tree.leaves(jax.eval_shape(codec.encode, x))
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in stored)
            assert size / x.size == pytest.approx(expected)


@hypothesis.given(hnp.arrays(np.float32, 12, elements=st.floats(-1e6, 1e6, width=32)))
def test_roots_are_off_by_half_a_code(x: Any) -> None:
    form, x = roots(4), jnp.asarray(x)
    for codec, value, power in ((form.signed, x, 2), (form.unsigned, jnp.abs(x), 4)):
        stored = encode(codec, value)
        scale = np.repeat(np.asarray(stored.scales, np.float64), 4)
        index = codec.top * (np.abs(np.asarray(value, np.float64)) / np.maximum(scale, 1e-38)) ** (
            1 / power
        )
        sign = np.sign(value) if codec.signed else 1
        off = np.asarray(stored.codes) * sign - index
        kept = (np.abs(np.asarray(value)) > 1e-30) & ((index >= 1) | codec.signed)
        assert np.all(np.abs(off[kept]) <= 0.5 + 1e-3)
