"""Adafactor: the factors, update clipping, relative step, parameter scale, decay, and optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st

from adamw_jax import (
    adafactor,
    compose,
    correct_bias,
    ema,
    estimate_moments,
    hyperparams,
    no_moment,
    only,
    parameter_rules,
    precondition,
    restart_moments,
    scale_by_adafactor,
    set_hyperparams,
)
from adamw_jax._core.sequential import compiled_for
from adamw_jax.direction import Rule, clip_by_rms
from adamw_jax.direction._clip_by_rms import rms_of_leaves
from adamw_jax.moments import factored_squares
from adamw_jax.update import average_updates, scale_by_relative_step
from benchmarks import hlo
from tests.catalogue import assert_close, assert_equal, assert_finite, avals, run

pytestmark = pytest.mark.quick

SMALL: dict[str, Any] = {"min_dim_size_to_factor": 1}
PLAIN: dict[str, Any] = {"multiply_by_parameter_scale": False, "clipping_threshold": None}

sizes = st.floats(0.125, 8.0, width=32)
rows = st.lists(sizes, min_size=4, max_size=4)
columns = st.lists(sizes, min_size=3, max_size=3)


def gradients(*shape: int, steps: int = 6, seed: int = 0) -> jax.Array:
    """Random gradients of different scales, stacked along the first axis."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(steps, *shape)) * 10.0 ** rng.uniform(-2, 2, size=shape)
    return jnp.asarray(values, jnp.float32)


def first_direction(gradient: Any, **options: Any) -> jax.Array:
    """The direction of the first step, neither clipped nor scaled."""
    tx = scale_by_adafactor(**{**SMALL, **PLAIN, **options})
    return tx.update(gradient, tx.init(gradient))[0]


# The factors.


compiled_first_direction = jax.jit(first_direction)


@jax.jit
def whole_and_factored(steps: jax.Array) -> list[Any]:
    """Parameters after these gradients, by all squares and by their factors."""
    recipes = [adafactor(0.1, factored=factored, **SMALL) for factored in (False, True)]
    return [run(tx, jnp.ones(steps.shape[1:]), steps)[0] for tx in recipes]


@given(a=rows, b=columns, c=rows, d=columns, signs=st.integers(0, 2**12 - 1))
def test_rank_one_is_exact(a: Any, b: Any, c: Any, d: Any, signs: int) -> None:
    """Where g^2 is an outer product the second moment is g^2, so that the first step is sign(g)."""
    sign = np.array([1.0 if signs >> i & 1 else -1.0 for i in range(12)]).reshape(4, 3)
    g = jnp.asarray(np.outer(a, b) * sign, jnp.float32)
    np.testing.assert_allclose(compiled_first_direction(g), sign, rtol=2e-6)
    # And with rows that are multiples of each other at all steps, whole and factored are one.
    steps = jnp.asarray(np.stack([np.outer(a, b), np.outer(a, d)]), jnp.float32)
    whole, parts = whole_and_factored(steps)
    assert_close(parts, whole, rtol=1e-5)


