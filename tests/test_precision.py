"""The precision table: dtypes, strict promotion, NaN hunting, drift, faults, saturation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax
from adamw_jax import adam, adamw, compose, eval_params, lookahead
from tests.catalogue import (
    EVERY,
    PLAIN,
    Entry,
    accumulators,
    assert_close,
    assert_equal,
    assert_finite,
    at,
    avals,
    one_operation_at_a_time,
    one_step,
    rows,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.optimized

table = pytest.mark.parametrize("entry", rows(PLAIN))
DTYPES = ["bfloat16", "float16", "float32", "complex64"]


def test_the_suite_is_strict() -> None:
    """These tables mean something only under strict promotion."""
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    assert jax.config.jax_numpy_rank_promotion == "raise"


def in_every_dtype(make: Any) -> dict[str, Any]:
    """A tree with one leaf per dtype, from ``make(dtype)``."""
    return {dtype: make(dtype) for dtype in DTYPES}


@table
def test_dtypes(entry: Entry) -> None:
    """Updates have the gradient's dtype, the state its own, float32 at least, and both stay."""
    params = in_every_dtype(lambda dtype: sample_params(dtype)["dense"]["bias"])
    gradient = in_every_dtype(lambda dtype: sample_gradients(1, dtype)["dense"]["bias"][0])
    tx = entry.make()
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(gradient, state, params)
    assert avals(updates) == avals(gradient)
    assert avals(after) == avals(state)
    for leaf in accumulators(state):
        assert leaf.dtype in (jnp.float32, jnp.complex64)
    assert_finite((updates, after))


@pytest.mark.parametrize("entry", rows(EVERY))
def test_mixed_dtypes(entry: Entry) -> None:
    """The update has the wider of the dtypes of gradient and parameter."""
    params = {"low": jnp.ones(3, jnp.bfloat16), "high": jnp.ones(3)}
    gradient = {"low": jnp.array([1.0, -2.0, 0.0]), "high": jnp.ones(3, jnp.bfloat16)}
    tx = entry.make()
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, gradient, state, params)
    assert [x.dtype for x in jax.tree.leaves(updates)] == [jnp.float32] * 2
    assert avals(after) == avals(state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((updates, state)))


@pytest.mark.sample(5)
@pytest.mark.parametrize("entry", adamw_jax.list_optimizers())
def test_half_precision_follows_float32(entry: str) -> None:
    """Low-precision parameters lose accuracy in the update only, not in the accumulators."""
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), sample_gradients(8, jnp.bfloat16))
    params = sample_params()

    def updates(dtype: Any) -> Any:
        tx = Entry(entry, entry).make(weight_decay=None)
        small = jax.tree.map(lambda p: p.astype(dtype), params)
        given = jax.tree.map(lambda g: g.astype(dtype), exact)

        state, seen = tx.init(small), []
        for i in range(8):  # op by op: every operation rounds as it is written
            update, state = tx.update(at(given, i), state, small)
            seen.append(jax.tree.map(lambda u: u.astype(jnp.float32), update))
        return seen

    assert_close(updates(jnp.bfloat16), updates(jnp.float32), rtol=5e-3, atol=1e-6)


@pytest.mark.sample(3)
@table
def test_complex_is_real_when_real_and_turns_with_the_gradient(entry: Entry) -> None:
    """|g|^2 in the second moment: real numbers go as before, and a phase passes through."""
    params, gradients = sample_params(), sample_gradients()
    expected, _ = run(entry.make(), params, gradients)

    @jax.vmap
    def turned(factor: jax.Array) -> Any:
        tree = jax.tree.map(lambda x: factor * x.astype(jnp.complex64), (params, gradients))
        got, _ = run(entry.make(), *tree)
        return jax.tree.map(lambda x: x / factor, got)

    both = turned(np.exp(1j * np.array([0.0, 1.1])).astype(np.complex64))
    for i in range(2):
        got = jax.tree.map(lambda x: np.asarray(x[i]), both)  # noqa: B023
        assert_close(jax.tree.map(np.real, got), jax.tree.map(np.asarray, expected), 1e-4, 1e-6)
        assert max(np.abs(x.imag).max() for x in jax.tree.leaves(got)) < 1e-6


