"""GradInit's step against closed forms, its bounds, precision, and that it is a pure function."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adamw_jax.initialization import GradInit, first_step, gradient_norm

pytestmark = pytest.mark.quick

ETA = 0.25


def quadratic(params: Any, batch: Any) -> jax.Array:
    """Half the squared distance of every leaf from ``batch``, summed: the gradient is params."""
    squares = [jnp.sum(jnp.abs(p - batch.astype(p.dtype)) ** 2) for p in jax.tree.leaves(params)]
    return 0.5 * sum(squares, jnp.zeros([], squares[0].dtype))


def search_of(loss_fn: Any = quadratic, **changed: Any) -> GradInit:
    return GradInit(loss_fn, **{"eta": ETA, "gamma": math.inf, "scale_lr": 0.1} | changed)


def one_step(search: GradInit, params: Any, state: Any = None, pair: Any = None) -> Any:
    """A jitted step, by default the first one, at zero."""
    state = search.init(params) if state is None else state
    return jax.jit(search.step)(params, state, PAIR if pair is None else pair)


ZERO = jnp.zeros([], jnp.float32)
ONE = jnp.ones([], jnp.float32)
PAIR = (ZERO, ZERO)
PARAMS = {"bias": jnp.array([0.5]), "kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]])}

weights = hnp.arrays(
    np.float32, (3,), elements=st.floats(0.125, 4.0, width=32).map(lambda x: float(np.float32(x)))
)

STEPS = {
    (algorithm, normalize, full, gamma): jax.jit(
        search_of(
            algorithm=algorithm, normalize=normalize, differentiate_inner=full, gamma=gamma
        ).step
    )
    for algorithm, normalize, full, gamma in (
        ("sgd", True, False, math.inf),
        ("sgd", False, False, math.inf),
        ("sgd", False, True, math.inf),
        ("sgd", True, False, 0.0),
        ("adam", True, False, math.inf),
        ("adam", True, True, math.inf),
        ("adam", True, False, 0.0),
    )
}


@pytest.mark.parametrize("key", STEPS, ids=str)
@hypothesis.given(w=weights, scale=st.sampled_from([0.5, 1.0, 1.75]))
@hypothesis.settings(max_examples=10)
def test_slopes_of_a_quadratic(key: Any, w: np.ndarray, scale: float) -> None:
    """One block on |theta|^2 / 2, where everything has a closed form."""
    algorithm, normalize, full, gamma = key
    search, params = search_of(), {"w": jnp.asarray(w)}
    state = search.init(params)._replace(scales=jnp.array([scale], jnp.float32))
    _, record = STEPS[key](params, state, PAIR)
    w = w.astype(np.float64)
    one, square = np.abs(w).sum(), (w**2).sum()
    norm = scale * (one if algorithm == "adam" else math.sqrt(square))
    np.testing.assert_allclose(record.gradient_norm, norm, rtol=1e-5)
    np.testing.assert_allclose(record.loss, scale**2 * square / 2, rtol=1e-5)
    assert record.constrained == (gamma == 0)
    if gamma == 0:
        lowered, slope = norm, norm / scale
    else:
        gradient = scale * w / (norm if normalize else 1.0)
        step = np.sign(w) if algorithm == "adam" else gradient
        theta = scale * w - ETA * step
        # How much of a change of the scale gets through; a sign has no derivative.
        inner = 1 - ETA if full and algorithm == "sgd" else 1.0
        lowered, slope = (theta**2).sum() / 2, inner * (theta @ w) / ETA
    np.testing.assert_allclose(record.lowered, lowered, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(record.slope, [slope], rtol=1e-4, atol=1e-4)


def test_learning_rate_zero_leaves_every_scale_at_one() -> None:
    search, kinds = search_of(gamma=3.0, scale_lr=0.0), []
    step = jax.jit(search.step)
    for params in (PARAMS, jax.tree.map(lambda p: 0.5 * p, PARAMS)):
        state, record = step(params, search.init(params), PAIR)
        kinds.append(bool(record.constrained))
        np.testing.assert_array_equal(state.scales, np.ones(2))
        jax.tree.map(np.testing.assert_array_equal, search.rescaled(params, state), params)
    assert kinds == [True, False]


def test_bounds() -> None:
    """Weights stop at min_scale, biases at theirs; growth at max_scale; 0 is for ever."""
    search = search_of(gamma=0.0, scale_lr=5.0, min_scale=0.2)
    state, _ = one_step(search, PARAMS)
    np.testing.assert_allclose(state.scales, [0.0, 0.2])  # bias, kernel
    rising = search_of(lambda p, b: -quadratic(p, b), scale_lr=5.0, max_scale=1.5)
    state, record = one_step(rising, PARAMS, state, (-ONE, -ONE))
    np.testing.assert_allclose(state.scales, [0.0, 1.5])
    assert np.all(record.slope < 0)  # the bias would rise if it could
    higher = search_of(gamma=0.0, scale_lr=5.0, min_bias_scale=0.5, is_bias="kernel")
    state, _ = one_step(higher, PARAMS)
    np.testing.assert_allclose(state.scales, [0.01, 0.5])


def test_clip_and_its_absence() -> None:
    """After slopes of +9 and -1, only a clip makes the moments forget which was larger."""
    for clip, expected in ((1.0, 1.0), (None, 9.0)):
        search = search_of(gamma=0.0, grad_clip=clip)
        params = {"w": jnp.full(1, 9.0)}
        state, record = one_step(search, params)
        np.testing.assert_allclose(record.slope, [9.0])
        np.testing.assert_allclose(state.moments.first.mean[1], [0.1 * expected], rtol=1e-5)


def test_blocks_share_a_scale_and_none_is_a_constant() -> None:
    """A shared scale's slope is the sum of its leaves'; what is frozen is in no norm or step."""
    params = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([3.0]), "c": jnp.array([4.0])}
    slope = one_step(search_of(gamma=0.0), params)[1].slope
    shared = search_of(gamma=0.0, block_fn=lambda name, _: name == "c")
    both = one_step(shared, params)[1].slope
    np.testing.assert_allclose(both, [slope[0] + slope[1], slope[2]], rtol=1e-6)
    frozen = search_of(block_fn=lambda name, _: None if name == "c" else name)
    state, record = one_step(frozen, params)
    np.testing.assert_allclose(record.gradient_norm, math.sqrt(14), rtol=1e-6)
    moved = (math.sqrt(14) - ETA) ** 2 / 2 + 4.0**2 / 2
    np.testing.assert_allclose(record.lowered, moved, rtol=1e-6)
    assert frozen.blocks(params).names == ("a", "b")
    np.testing.assert_array_equal(frozen.rescaled(params, state)["c"], params["c"])
    assert frozen.blocks(params).per_leaf(state.scales)["c"] == 1


class Pair(NamedTuple):
    one: Any
    none: Any


def test_any_tree() -> None:
    params = [Pair(np.ones(2, np.float32), None), {"steps": jnp.array(3), "w": jnp.ones((2, 1))}]

    def loss(params: Any, batch: Any) -> jax.Array:
        assert params[1]["steps"].dtype == jnp.int32
        return quadratic((params[0].one, params[1]["w"]), batch)

    search = search_of(loss, gamma=0.0)
    state, _ = jax.jit(search.step)(params, search.init(params), PAIR)
    new = search.rescaled(params, state)
    np.testing.assert_allclose(new[0].one, [0.9, 0.9], rtol=1e-5)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert new[1]["steps"] == 3


def test_kinds_of_step_have_moments_of_their_own() -> None:
    """A step on the loss moves no moment of the steps on the norm; v is shared or not."""
    for shared in (True, False):
        search = search_of(gamma=3.0, shared_second_moment=shared)
        params = {"w": jnp.array([3.05])}
        step = jax.jit(search.step)
        state, first = step(params, search.init(params), PAIR)
        after, second = step(params, state, PAIR)
        assert first.constrained
        assert not second.constrained
        np.testing.assert_array_equal(after.moments.first.mean[1], state.moments.first.mean[1])
        np.testing.assert_allclose(after.moments.first.weight_sum, [0.1, 0.1], rtol=1e-6)
        weight_sum = [1 - 0.999**2] if shared else [1e-3, 1e-3]
        np.testing.assert_allclose(after.moments.second.weight_sum, weight_sum, rtol=1e-4)


def test_what_is_not_a_number_changes_nothing() -> None:
    search, nan = search_of(), jnp.float32(jnp.nan)
    step = jax.jit(search.step)
    before, _ = step(PARAMS, search.init(PARAMS), PAIR)
    for pair in ((nan, ZERO), (ZERO, nan)):
        state, record = step(PARAMS, before, pair)
        assert np.isnan(record.slope).any()
        jax.tree.map(np.testing.assert_array_equal, state, before)
    assert np.isfinite(step(PARAMS, state, PAIR)[0].scales).all()


@pytest.mark.parametrize("factor", [1e25, 1e38], ids=["its square", "the slope itself"])
def test_what_overflows_changes_nothing_or_is_clipped(factor: float) -> None:
    def steep(params: Any, batch: Any) -> jax.Array:
        return jnp.float32(factor) * jnp.sum(params["w"]) + 0.0 * batch

    params = {"w": jnp.ones(1)}
    search = search_of(steep, grad_clip=None)
    before = search.init(params)
    state, record = one_step(search, params)
    assert not np.isfinite(record.slope * record.slope).all()
    jax.tree.map(np.testing.assert_array_equal, state, before)
    state, _ = one_step(search_of(steep), params)
    np.testing.assert_allclose(state.scales, [0.9], rtol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "gamma"), [("sgd", 0.0), ("sgd", math.inf), ("adam", math.inf)]
)
def test_zero_gradients_are_harmless(algorithm: str, gamma: float) -> None:
    with jax.debug_nans(True):
        search = search_of(algorithm=algorithm, gamma=gamma)
        state, _ = one_step(search, jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_array_equal(state.scales, np.ones(2))


def test_bfloat16_keeps_float32_scales_and_dot_products() -> None:
    rng = np.random.default_rng(0)
    w, slope = (jnp.asarray(rng.normal(1, 1, 4096), jnp.bfloat16) for _ in range(2))

    def linear(params: Any, batch: Any) -> jax.Array:
        assert params["w"].dtype == jnp.bfloat16
        return jnp.sum(params["w"].astype(jnp.float32) * slope.astype(jnp.float32))

    search = search_of(linear, scale_lr=1e-3)
    state, record = one_step(search, {"w": w})
    exact = np.asarray(w, np.float64) @ np.asarray(slope, np.float64)
    np.testing.assert_allclose(record.slope, [exact / ETA], rtol=1e-5)
    np.testing.assert_allclose(state.scales, [0.999], rtol=1e-6)  # 1 in bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    assert search.rescaled({"w": w}, state)["w"].dtype == jnp.bfloat16


def test_complex_parameters_descend() -> None:
    params = {"z": jnp.array([3.0 + 4.0j])}
    for algorithm in ("sgd", "adam"):
        search = search_of(algorithm=algorithm)
        state, record = one_step(search, params)
        np.testing.assert_allclose(record.gradient_norm, 5.0, rtol=1e-6)
        np.testing.assert_allclose(record.lowered, (5 - ETA) ** 2 / 2, rtol=1e-6)
        np.testing.assert_allclose(record.slope, [(5 - ETA) * 5 / ETA], rtol=1e-5)
        np.testing.assert_allclose(search.rescaled(params, state)["z"], [2.7 + 3.6j], rtol=1e-5)


def test_scan_and_vmap_are_the_loop() -> None:
    search = search_of(gamma=3.0)
    places = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    several = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), PARAMS)

    def run(params: Any) -> Any:
        def body(state: Any, pair: Any) -> Any:
            return search.step(params, state, (pair[0], pair[1]))

        return jax.lax.scan(body, search.init(params), places)

    states, records = jax.jit(jax.vmap(run))(several)
    step = jax.jit(search.step)
    kinds = set()
    for lane in range(2):
        params = jax.tree.map(lambda p, lane=lane: p[lane], several)
        state = search.init(params)
        for i, pair in enumerate(places):
            state, record = step(params, state, (pair[0], pair[1]))
            assert record.constrained == records.constrained[lane, i]
            kinds.add(bool(record.constrained))
        np.testing.assert_allclose(state.scales, states.scales[lane], rtol=1e-5)
    assert step._cache_size() == 1
    assert kinds == {True, False}


def test_norms_and_directions() -> None:
    gradient = {"a": jnp.array([3.0, 0.0], jnp.bfloat16), "b": jnp.array([-4.0])}
    assert gradient_norm(gradient, "sgd") == 5
    assert gradient_norm(gradient, "adam") == 7
    np.testing.assert_allclose(first_step(gradient, "sgd")["b"], [-0.8], rtol=1e-6)
    np.testing.assert_array_equal(first_step(gradient, "sgd", normalize=False)["a"], [3, 0])
    np.testing.assert_array_equal(first_step(gradient, "adam")["a"], [1, 0])


def test_settings_are_frozen_and_can_be_changed() -> None:
    search = dataclasses.replace(search_of(), scale_lr=0.5)
    assert search.scale_lr == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        search.eta = 1.0  # pyright: ignore
