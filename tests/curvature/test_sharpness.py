"""The preconditioner in the state of every optimizer, sharpness, and the edge of stability."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from adamw_jax import curvature
from tests.catalogue import Entry, plain_entries

pytestmark = [pytest.mark.slow, pytest.mark.quick]

KEY = jax.random.key(1)
LR, B1, B2, EPS = 0.1, 0.8, 0.95, 1e-3
PARAMS = {"w": jnp.array([[1.0, -2.0, 0.5]]), "b": jnp.array([0.3, 2.0])}
STEPS = 7


def gradients(step: int) -> Any:
    numbers = np.random.default_rng(step)
    return jax.tree.map(
        lambda p: jnp.asarray(numbers.normal(size=p.shape) + 1, jnp.float32), PARAMS
    )


def trained(tx: Any, steps: int = STEPS, params: Any = PARAMS) -> tuple[Any, Any]:
    """State and parameters after some steps."""
    tx = optax.with_extra_args_support(tx)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        updates, state = update(gradients(step), state, params, value=jnp.float32(2.0))
        params = optax.apply_updates(params, updates)
    return state, params


def averages(power: float = 2.0) -> tuple[Any, Any]:
    """First and second moment of the gradients, uncorrected."""
    m = v = jax.tree.map(lambda p: np.zeros(p.shape), PARAMS)
    for step in range(STEPS):
        g = jax.tree.map(np.asarray, gradients(step))
        m = jax.tree.map(lambda a, x: B1 * a + (1 - B1) * x, m, g)
        v = jax.tree.map(lambda a, x: B2 * a + (1 - B2) * np.abs(x) ** power, v, g)
    return m, v


C1, C2 = 1 - B1**STEPS, 1 - B2**STEPS


@pytest.mark.parametrize(
    ("tx", "scale"),
    [
        (aj.adam(LR, B1, B2, EPS), lambda v: C1 * (np.sqrt(v / C2) + EPS)),
        (aj.adamw(LR, B1, B2, EPS), lambda v: C1 * (np.sqrt(v / C2) + EPS)),
        (aj.adam(LR, B1, B2, EPS, eps_root=0.1), lambda v: C1 * (np.sqrt(v / C2 + 0.1) + EPS)),
        (aj.adam(LR, B1, B2, EPS, eps_hat=True), lambda v: C1 / C2**0.5 * (np.sqrt(v) + EPS)),
        (aj.adam(LR, B1, B2, EPS, nesterov=True), lambda v: C1 * (np.sqrt(v / C2) + EPS)),
        (
            aj.adam(LR, B1, B2, EPS, bias_correction="current"),
            lambda v: C1 * (np.sqrt(v / C2) + EPS),
        ),
        (aj.adan(LR, b1=B1, b3=B2, eps=EPS), None),
        (aj.diffgrad(LR, B1, B2, EPS), lambda v: C1 / C2**0.5 * (np.sqrt(v) + EPS)),
        (
            aj.padam(LR, B1, B2, EPS, partial=0.25, amsgrad=False),
            lambda v: C1 / C2**0.5 * (np.sqrt(v) + EPS) ** 0.5,
        ),
        (aj.sgdw(LR, momentum=0.9), lambda v: np.ones_like(v)),
        (
            aj.adamw(optax.constant_schedule(LR), B1, B2, EPS),
            lambda v: C1 * (np.sqrt(v / C2) + EPS),
        ),
    ],
    ids=lambda x: "-".join(s.name for s in x.specs) if hasattr(x, "specs") else "",
)
def test_formulas(tx: Any, scale: Any) -> None:
    state, params = trained(tx)
    got = curvature.preconditioner(tx, state, params)
    if scale is None:
        second = state.stages["estimate_moments"].second.moment
        scale, v = (lambda v: C1 * (np.sqrt(np.asarray(v) / C2) + EPS)), second
    else:
        _, v = averages()
    for name, array in got.items():
        np.testing.assert_allclose(array, scale(v[name]), rtol=2e-5)


@pytest.mark.parametrize(
    "tx",
    [
        aj.adam(LR, B1, B2, EPS),
        aj.amsgrad(LR, B1, B2, EPS),
        aj.amsgrad(LR, B1, B2, EPS, maximum="corrected"),
        aj.adabelief(LR, B1, B2, EPS, eps_root=0.0),
        aj.adamax(LR, B1, B2),
        aj.radam(LR, B1, B2, EPS),
        aj.acprop(LR, B1, B2, EPS),
        aj.adapnm(LR, B1, B2, eps=EPS),
        aj.generalized_signsgd(LR, B1, B2, EPS),
        aj.adafactor(
            LR, clipping_threshold=None, multiply_by_parameter_scale=False, min_dim_size_to_factor=1
        ),
        aj.gadamx(LR, B1, B2, EPS),
    ],
    ids=lambda tx: tx.specs[0].name + "-" + "-".join(s.name for s in tx.specs[1:]),
)
def test_a_step_is_the_first_moment_over_it(tx: Any) -> None:
    """What an update was divided by, from the update itself: P = -lr m / update.

    For a second moment that the state of the step before holds (ACProp), the next update.
    """
    delayed = any(spec.name == "delay_second" for spec in tx.specs)
    state, params = trained(tx, STEPS)
    got = curvature.preconditioner(tx, state, params)
    if not delayed:
        before, params = trained(tx, STEPS - 1)
        state, step = before, STEPS - 1
    else:
        step = STEPS
    updates, after = tx.update(gradients(step), state, params)
    moments = after.stages["estimate_moments"].first
    if delayed or not hasattr(moments, "moment"):
        numerator = gradients(step)
    elif hasattr(moments, "other"):  # positive-negative, b0 = 1
        ahead, behind = moments.moment, moments.other
        if not moments.odd:
            ahead, behind = behind, ahead
        numerator = jax.tree.map(lambda a, b: (2 * a - b) / 5**0.5, ahead, behind)
    else:
        numerator = moments.moment
    for name, update in updates.items():
        expected = -LR * np.asarray(numerator[name]) / np.asarray(update)
        np.testing.assert_allclose(got[name], expected, rtol=1e-4)


def test_a_step_that_is_skipped_and_frozen_leaves() -> None:
    tx = aj.radam(LR, 0.9, 0.999)
    state, params = trained(tx, 2)
    assert all(
        np.isinf(leaf).all() for leaf in curvature.preconditioner(tx, state, params).values()
    )
    tx = aj.compose(aj.adam(LR, B1, B2, EPS), frozen=lambda p: {"w": True, "b": False})
    state, params = trained(tx)
    got = curvature.preconditioner(tx, state, params)
    assert np.isinf(got["w"]).all()
    assert np.isfinite(got["b"]).all()


@pytest.mark.parametrize(
    ("tx", "theirs"),
    [
        (aj.adam(LR, B1, B2, EPS), optax.adam(LR, B1, B2, EPS)),
        (
            aj.amsgrad(LR, B1, B2, EPS, maximum="corrected"),
            optax.chain(optax.clip(9.0), optax.amsgrad(LR, B1, B2, EPS)),
        ),
    ],
    ids=["adam", "amsgrad"],
)
def test_states_of_optax(tx: Any, theirs: Any) -> None:
    state, params = trained(tx)
    with jax.numpy_dtype_promotion("standard"):
        other, _ = trained(theirs)
    got, expected = (curvature.preconditioner(tx, s, params) for s in (other, state))
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-5)


def test_small_state() -> None:
    """What is stored in 8 bits is decoded first, for optax's Adam too."""
    numbers = np.random.default_rng(0)
    params = {"w": jnp.ones((64, 64))}
    sizes = numbers.uniform(0.5, 2.0, (2, 64, 64)) * numbers.choice([-1, 1], (2, 64, 64))

    def after(tx: Any) -> Any:
        state = tx.init(params)
        for g in sizes:
            _, state = jax.jit(tx.update)({"w": jnp.asarray(g, jnp.float32)}, state, params)
        return state

    tx, small = aj.adam(LR, B1, B2, EPS), aj.adam(LR, B1, B2, EPS, storage="8bit")
    expected = curvature.preconditioner(tx, after(tx), params)["w"]
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        theirs = after(aj.quantize_state(optax.adam(LR, B1, B2, EPS)))
    for recipe, state in (
        (tx, after(aj.quantize_state(tx))),
        (tx, after(aj.quantize_state(tx, rounding="stochastic"))),
        (tx, theirs),
        (small, after(small)),
    ):
        assert jnp.dtype(jnp.uint8) in {leaf.dtype for leaf in jax.tree.leaves(state)}
        got = curvature.preconditioner(recipe, state, params)["w"]
        np.testing.assert_allclose(got, expected, rtol=0.05)