@table
def test_debug_nans(entry: Entry) -> None:
    """No operation of eight steps makes a NaN, not even in a branch that is not taken."""
    params = sample_params()["dense"]["bias"]
    for options in ({}, entry.exact()):
        for gradients in (sample_gradients(8)["dense"]["bias"], jnp.zeros((8, 3))):
            tx = entry.make(**options)
            with jax.debug_nans(True):  # eager, so that every operation is looked at
                state, theta = tx.init(params), params
                for i in range(8):
                    updates, state = tx.update(gradients[i], state, theta)
                    theta = optax.apply_updates(theta, updates)
            assert_finite(theta)


@table
def test_zero_gradients_stay_still(entry: Entry) -> None:
    """Elements that never had a gradient do not move, with any eps, in any dtype."""
    params = in_every_dtype(lambda dtype: sample_params(dtype)["dense"]["bias"])
    gradients = jax.tree.map(lambda p: jnp.zeros((3, *p.shape), p.dtype), params)
    eps = np.array([0.0, 1e-8], np.float32)
    names = entry.exact()

    def moved(eps: Any) -> Any:
        options = {name: eps for name in names}
        return run(entry.make(weight_decay=None, **options), params, gradients)[0]

    got = jax.vmap(moved)(eps)
    assert_equal(got, jax.tree.map(lambda p: jnp.stack([p, p]), params))


@table
def test_float32_drifts_little_from_float64(entry: Entry) -> None:
    """200 steps: the change of the parameters agrees to 1e-4."""
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(200, 4)) * np.array([1.0, 1e-3, 30.0, 1.0])
    start = np.array([1.0, -2.0, 0.5, 3.0])

    def change(dtype: Any) -> np.ndarray:
        params = jnp.asarray(start, dtype)
        # the same numbers in both precisions, so that only the arithmetic differs
        given = jnp.asarray(gradients.astype(np.float32), dtype)
        got, state = run(entry.make(0.01), params, given)
        assert all(leaf.dtype == dtype for leaf in accumulators(state))
        return np.asarray(got, np.float64) - start

    low = change(jnp.float32)
    with jax.enable_x64(True):
        high = change(jnp.float64)
    np.testing.assert_allclose(low, high, rtol=1e-4, atol=2e-6)


@table
def test_x64(entry: Entry) -> None:
    """Under x64 accumulators and scalars are float64, and float32 leaves keep float32 updates."""
    with jax.enable_x64(True):
        params = sample_params(jnp.float32)
        gradients = sample_gradients(dtype=jnp.float32)
        tx = entry.make()
        state = tx.init(params)
        updates, after = jax.eval_shape(tx.update, at(gradients, 0), state, params)
        assert avals(updates) == avals(params)
        assert avals(after) == avals(state)
        kinds = {leaf.dtype for leaf in jax.tree.leaves(state)}
        assert jnp.dtype(jnp.float64) in kinds
        assert jnp.dtype(jnp.float32) not in kinds


@pytest.mark.parametrize("entry", rows([e for e in PLAIN if e.scope == "element"]))
def test_a_bad_gradient_stays_in_its_element(entry: Entry) -> None:
    """NaN or infinity in one element leaves every other as it would have been, bit by bit."""
    params = sample_params()["dense"]["bias"]
    gradients = np.stack([sample_gradients(8)["dense"]["bias"]] * 3)
    gradients[1, 1, 0], gradients[2, 1, 0] = np.nan, np.inf
    got, state = jax.vmap(lambda g: run(entry.make(), params, g))(jnp.asarray(gradients))
    for lane in (1, 2):
        assert_equal(got[lane, 1:], got[0, 1:])
    assert np.isnan(got[1, 0])
    assert_finite([leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 1])


CLIPS = {
    "clip_gradient": adamw_jax.clip_gradient(1.0),
    "percentile_clipping": adamw_jax.percentile_clipping(50, 4),
    "percentile_clipping, whole tree": adamw_jax.percentile_clipping(50, 4, whole_tree=True),
}