def test_other_ranks_are_not() -> None:
    """The reconstruction has the right mean of rows and columns, and other elements."""
    g = gradients(4, 3)[0]
    part = factored_squares(eps=0.0, **SMALL)
    record = compose_record(part, g)
    np.testing.assert_allclose(record.mean(0), (g**2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(record.mean(1), (g**2).mean(1), rtol=1e-5)
    assert np.max(np.abs(record / np.asarray(g**2) - 1.0)) > 0.1


def compose_record(part: Any, gradient: jax.Array) -> np.ndarray:
    """The second moment that the stages read after one gradient."""
    stage = estimate_moments(no_moment(), part)
    record, _ = stage.update(gradient, stage.init(gradient), gradient)
    return np.asarray(record.second.raw)


@pytest.mark.sample(2)
@pytest.mark.parametrize("shape", [(), (5,), (1, 7), (3, 1, 2)])
def test_vectors_are_never_factored(shape: tuple[int, ...]) -> None:
    """Vectors, scalars, and matrices below the size keep one value per parameter."""
    g = gradients(*shape)
    least = 2
    tx = adafactor(0.1, min_dim_size_to_factor=least)
    whole = adafactor(0.1, factored=False)
    assert_equal(run(tx, jnp.ones(shape), g)[0], run(whole, jnp.ones(shape), g)[0])
    state = tx.init(jnp.ones(shape)).stages["estimate_moments"].second
    assert state.rows.shape == shape
    assert state.columns.shape == ()


@pytest.mark.parametrize(
    ("axes", "shape", "row_shape", "column_shape"),
    [
        ("last", (200, 130), (200,), (130,)),
        ("last", (3, 3, 128, 256), (3, 3, 128), (3, 3, 256)),
        ("last", (256, 128, 3, 3), (256, 128, 3, 3), ()),
        ("largest", (256, 128, 3, 3), (128, 3, 3), (256, 3, 3)),
        ("largest", (128, 3, 256), (128, 3), (3, 256)),
        ("last", (127, 500), (127, 500), ()),
    ],
)
def test_state_values(axes: str, shape: Any, row_shape: Any, column_shape: Any) -> None:
    """A matrix has n + m values, and so has every matrix of a stack of them."""
    state = jax.eval_shape(adafactor(axes=axes).init, jax.ShapeDtypeStruct(shape, jnp.float32))
    second = state.stages["estimate_moments"].second
    assert (second.rows.shape, second.columns.shape) == (row_shape, column_shape)


@pytest.mark.sample(4)
@pytest.mark.parametrize("axes", ["last", "largest"])
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 6, 3), (6, 2, 3), (6, 3, 2), (3, 3, 3)])
def test_factors_agree_with_their_product(axes: str, shape: Any) -> None:
    """The direction by two factors is that by the root of the reconstructed matrix."""
    g = gradients(*shape)
    part = factored_squares(eps=1e-6, axes=axes, **SMALL)
    by_factors, by_root = (
        compose(estimate_moments(no_moment(), part), precondition(eps)) for eps in (None, 0.0)
    )

    @jax.jit
    def directions(g: jax.Array) -> Any:
        seen = [
            jax.lax.scan(lambda state, g, tx=tx: tx.update(g, state)[::-1], tx.init(g[0]), g)[1]
            for tx in (by_factors, by_root)
        ]
        clamped = first_direction(g[0], axes=axes, eps_form="clamped", eps=1e-12)
        return *seen, first_direction(g[0], axes=axes), clamped

    got, expected, first, clamped = directions(g)
    assert_close(got, expected)
    assert_close(first, clamped)


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("axes", "order", "matrix"),
    [
        ((0, (1, 2)), (0, 1, 2), (8, 12)),
        ((0, (-1, 1)), (0, 1, 2), (8, 12)),
        (((0, 1), 2), (0, 1, 2), (32, 3)),
        (((0, 2), 1), (0, 2, 1), (24, 4)),
        ((1, (0, 2)), (1, 0, 2), (4, 24)),
        ((1, 2), (0, 1, 2), (8, 4, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("eps_form", ["added", "clamped"])
def test_groups_of_axes_are_those_of_a_matrix(
    axes: Any, order: Any, matrix: Any, eps_form: str
) -> None:
    """A kernel with groups of axes moves as the matrix that they make; others are a batch."""
    g, start = gradients(8, 4, 3), jnp.asarray(np.linspace(-1, 1, 96).reshape(8, 4, 3), jnp.float32)
    options: Any = {**SMALL, "eps_form": eps_form, "b1": 0.9}
    table = {"*kernel": axes, "other": None}
    tx, plain = adafactor(0.1, axes=table, **options), adafactor(0.1, **options)

    def tree(x: jax.Array) -> Any:
        return {"kernel": x, "other": x, "third": x}

    def flat(x: jax.Array) -> jax.Array:
        return jnp.transpose(x, order).reshape(matrix)

    got, state = run(tx, tree(start), tree(g))
    expected, _ = run(plain, flat(start), jax.vmap(flat)(g))
    assert_close(flat(got["kernel"]), expected)
    assert_close(got["third"], run(plain, start, g)[0])
    assert_close(got["other"], run(adafactor(0.1, **options, factored=False), start, g)[0])
    rows = state.stages["estimate_moments"].second.rows
    assert rows["kernel"].ndim == (2 if matrix == (8, 4, 3) else 3 - len(np.atleast_1d(axes[1])))
    assert rows["other"].shape == (8, 4, 3)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"*": "first"}, "axes must map patterns on leaf names to .*got '\\*': 'first'"),
        ({"*": (0,)}, "axes must map patterns on leaf names"),
        ({"*": (0, True)}, "axes must map patterns on leaf names"),
        ({"*": (0, ())}, "axes must map patterns on leaf names"),
        ({1: None}, "axes must map patterns on leaf names"),
        ({"*": (0, 3)}, "for the leaf 'w', which has the shape .*name existing axes"),
        ({"*": (0, (0, 1))}, "for the leaf 'w', which has the shape .*name existing axes"),
        ({"*": None, "w": None}, "several patterns for the leaf 'w'.*make one of them narrower"),
        (
            {"v": None},
            "axes has the pattern 'v', which matches none of the leaves .*correct or remove",
        ),
        ({"*": np.array([0, 1])}, "axes must map patterns on leaf names"),
    ],
    ids=str,
)
def test_axes_that_a_leaf_does_not_have(axes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adafactor(axes=axes).init({"w": jnp.ones((3, 4, 5))})


def test_axes_of_a_vector_and_of_numpy() -> None:
    with pytest.raises(ValueError, match="for the leaf 'w', which has the shape"):
        adafactor(axes={"w": (0, (1, 2))}).init({"w": jnp.ones(3)})
    table: Any = {"w": (np.int64(0), (1, 2))}
    tx, params = adafactor(0.1, axes=table, **SMALL), {"w": jnp.ones((3, 4, 5))}
    state = tx.init(params)
    table.clear()  # the table was copied
    assert_finite(tx.update(params, state, params))


def test_a_kernel_of_another_shape_is_refused() -> None:
    tx = adafactor(0.1, axes={"w": (0, (1, 2))}, **SMALL)
    state = tx.init({"w": jnp.ones((3, 4, 5))})
    other = {"w": jnp.ones((4, 4, 5))}
    with pytest.raises(ValueError, match="do not fit its gradient of shape"):
        tx.update(other, state, other)


def test_decay_rate_of_the_second_moment() -> None:
    """1 - t^-0.8: nothing of the start is left, up to ``max_b2`` and from ``decay_offset`` on."""
    g = jnp.array([1.0])

    def moments(**options: Any) -> list[float]:
        tx = scale_by_adafactor(0.8, 0.0, **PLAIN, **options)
        state, seen = tx.init(g), []
        for value in (2.0, 0.0, 0.0, 0.0):
            _, state = tx.update(value * g, state)
            seen.append(float(state.stages["estimate_moments"].second.rows[0]))
        return seen

    def expected(*rates: float) -> Any:
        return pytest.approx(np.cumprod([4.0, *rates]), rel=1e-5)

    b2, b3, b4 = (1 - t**-0.8 for t in (2, 3, 4))
    assert moments() == expected(b2, b3, b4)
    assert moments(max_b2=0.5) == expected(b2, 0.5, 0.5)
    assert moments(decay_offset=1)[1:] == [0.0, 0.0, 0.0]
    adam = [0.9 * (1 - 0.9 ** (t - 1)) / (1 - 0.9**t) for t in (2, 3, 4)]
    assert moments(b2=0.9) == expected(*adam)
    assert moments(b2=0.9, max_b2=0.5) == expected(adam[0], 0.5, 0.5)
    assert moments(b2=0.0)[1:] == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"decay_rate must be a number in \(0, 1\]"):
        adafactor(decay_rate=0.0)