@pytest.mark.parametrize("make", [aj.adam, aj.radam, aj.amsgrad])
def test_packed_leaves(make: Any) -> None:
    """It has the shapes of the parameters, though the accumulators lie in buffers."""
    expected, got = (
        curvature.preconditioner(tx, *trained(tx))
        for tx in (make(LR), aj.pack_small_leaves(make(LR)))
    )
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-6)


def quadratic(x: Any, matrix: Any) -> jax.Array:
    v = jnp.concatenate([x["w"][0], x["b"]])
    return 0.5 * jnp.dot(v, matrix @ v)


def test_preconditioned_sharpness() -> None:
    """The largest eigenvalue of P^-1 H by sign, under a wrapper and under jit."""
    numbers = np.random.default_rng(0).normal(size=(5, 5)).astype(np.float32)
    matrix = numbers + numbers.T - 3 * np.eye(5, dtype=np.float32)
    tx = aj.adam(LR, B1, B2, EPS)
    state, params = trained(optax.chain(optax.clip_by_global_norm(1e6), tx))
    scale = curvature.preconditioner(tx, state, params)
    scale = np.concatenate([scale["w"][0], scale["b"]])
    expected = np.linalg.eigvals(matrix / scale[:, None]).real.max()
    got = jax.jit(
        lambda p, s: curvature.preconditioned_sharpness(quadratic, p, matrix, tx, s, key=KEY)
    )(params, state)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("entry", plain_entries(), ids=lambda entry: entry.label)