@pytest.mark.parametrize("mapped", [jax.jit, lambda f: f], ids=["jit", "eager"])
@pytest.mark.parametrize("size", [1e20, 1e38])
@pytest.mark.parametrize("name", CLIPS)
def test_clips_of_norms_whose_squares_overflow(name: str, size: float, mapped: Any) -> None:
    """They give what they give of gradients of 1e5; an infinite gradient stays seen."""
    tx, usual = CLIPS[name], sample_gradients(1)
    _, state = tx.update(at(usual, 0), tx.init(at(usual, 0)))
    step = mapped(lambda g: tx.update(g, state)[0])

    def clipped(scale: float) -> Any:
        return step(jax.tree.map(lambda g: g * jnp.float32(scale), at(usual, 0)))

    assert_close(clipped(size / 10), clipped(1e5), rtol=1e-5)
    assert not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(clipped(np.inf)))


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("form", ["tail", "wrapper", "reset", "pullback"])
def test_slow_weights_outlive_a_bad_gradient_between_syncs(form: str, bad: float) -> None:
    """The slow weights see nothing of the fast ones until the sync: no 0 * NaN."""
    if form == "tail":
        tx = compose(adamw(0.1), lookahead(sync_period=4))
    else:
        kept = "keep" if form == "wrapper" else form
        tx = lookahead(adamw(0.1), 4, inner_state=kept)
    params = sample_params()["dense"]["bias"]
    gradients = np.array(sample_gradients(3)["dense"]["bias"])
    gradients[1] = bad
    got, state = run(tx, params, jnp.asarray(gradients))
    assert_equal(eval_params(state, got), params)


@table
def test_counters_saturate(entry: Entry) -> None:
    """At the largest int32 the count stays, and the step is still finite."""
    tx, params = entry.make(), sample_params()
    limit = np.iinfo(np.int32).max

    _, state = run(tx, params, sample_gradients(8))
    state = state._replace(count=jnp.full_like(state.count, limit))
    step = one_operation_at_a_time(one_step(tx), params, state, at(sample_gradients(8), 0))
    for i in range(2):
        params, state = step(params, state, at(sample_gradients(8), i))
    assert_finite((params, state))
    assert int(state.count) == limit


STORED = [entry for entry in PLAIN if "state_dtype" not in entry.info.refuses]
BELOW = {"float16": (jnp.float16, 1e-3, False), "float32 of float64": (jnp.float32, 1e-25, True)}


@pytest.mark.parametrize("name", BELOW)
@pytest.mark.parametrize("entry", rows(STORED))
def test_second_moments_below_the_range_of_their_dtype(entry: Entry, name: str) -> None:
    """They do not become 0, which would make a step endlessly long."""
    dtype, size, x64 = BELOW[name]
    eps = {"eps": 0.0} if "eps" in entry.keywords and entry.name != "adafactor" else {}
    longest = []
    with jax.enable_x64(x64):
        params = {"w": jnp.full((4, 8), size)}
        for each in (None, dtype):
            tx = entry.make(1.0, state_dtype=each, **eps)
            state, longest = tx.init(params), [*longest, 0.0]
            for _ in range(4):
                updates, state = tx.update(params, state, params)
                longest[-1] = max(longest[-1], float(jnp.max(jnp.abs(updates["w"]))))
    assert longest[1] <= 2 * longest[0] + 1e-12


@pytest.mark.parametrize("option", ["mu_dtype", "state_dtype"])
def test_storage_dtype(option: str) -> None:
    """Narrow storage is honoured, keeps its dtype, and the arithmetic stays in float32."""
    tx = adam(0.05, **{option: jnp.bfloat16})
    params, state = run(tx, sample_params(), sample_gradients(8))
    moments = state.stages["estimate_moments"]
    assert {x.dtype for x in jax.tree.leaves(moments.first.moment)} == {jnp.dtype(jnp.bfloat16)}
    second = jnp.bfloat16 if option == "state_dtype" else jnp.float32
    assert {x.dtype for x in jax.tree.leaves(moments.second.moment)} == {jnp.dtype(second)}
    assert state.stages["estimate_moments"].first.clock.weight_sum.dtype == jnp.float32
    exact, _ = run(adam(0.05), sample_params(), sample_gradients(8))
    assert_close(params, exact, rtol=0.05, atol=0.02)


def test_numpy_arrays() -> None:
    """NumPy parameters and gradients are taken as jnp.asarray takes them, float64 included."""
    params = {"a": np.ones(3, np.float32), "b": np.ones(2)}
    tx = adamw(0.05)
    updates, state = tx.update(params, tx.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float32)}
    assert avals(state) == avals(tx.init(jax.tree.map(jnp.asarray, params)))


def test_empty_leaves_and_trees() -> None:
    """Arrays without elements, and trees without arrays."""
    for params in ({"none": jnp.zeros((0, 3)), "some": jnp.ones(2)}, {}):
        tx = compose(adamw(0.05), lookahead(sync_period=1))
        updates, state = tx.update(params, tx.init(params), params)
        assert avals(updates) == avals(params)
        assert avals(state) == avals(tx.init(params))