def test_restarted_moments_forget() -> None:
    """After a restart the decay rate starts at 0 again, as at the first step."""
    tx, g = adafactor(0.1, **SMALL), gradients(4, 3)
    params, state = run(tx, jnp.ones((4, 3)), g)
    again = tx.update(1e-3 * g[0], restart_moments(state), params)[0]
    assert_close(again, tx.update(1e-3 * g[0], tx.init(params), params)[0])
    went_on = tx.update(1e-3 * g[0], state, params)[0]
    assert float(jnp.max(jnp.abs(went_on))) < 0.1 * float(jnp.max(jnp.abs(again)))


# Clipping, scale, step.


def test_update_clipping() -> None:
    """The root mean square of a direction is d at most, and smaller ones are left alone."""
    g = gradients(4, 3)
    for d in (1.0, 2.0):
        tx = scale_by_adafactor(clipping_threshold=d, multiply_by_parameter_scale=False, **SMALL)
        free = scale_by_adafactor(**PLAIN, **SMALL)
        state, freed, clipped = tx.init(g[0]), free.init(g[0]), 0
        for t, gradient in enumerate(g * jnp.float32(5.0) ** jnp.arange(6.0)[:, None, None]):
            u, state = tx.update(gradient, state)
            v, freed = free.update(gradient, freed)
            assert float(rms_of_leaves(u)) <= d * (1 + 1e-5), t
            long = float(rms_of_leaves(v)) > d
            clipped += long
            assert_close(u, v * (d / rms_of_leaves(v)) if long else v)
        assert clipped
    with pytest.raises(ValueError, match=r"clipping_threshold must be a number >= 1 .* got 0\.5"):
        clip_by_rms(0.5)