def test_every_optimizer(entry: Entry) -> None:
    """A positive P, and the sharpness that it gives."""
    tx = entry.make(LR)
    state, params = trained(tx)
    matrix = jnp.diag(jnp.arange(1.0, 6.0))
    value, gradient = jax.value_and_grad(quadratic)(params, matrix)
    found = curvature.preconditioner(tx, state, params, gradient=gradient, value=value)
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(leaf).all()
        assert (leaf > 0).all()
    scale = np.concatenate([found["w"][0], found["b"]])
    got = curvature.preconditioned_sharpness(quadratic, params, matrix, tx, state, key=KEY, steps=5)
    np.testing.assert_allclose(got, (np.diag(matrix) / scale).max(), rtol=1e-4)


@pytest.mark.parametrize(
    "tx",
    [
        aj.norm_adaptive_sgd(LR),
        aj.koala_v(),
        aj.koala_v(r=0.1, weight_decay=0.1, decay_in_direction=False, target=0.5),
        aj.koala_v(stacked=lambda p: {"w": True, "b": False}),
        aj.koala_v(q=optax.linear_schedule(1.0, 90.0, 9)),
        aj.norm_adaptive_sgd(LR, floor=optax.linear_schedule(0.1, 9.0, 9)),
    ],
    ids=["norm", "koala_v", "decayed", "stacked", "scheduled", "scheduled norm"],
)
@pytest.mark.parametrize("more", [{}, {"value_sq_mean": jnp.float32(30.0)}], ids=["", "noise"])
def test_the_next_step_of_those_without_moments(tx: Any, more: dict[str, Any]) -> None:
    """It is the learning rate times the gradient over P."""
    state, params = trained(tx)
    g, value = gradients(99), jnp.float32(3.0)
    lr = float(aj.hyperparams(state).get("learning_rate", 1.0))
    got = curvature.preconditioner(tx, state, params, gradient=g, value=value, **more)
    updates, _ = tx.update(g, state, params, value=value, **more)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -lr * g[name] / got[name], rtol=1e-5)


def test_the_last_step_of_a_norm_estimate_with_the_present_gradient() -> None:
    tx = aj.norm_adaptive_sgd(LR, use_previous=False)
    before, params = trained(tx)
    updates, state = tx.update(gradients(99), before, params)
    got = curvature.preconditioner(tx, state, params)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -LR * gradients(99)[name] / got[name], rtol=1e-5)


def test_a_filter_behind_other_stages_and_edited_code() -> None:
    """What divides the gradient that clipping leaves; the code wins over the state."""
    tx = aj.compose(aj.clip_gradient(0.1), optax.identity(), aj.koala_v(q=50.0))
    state, params = trained(aj.compose(aj.clip_gradient(0.1), optax.identity(), aj.koala_v()))
    g, value = gradients(99), jnp.float32(3.0)
    clipped, _ = optax.clip_by_global_norm(0.1).update(g, optax.EmptyState())
    got = curvature.preconditioner(tx, state, params, gradient=g, value=value)
    updates, _ = tx.update(g, state, params, value=value)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -clipped[name] / got[name], rtol=1e-5)


def test_stages_by_other_names() -> None:
    """A stage is known by what it is, not by what it is called."""
    parts = (aj.correct_bias(), aj.precondition(), aj.scale_by_learning_rate(LR))
    tx, other = (
        aj.compose(aj.estimate_moments(), braked, *parts)
        for braked in (aj.friction(), ("mine", aj.friction()))
    )
    expected, got = (curvature.preconditioner(t, *trained(t)) for t in (tx, other))
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def test_the_next_step_of_koala_m() -> None:
    """Gradient and velocity: update = kappa p - lr g / P."""
    tx = aj.koala_m(LR, kappa=0.7)
    state, params = trained(tx)
    g, value = gradients(99), jnp.float32(3.0)
    got = curvature.preconditioner(tx, state, params, gradient=g, value=value)
    updates, _ = tx.update(g, state, params, value=value)
    velocity = state.stages["momentum_filter"].velocity
    for name, update in updates.items():
        expected = 0.7 * velocity[name] - LR * g[name] / got[name]
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7)


def test_those_without_moments_under_jit_frozen_and_in_pieces() -> None:
    tx = aj.compose(aj.koala_v(), frozen=lambda p: {"w": True, "b": False})
    state, params = trained(tx)
    matrix = jnp.diag(jnp.arange(1.0, 6.0))
    value, gradient = jax.value_and_grad(quadratic)(params, matrix)
    scale = curvature.preconditioner(tx, state, params, gradient=gradient, value=value)
    assert np.isinf(scale["w"]).all()
    expected = (np.diag(matrix)[3:] / scale["b"]).max()

    def measure(p: Any, s: Any, batch: Any = matrix) -> Any:
        return curvature.preconditioned_sharpness(quadratic, p, batch, tx, s, key=KEY, steps=5)

    pieces = curvature.Batches([matrix * 0.5, matrix * 1.5], weights="equal")
    for got in (jax.jit(measure)(params, state), measure(params, state, pieces)):
        np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_what_a_preconditioner_without_moments_lacks() -> None:
    tx = aj.koala_m()
    state, params = trained(tx)
    with pytest.raises(ValueError, match=r"momentum_filter .* give gradient= and value="):
        curvature.preconditioner(tx, state, params, value=jnp.float32(1.0))
    with pytest.raises(ValueError, match="has made no update"):
        curvature.preconditioner(tx, tx.init(params), params)
    tx = aj.norm_adaptive_sgd(LR)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    with pytest.raises(ValueError, match=r"seen only zero gradients .* make a step"):
        curvature.preconditioner(tx, state, params)
    unseen = jax.jit(lambda s: curvature.preconditioner(tx, s, params))(state)
    assert all(np.isnan(leaf).all() for leaf in unseen.values())
    state, params = trained(aj.koala_v())
    tx = aj.compose(("k", aj.scale_by_koala_v()), aj.scale_by_learning_rate(1.0))
    with pytest.raises(ValueError, match=r"has stages \['loss_filter'\].* recipe has \['k'\]"):
        curvature.preconditioner(tx, state, params)
    for one, another in ((aj.adam(LR), aj.amsgrad(LR)), (aj.amsgrad(LR), aj.adam(LR))):
        with pytest.raises(ValueError, match="the state belongs to another recipe"):
            curvature.preconditioner(one, *trained(another))