@pytest.mark.parametrize("shape", [(), (4,), (4, 3)])
def test_zero_leaves_move(shape: Any) -> None:
    """The floor of the parameter scale: min_scale * rho * sign(g)."""
    g = jnp.full(shape, -3.0)
    tx = adafactor(**SMALL)
    updates, _ = tx.update(g, tx.init(g), jnp.zeros(shape))
    np.testing.assert_allclose(updates, np.full(shape, 1e-3 * 1e-2), rtol=1e-5)
    updates, _ = tx.update(g, tx.init(g), jnp.full(shape, -0.5))
    np.testing.assert_allclose(updates, np.full(shape, 0.5 * 1e-2), rtol=1e-5)


def test_the_parameter_scale_has_bounds() -> None:
    g = jnp.full((3,), -3.0)
    tx = adafactor(min_scale=0.1, max_scale=2.0)
    for size, factor in ((0.0, 0.1), (0.5, 0.5), (7.0, 2.0)):
        updates, _ = tx.update(g, tx.init(g), jnp.full((3,), size))
        np.testing.assert_allclose(updates, np.full((3,), factor * 1e-2), rtol=1e-5)
    state = set_hyperparams(tx.init(g), max_scale=1.0)
    np.testing.assert_allclose(tx.update(g, state, 7.0 * g)[0], np.full((3,), 1e-2), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, jnp.float32),
        ({"eps": 0.0}, jnp.float32),
        ({"eps_form": "clamped", "eps": None}, jnp.float32),
        ({}, jnp.bfloat16),
        ({"eps_form": "clamped", "eps": None}, jnp.float16),
        ({"eps": 0.0}, jnp.complex64),
    ],
    ids=str,
)
def test_zero_rows_are_finite(options: Any, dtype: Any) -> None:
    """No gradient, no step: rows, columns, leaves; and the step has finite derivatives."""
    g = np.asarray(gradients(4, 3)[0]) * 1.0
    g[1], g[:, 2] = 0.0, 0.0
    tree = {"w": jnp.asarray(g, dtype), "b": jnp.zeros(3, dtype), "m": jnp.zeros((2, 2), dtype)}
    tx = adafactor(0.1, **SMALL, **options)
    params = jax.tree.map(jnp.ones_like, tree)
    updates, _ = jax.jit(tx.update)(tree, tx.init(params), params)
    assert_finite(updates)
    assert updates["w"].dtype == dtype
    w = np.asarray(updates["w"]).astype(np.complex64)
    assert np.all((w == 0) == (g == 0))
    assert not np.any(np.asarray(updates["b"]))
    if dtype == jnp.float32:
        slope = jax.jit(
            jax.grad(lambda x: sum(jnp.sum(u) for u in tx.update(x, tx.init(x), x)[0].values()))
        )(tree)
        assert_finite(slope)


def test_huge_gradients_beside_zero_rows() -> None:
    """The product of the factors alone would overflow."""
    g = jnp.zeros((3, 3)).at[0, 0].set(1e12)
    direction = first_direction(g)
    assert_close(direction, jnp.zeros((3, 3)).at[0, 0].set(1.0))


def test_relative_step() -> None:
    """min(cap, 1 / sqrt(t)), with the cap 1e-2, 1e-6 t, or the learning rate, live."""
    g, one = jnp.array([2.0]), jnp.ones(1)

    def lengths(count: int, **options: Any) -> float:
        tx = adafactor(**{"clipping_threshold": None, **options})
        state = tx.init(one)._replace(count=jnp.int32(count - 1))
        return -float(tx.update(g, state, one)[0][0])

    for t in (1, 9, 10_000, 40_000):
        assert lengths(t) == pytest.approx(min(1e-2, t**-0.5), rel=1e-5)
        assert lengths(t, warmup_init=True) == pytest.approx(min(1e-6 * t, t**-0.5), rel=1e-5)
        capped = lengths(t, learning_rate=0.1, relative_step=True)
        assert capped == pytest.approx(min(0.1, t**-0.5), rel=1e-5)
        assert lengths(t, learning_rate=0.1) == pytest.approx(0.1, rel=1e-5)
    schedule = optax.linear_schedule(0.0, 1.0, 10)
    assert lengths(6, learning_rate=schedule) == pytest.approx(0.5, rel=1e-5)
    tx = adafactor()
    state = set_hyperparams(tx.init(one), learning_rate=1e-4, min_scale=0.5)
    assert float(tx.update(g, state, jnp.zeros(1))[0][0]) == pytest.approx(-5e-5, rel=1e-5)
    assert set(hyperparams(state)) == {
        "clipping_threshold", "decay_rate", "eps", "learning_rate", "min_scale",
    }  # fmt: skip