@pytest.mark.parametrize(
    ("name", "tx", "start"),
    [
        ("sgd", aj.sgdw(LR, momentum=0.7), 1.0),
        ("nesterov", aj.sgdw(LR, momentum=0.7, nesterov=True), 1.0),
        ("adam", aj.adam(LR, b1=0.7, b2=0.0, eps=1.0), 1e-12),  # the gradient is nothing beside eps
    ],
    ids=["sgd", "nesterov", "adam"],
)
def test_threshold_is_where_the_optimizer_itself_starts_to_diverge(
    name: str, tx: Any, start: float
) -> None:
    @jax.jit
    @jax.vmap
    def sizes(curvature: jax.Array) -> jax.Array:
        def step(carry: Any, _: Any) -> Any:
            x, state = carry
            updates, state = tx.update(curvature * x, state, x)
            return (x + updates, state), jnp.abs(x)

        x = jnp.full_like(curvature, start)
        return jax.lax.scan(step, (x, tx.init(x)), None, length=2000)[1]

    limit = float(curvature.stability_threshold(name, LR, 0.7))
    below, above = np.asarray(sizes(limit * jnp.array([0.99, 1.01])))[:, -20:]
    assert below.max() < 0.1 * start
    assert not above.max() < 10 * start  # NaN where it has overflowed


def test_thresholds() -> None:
    assert float(curvature.stability_threshold("sgd", 0.5, 0.0)) == 4.0
    np.testing.assert_allclose(curvature.stability_threshold("adam", 1e-3, 0.9), 38e3, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(lambda lr: curvature.stability_threshold("nesterov", lr, 0.5))(1.0), 1.5
    )


def test_errors() -> None:
    tx = aj.adam(LR)
    state, params = trained(tx, 1)
    with pytest.raises(TypeError, match=r"tx must be a recipe of adamw_jax .* such as adam"):
        curvature.preconditioner(optax.adam(LR), state, params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has made no update"):
        curvature.preconditioner(tx, tx.init(params), params)
    with pytest.raises(ValueError, match=r"one estimate_moments stage, or .* tx has 0 among"):
        curvature.preconditioner(aj.compose(optax.sgd(LR)), state, params)
    with pytest.raises(ValueError, match="the state belongs to another recipe"):
        curvature.preconditioner(aj.sgdw(LR), state, params)
    with pytest.raises(ValueError, match="opt_state has 2 recipes"):
        curvature.preconditioner(tx, (state, state), params)
    with pytest.raises(ValueError, match="expected one state of optax's Adam family"):
        curvature.preconditioner(tx, (), params)
    with pytest.raises(ValueError, match="optimizer must be one of"):
        curvature.stability_threshold("adamw", LR, 0.9)
    with pytest.raises(ValueError, match=r"b1 must be a number in \[0, 1\), got 1.0"):
        curvature.stability_threshold("adam", LR, 1.0)
    with pytest.raises(ValueError, match=r"learning_rate must be a number > 0, got 0\.0"):
        curvature.stability_threshold("sgd", 0.0, 0.9)
    with pytest.raises(TypeError, match=r"learning_rate must be a number > 0, got <function"):
        curvature.stability_threshold("sgd", optax.constant_schedule(LR), 0.9)