def test_momentum_is_an_uncorrected_average_of_updates() -> None:
    """m = b1 m + (1 - b1) update, in the storage dtype."""
    tx, g = adafactor(0.1, b1=0.75, mu_dtype=jnp.bfloat16, **PLAIN), jnp.array([1.0])
    state = tx.init(g)
    for t in range(1, 4):
        updates, state = tx.update(g, state, g)
        assert float(updates[0]) == pytest.approx(-0.1 * (1 - 0.75**t), rel=1e-2)
        assert state.stages["average_updates"].average.dtype == jnp.bfloat16
    plain = adafactor(0.1, **PLAIN)
    without = plain.init(g)
    assert "average_updates" not in without.stages


# Decay.


def moved_by_decay(decay: str, **options: Any) -> Any:
    """What one step without a gradient does to parameters of root mean square 2."""
    params = {"w": jnp.array([[2.0, -2.0]]), "b": jnp.array([2.0])}
    tx = adafactor(weight_decay=0.5, decay=decay, **options)
    zero = jax.tree.map(jnp.zeros_like, params)
    return tx.update(zero, tx.init(params), params)[0]


@pytest.mark.parametrize("b1", [None, 0.9])
@pytest.mark.parametrize(
    ("decay", "options", "share"),
    [
        ("learning_rate", {}, 1e-2 * 2.0 * 0.5),
        ("learning_rate", {"learning_rate": 0.1}, 0.1 * 2.0 * 0.5),
        ("learning_rate", {"learning_rate": 4.0, "relative_step": True}, 1.0 * 2.0 * 0.5),
        ("learning_rate", {"learning_rate": 0.1, **PLAIN}, 0.1 * 0.5),
        ("raw_learning_rate", {"learning_rate": 0.1}, 0.1 * 0.5),
        ("raw_learning_rate", {"learning_rate": 4.0, "relative_step": True}, 4.0 * 0.5),
        ("fixed", {}, 0.5),
        ("fixed", {"learning_rate": 0.1}, 0.5),
        ("schedule", {"learning_rate": 0.1}, 0.5),
        ("schedule", {"learning_rate": 0.1, "base_learning_rate": 0.2}, 0.25),
        ("corrected", {"learning_rate": 0.1, "base_learning_rate": 0.2}, 0.1 * 0.25),
        ("proximal", {"learning_rate": 0.1}, 1 - 1 / (1 + 0.1 * 2.0 * 0.5)),
    ],
)
def test_forms_of_decay(decay: str, options: Any, share: float, b1: Any) -> None:
    """Every convention by its name; momentum neither delays nor averages the decay."""
    updates = moved_by_decay(decay, b1=b1, **options)
    np.testing.assert_allclose(updates["b"], [-2.0 * share], rtol=1e-5)
    np.testing.assert_allclose(updates["w"], [[-2.0 * share, 2.0 * share]], rtol=1e-5)


def test_decay_under_masks_and_rules() -> None:
    """Masked leaves do not decay, rules multiply both rates, frozen leaves stay."""
    updates = moved_by_decay("learning_rate", mask="w")
    assert not np.any(updates["b"])
    assert np.all(updates["w"] != 0)
    rules = parameter_rules(
        {"w": Rule(learning_rate_factor=0.5), "b": Rule(weight_decay_factor=0.5)}
    )
    updates = moved_by_decay("learning_rate", rules=rules)
    np.testing.assert_allclose(updates["b"], [-5e-3 * 2.0], rtol=1e-5)
    np.testing.assert_allclose(updates["w"], [[-1e-2, 1e-2]], rtol=1e-5)
    rules = parameter_rules({"w": Rule(freeze=True), "b": Rule()})
    updates = moved_by_decay("learning_rate", rules=rules)
    assert not np.any(updates["w"])
    np.testing.assert_allclose(updates["b"], [-1e-2 * 2.0], rtol=1e-5)


# Against optax.


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"factored": False}, {"factored": False}),
        ({"decay_rate": 0.5}, {"decay_rate": 0.5}),
        ({"clipping_threshold": None}, {"clipping_threshold": None}),
        ({"multiply_by_parameter_scale": False}, {"multiply_by_parameter_scale": False}),
        ({"eps": 1e-3}, {"eps": 1e-3}),
        (
            {"weight_decay": 1e-2, "decay": "fixed", "b1": 0.9},
            {"weight_decay_rate": 1e-2, "momentum": 0.9},
        ),
        ({"min_dim_size_to_factor": 4}, {"min_dim_size_to_factor": 4}),
    ],
    ids=str,
)
def test_equals_optax(ours: Any, theirs: Any) -> None:
    """With a learning rate and the two largest axes, to the rounding of float32."""
    shapes = {"w": (4, 3), "t": (6, 2, 3), "q": (5, 5), "b": (5,), "s": ()}
    params = {k: gradients(*shape, steps=1, seed=1)[0] for k, shape in shapes.items()}
    steps = {k: gradients(*shape, steps=12) for k, shape in shapes.items()}
    mine = adafactor(0.01, axes="largest", **{**SMALL, **ours})
    twin = optax.adafactor(0.01, **{**SMALL, **theirs})
    got, expected = (run(tx, params, steps)[0] for tx in (mine, twin))
    assert_close(got, expected, rtol=1e-4, atol=1e-6)


# As a part and as a transformation.


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, jnp.float32),
        ({"state_dtype": jnp.bfloat16}, jnp.float32),
        ({}, jnp.bfloat16),
        ({"b1": 0.9}, jnp.complex64),
    ],
    ids=str,
)
def test_stable_under_jit_vmap_and_holes(options: Any, dtype: Any) -> None:
    """Types never change, None and masked leaves stay, members of a batch are independent."""
    params = {"w": jnp.ones((4, 3), dtype), "b": jnp.ones(2, dtype), "no": None}
    params["masked"] = optax.MaskedNode()
    tx = adafactor(weight_decay=0.1, **SMALL, **options)
    state = tx.init(params)
    updates, after = jax.jit(tx.update)(params, state, params)
    assert avals(after) == avals(state)
    assert avals(updates) == avals(params)
    second = state.stages["estimate_moments"].second
    assert all(not jnp.iscomplexobj(x) for x in jax.tree.leaves(second))
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    many, _ = jax.jit(jax.vmap(lambda p: tx.update(p, tx.init(p), p)))(batch)
    assert_close(jax.tree.map(lambda x: x[0], many), updates, rtol=1e-2)


def test_parts_of_other_recipes() -> None:
    """Adam with factored squares: correction of the first moment, eps, one leaf chosen."""
    g = gradients(4, 3)
    part = factored_squares(eps=0.0, **SMALL)
    whole = factored_squares(eps=0.0, factored=False)
    for second, eps in ((part, None), (part, 1e-8), (whole, None)):
        tx = compose(estimate_moments(ema(0.9), second), correct_bias(), precondition(eps))
        direction, _ = tx.update(g[0], tx.init(g[0]))
        expected = first_direction(g[0], factored=second is part)
        assert_close(direction, expected, rtol=1e-4)
    tree = {"a": g, "b": g}
    stages = (estimate_moments(no_moment(), part), only(correct_bias(), "a"), precondition(None))
    tx = compose(*stages)
    chosen, _ = tx.update({"a": g[0], "b": g[0]}, tx.init({"a": g[0], "b": g[0]}))
    assert_close(chosen["a"], chosen["b"])
    assert jax.tree.structure(chosen) == jax.tree.structure(tree)
    parts = compose(scale_by_adafactor(**SMALL), scale_by_relative_step(), average_updates(0.9))
    assert_close(run(parts, g[0], g)[0], run(adafactor(b1=0.9, **SMALL), g[0], g)[0])


def test_a_step_stores_no_square() -> None:
    """One array of the size of the leaf as scratch, no copies: neither V nor g^2 is written out."""
    params = {"w": jnp.zeros((512, 256)), "b": jnp.zeros(300)}
    tx = adafactor()

    def step(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    compiled = hlo.compile_step(step, params, tx.init(params), params)
    assert hlo.census(compiled.as_text()).copies == 0
    assert hlo.scratch_bytes(compiled) < 4.1 * 512 * 256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relative_step": False}, "relative_step=False needs a learning_rate"),
        ({"learning_rate": 0.1, "warmup_init": True}, "warmup_init=True is for the relative step"),
        ({"relative_step": "yes"}, "relative_step must be True or False, got 'yes'"),
        ({"mu_dtype": jnp.bfloat16}, "mu_dtype=bfloat16 needs a momentum: give b1"),
        ({"eps": None}, 'eps=None, the machine epsilon, needs eps_form="clamped"'),
        ({"axes": "first"}, "axes must be one of .*got 'first'"),
        ({"eps_form": "max"}, "eps_form must be one of .*got 'max'"),
        ({"decay": "absolute"}, "decay must be one of .*got 'absolute'"),
        ({"min_dim_size_to_factor": 0}, "min_dim_size_to_factor must be a whole number >= 1"),
        ({"decay_offset": -1}, "decay_offset must be a whole number >= 0, got -1"),
        ({"decay_rate": 0.0}, r"decay_rate must be a number in \(0, 1\].*got 0.0"),
        ({"clipping_threshold": 0.5}, "clipping_threshold must be a number >= 1 .*got 0.5"),
        ({"b2": 1.0}, r"b2 must be a number in \[0, 1\).*got 1.0"),
        ({"max_scale": 0.0}, "max_scale must be a number > 0.*got 0.0"),
        (
            {"max_scale": 1.0, "multiply_by_parameter_scale": False},
            "max_scale=1.0 bounds the parameter scale, which multiply_by_parameter_scale=False",
        ),
        ({"max_b2": 1.0}, r"max_b2 must be a number in \[0, 1\).*got 1.0"),
        ({"mask": "w"}, "mask selects the leaves that decay, but neither weight_decay nor l2"),
        ({"weight_decay": 0.1, "decay": "schedule"}, "which the relative step is not"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(options: Any, message: str) -> None:
    """Each names the argument and the remedy."""
    with pytest.raises(ValueError, match=message):
        adafactor(**options)


def test_gradients_and_states_that_do_not_fit() -> None:
    """Other shapes, other trees, and the state of another factorization."""
    params = {"w": jnp.ones((4, 3)), "t": jnp.ones((2, 6, 3))}
    tx = adafactor(**SMALL)
    state = tx.init(params)
    wrong = {"w": jnp.ones((3, 4)), "t": params["t"]}
    with pytest.raises(ValueError, match=r"'w' has shape \(3, 4\), the parameter .* had \(4, 3\)"):
        tx.update(wrong, state, wrong)
    less = {"w": params["w"]}
    with pytest.raises(ValueError, match=r"missing leaves \['t'\]"):
        tx.update(less, state, less)
    for other in (adafactor(), adafactor(factored=False)):
        with pytest.raises(ValueError, match=r"do not fit its gradient.*keep min_dim"):
            other.update(params, state, params)


def test_sizes_that_came_through_injection_say_what_to_do() -> None:
    """``optax.inject_hyperparams`` makes an array of every number."""
    with pytest.raises(ValueError, match=r"name 'min_dim_size_to_factor' in static_args"):
        optax.inject_hyperparams(adafactor)(0.1).init(jnp.ones(3))
    sizes = ("min_dim_size_to_factor", "decay_offset")
    optax.inject_hyperparams(adafactor, static_args=sizes)(0.1).init(jnp.ones(3))


@pytest.mark.parametrize("options", [{}, {"b1": 0.9}, {"factored": False}])
def test_the_direction_computed_once_more_is_the_same(options: dict[str, Any]) -> None:
    """On a GPU and a TPU it is computed for its norm and again for the update."""
    params = {"a": jnp.ones((4, 6)), "b": jnp.ones(3)}
    gradients = jax.tree.map(
        lambda x: 7 * jnp.sin(jnp.arange(float(x.size)).reshape(x.shape)), params
    )
    tx = adafactor(0.1, **SMALL, **options)

    def step(state):
        return tx.update(gradients, state, params)

    usual = jax.jit(step)(tx.init(params))
    with compiled_for("gpu"):
        again = jax.jit(lambda state: step(state))(tx.init(params))
    assert_close(again, usual, rtol=1e-6)
