"""Ideas of different papers in one recipe, and the limits in which one optimizer is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamw_jax as aj
from tests.catalogue import (
    assert_close,
    assert_finite,
    avals,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

COMBINATIONS = {
    "rectified AdaPNM with AMSGrad": lambda: aj.adapnm(0.05, rectify=True, amsgrad=True),
    "rectified Adan": lambda: aj.adan(0.05, rectify=True, weight_decay=0.1),
    "AMSGrad Adan in bfloat16": lambda: aj.adan(0.05, amsgrad=True, state_dtype=jnp.bfloat16),
    "diffGrad, Lookahead": lambda: aj.compose(aj.diffgrad(0.05, rectify=True), aj.lookahead()),
    "diffGrad, Lookahead, averaging": lambda: aj.compose(
        aj.diffgrad(0.05), aj.lookahead(sync_period=2), aj.average_iterates(2)
    ),
    "ACProp of momentum with AMSGrad": lambda: aj.acprop(0.05, numerator="momentum", amsgrad=True),
    "averaged AdaBelief": lambda: aj.compose(aj.adabelief(0.05), aj.average_iterates(2)),
    "friction in Padam": lambda: aj.compose(
        aj.estimate_moments(aj.positive_negative(), aj.ema_of_centered_squares()),
        aj.friction("wide"),
        aj.correct_bias(),
        aj.precondition_partially(0.25),
        aj.normalize(),
        aj.scale_by_learning_rate(0.05),
    ),
    "delayed AdaMax": lambda: aj.compose(
        aj.estimate_moments(aj.ema(0.9), aj.infinity_norm(0.999, 1e-8)),
        aj.delay_second("momentum"),
        aj.precondition(1e-8),
        aj.clip_step(0.05, 0.1),
    ),
    "1cycle GadamX": lambda: aj.gadamx(aj.one_cycle(0.05, 20), weight_decay=1e-3, start=4),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", COMBINATIONS)
def test_combination_works(name: str) -> None:
    """Finite, moving, one structure and one dtype of state, the same in a scan and step by step."""
    params, gradients = sample_params(), sample_gradients(8)
    tx = COMBINATIONS[name]()
    got, state = run(tx, params, gradients)
    assert_finite((got, state))
    assert float(jnp.abs(got["scale"] - params["scale"])) > 0
    assert avals(state) == avals(jax.eval_shape(tx.init, params))
    update, theta, here = jax.jit(tx.update), params, tx.init(params)
    for t in range(8):
        updates, here = update(jax.tree.map(lambda g, t=t: g[t], gradients), here, theta)
        theta = optax.apply_updates(theta, updates)
    assert_close(theta, got, rtol=1e-4, atol=1e-6)


def descend(gradient: Any, tx: Any, start: Any, steps: int) -> np.ndarray:
    """The parameters along plain descent of a function."""

    @jax.jit
    def whole(start: Any) -> Any:
        def body(carry: Any, _: Any) -> Any:
            theta, state = carry
            updates, state = tx.update(gradient(theta), state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        return jax.lax.scan(body, (start, tx.init(start)), None, length=steps)[1]

    return np.asarray(whole(start))


def same(left: Any, right: Any, steps: int = 12, **tolerance: Any) -> None:
    params, gradients = sample_params(), sample_gradients(steps)
    assert_close(run(left, params, gradients)[0], run(right, params, gradients)[0], **tolerance)


def test_adan_without_differences_is_adam() -> None:
    same(aj.adan(0.05, b1=0.9, b2=0.0, b3=0.99), aj.adam(0.05, b1=0.9, b2=0.99))


def test_adan_of_a_constant_gradient_is_sign_descent() -> None:
    got, _ = run(aj.adan(0.1), jnp.zeros(3), jnp.tile(jnp.array([2.0, -1e-3, 5.0]), (7, 1)))
    np.testing.assert_allclose(got, [-0.7, 0.7, -0.7], rtol=1e-4)


def test_mars_without_reduction_is_adam() -> None:
    same(aj.mars(0.05, 0.9, 0.99, gamma=0.0, max_norm=None), aj.adam(0.05, b2=0.99))


def test_variance_reduction_by_hand_and_of_some_leaves() -> None:
    tx: Any = aj.gradient.variance_reduction(0.5, 0.5, max_norm=10.0)
    g = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0])}
    first, state = tx.update(g, tx.init(g))
    assert_close(first, {"w": jnp.array([[4.5, 6.0]]), "b": jnp.array([1.5])})
    second, state = tx.update({"w": jnp.array([[30.0, 40.0]]), "b": jnp.array([2.0])}, state)
    assert_close(second, {"w": jnp.array([[6.0, 8.0]]), "b": jnp.array([2.5])})
    some = aj.only(tx, aj.matrices_only)
    got, _ = some.update(g, some.init(g), g)
    assert_close(got, {"w": first["w"], "b": g["b"]})


def test_nadam_whose_momentum_has_grown_is_that_of_optax() -> None:
    same(aj.nadam(0.05, momentum_decay=1e6), aj.adam(0.05, nesterov=True))
    first, _ = run(aj.nadam(0.1, eps=0.0), jnp.zeros(1), jnp.ones((1, 1)))
    later, _ = run(aj.nadam(0.1, momentum_decay=1e6), jnp.zeros(1), jnp.ones((1, 1)))
    assert abs(float(first[0])) < abs(float(later[0]))  # less momentum, less look-ahead


def test_a_restart_of_the_moments_restarts_the_look_ahead() -> None:
    params, gradients = jnp.zeros(3), jnp.array([[1.0, -2.0, 0.5]] * 2 + [[3.0, 1.0, -1.0]] * 2)
    half = aj.compose(
        aj.estimate_moments(restart_period=2),
        aj.moments.nesterov(0.1),
        aj.correct_bias(),
        aj.precondition(),
        aj.scale_by_learning_rate(0.1),
    )
    got, _ = run(half, params, gradients)
    parts = [run(aj.nadam(0.1, momentum_decay=0.1), params, gradients[i : i + 2]) for i in (0, 2)]
    assert_close(got, parts[0][0] + parts[1][0])


def test_ademamix_without_the_slow_average_is_adam() -> None:
    same(aj.ademamix(0.05, b2=0.99, alpha=0.0), aj.adam(0.05, b2=0.99))


def test_ademamix_is_that_of_optax() -> None:
    twin = optax.contrib.ademamix(0.05, 0.8, 0.9, 0.99, 3.0, weight_decay=0.1)
    with jax.numpy_dtype_promotion("standard"):
        want, _ = run(twin, sample_params(), sample_gradients(6))
    ours = aj.ademamix(0.05, 0.8, 0.9, 0.99, 3.0, weight_decay=0.1)
    assert_close(run(ours, sample_params(), sample_gradients(6))[0], want)


def test_the_warm_ups_of_ademamix() -> None:
    """alpha grows from 0; the half-life of b3 from that of b1; then both stay."""
    tx = aj.ademamix(0.1, b1=0.5, b3=0.875, alpha=8.0, alpha_warmup=4, b3_warmup=2)
    params = jnp.ones(2)
    state, seen = tx.init(params), []
    for _ in range(5):
        _, state = tx.update(params, state, params)
        seen.append([float(aj.hyperparams(state)[name]) for name in ("alpha", "b3")])
    half_lives = 1 / -np.log2([0.5, 0.875])
    middle = 0.5 ** (1 / np.mean(half_lives))
    want = [[2.0, middle], [4.0, 0.875], [6.0, 0.875], [8.0, 0.875], [8.0, 0.875]]
    np.testing.assert_allclose(seen, want, rtol=1e-6)
    with pytest.raises(ValueError, match="b3_warmup must be a whole number >= 1, got 0"):
        aj.ademamix(0.1, b3_warmup=0)


@pytest.mark.parametrize("b1", [0.5, 0.9])
def test_pnm_can_be_momentum(b1: float) -> None:
    """b0 = -b1 / (1 + b1) gives the ordinary average, over the norm of the weights."""
    b0 = -b1 / (1 + b1)
    norm = np.hypot(1 + b0, b0)
    momentum = aj.compose(
        aj.estimate_moments(aj.ema(b1), aj.no_moment()),
        aj.precondition(None),
        aj.scale_by_learning_rate(0.1 / norm * (1 - b1**2) * (1 + b0) / (1 - b1)),
    )
    same(aj.pnm(0.1, b1, b0), momentum)


@pytest.mark.parametrize("b0", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("b1", [0.5, 0.9])
def test_stability_bound_of_pnm(b0: float, b1: float) -> None:
    """lr L < 2 sqrt((1 + b0)^2 + b0^2) / (1 + 2 b0) on a quadratic, whatever b1."""
    bound = 2 * np.hypot(1 + b0, b0) / (1 + 2 * b0)
    for share, stable in ((0.97, True), (1.03, False)):
        far = descend(lambda x: x, aj.pnm(share * bound, b1, b0), jnp.ones(()), 3000)
        assert (np.abs(far[-1]) < 1) == stable


def test_padam_at_one_half_is_adam_with_eps_hat() -> None:
    same(aj.padam(0.05, partial=0.5, amsgrad=False), aj.adam(0.05, eps_hat=True), rtol=1e-4)


def test_padam_at_zero_is_momentum() -> None:
    """Scaled by sqrt(1 - b2^t) / (1 - b1^t), eps and all."""
    t = np.arange(1, 13)
    rate = jnp.asarray(0.05 * np.sqrt(1 - 0.999**t), jnp.float32)
    momentum = aj.compose(
        aj.estimate_moments(aj.ema(0.9), aj.no_moment()),
        aj.correct_bias(),
        aj.precondition(None),
        aj.scale_by_learning_rate(lambda count: rate[count]),
    )
    same(aj.padam(0.05, partial=0.0), momentum, rtol=1e-4)


def test_generalized_signsgd_at_its_limits() -> None:
    """b2 = 0: the sign of the momentum. b1 = 0: RMSProp without correction."""
    signs = optax.chain(optax.ema(0.9, debias=False), optax.scale_by_sign(), optax.scale(-0.05))
    same(aj.generalized_signsgd(0.05, b2=0.0, eps=0.0), signs)
    rmsprop = aj.compose(
        aj.estimate_moments(aj.no_moment(), aj.ema_of_squares(0.99)),
        aj.precondition(1e-8),
        aj.scale_by_learning_rate(0.05),
    )
    same(aj.generalized_signsgd(0.05, b1=0.0, b2=0.99), rmsprop)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_no_clipped_step_is_too_long(momentum: float | None) -> None:
    tx, params = aj.clipped_sgd(10.0, 0.25, momentum), sample_params()
    state, longest = tx.init(params), 0.0
    for t in range(8):
        gradient = jax.tree.map(lambda g, t=t: g[t], sample_gradients(8))
        updates, state = tx.update(gradient, state, params)
        longest = max(longest, float(optax.tree.norm(updates)))
    assert longest == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("per_leaf", [False, True])
def test_a_step_of_no_length_is_none(per_leaf: bool) -> None:
    """Learning rate and longest step may reach 0 together."""
    sinking = optax.linear_schedule(0.1, 0.0, 2)
    tx = aj.clipped_sgd(sinking, sinking, per_leaf=per_leaf)
    params = sample_params()
    state = tx.init(params)
    for _ in range(3):
        with jax.debug_nans(True):
            updates, state = tx.update(params, state, params)
    np.testing.assert_array_equal(updates["dense"]["kernel"], 0.0)


def test_friction_does_not_see_who_owns_the_gradient() -> None:
    """The same array object twice is as good as two copies: the previous gradient is a copy."""
    tx, params, gradient = aj.diffgrad(0.1), jnp.ones(3), jnp.array([1.0, -2.0, 3.0])

    def two(first: Any, second: Any) -> Any:
        _, state = tx.update(first, tx.init(params), params)
        return tx.update(second, state, params)[0]

    np.testing.assert_array_equal(two(gradient, gradient), two(gradient, gradient.copy()))


def test_acprop_after_a_silence_is_not_bounded_by_the_learning_rate() -> None:
    """The explosion: -0.316 with eps = 1e-8 and lr = 1e-3, where Adam moves by 1e-3."""
    gradients = jnp.array([[0.0], [0.0], [0.0], [1.0]])
    got, _ = run(aj.acprop(1e-3), jnp.zeros(1), gradients)
    seen = float(got[0])
    assert -100.0 < seen < -0.1
    adam, _ = run(aj.adam(1e-3), jnp.zeros(1), gradients)
    assert abs(float(adam[0])) < 4e-3


@pytest.mark.parametrize(
    ("case", "ours", "theirs", "distance"),
    [
        ("adan_default", aj.adan(0.01), optax.adan(0.01), 0.6837),
        (
            "acprop_norectify_decoupled",
            aj.acprop(1e-3, weight_decay=0.5),
            optax.contrib.acprop(1e-3, weight_decay=0.5),
            9806.7,
        ),
    ],
)
def test_optax_differs_from_the_authors(case: str, ours: Any, theirs: Any, distance: float) -> None:
    """By this share of the movement, as the page on differences says; ours does not."""
    recorded = np.load(Path(__file__).parent / "golden" / "authors" / f"{case}.npz")

    def tree(kind: str, at: Any = slice(None)) -> Any:
        leaves = {leaf: recorded[f"{kind}_{leaf}"][at] for leaf in "wbs"}
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), leaves)

    start, end = tree("params_0", ...), tree("params", -1)

    def share(tx: Any) -> float:
        with jax.numpy_dtype_promotion("standard"):
            got, _ = run(tx, start, tree("grads"))
        error, way = (optax.tree.sub(x, y) for x, y in ((got, end), (end, start)))
        return float(optax.tree.norm(error) / optax.tree.norm(way))

    assert share(ours) < 1e-5
    assert share(theirs) == pytest.approx(distance, rel=1e-3)


def test_an_argument_of_another_average_is_refused() -> None:
    for kind, options in (
        ("equal", {"decay": 0.9}),
        ("ema", {"window": 3}),
        ("equal", {"debias": True}),
        ("last", {"warm_up": True}),
        ("last", {"weights": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"is for kind=.*leave .* out"):
            aj.average_iterates(kind=kind, **options)


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("period", [1, 3])
def test_how_an_exponential_average_starts(period: int, debias: bool, warm_up: bool) -> None:
    """Against its weights in NumPy; a warm-up counts collections, wherever they start."""
    start, b, collected = 4, 0.9, []
    options = {"decay": b, "debias": debias, "warm_up": warm_up}
    tx = aj.compose(
        aj.sgdw(0.1, momentum=None), aj.average_iterates(start, period, "ema", **options)
    )
    params = jnp.array([1.0, -1.0])
    state = tx.init(params)
    for t in range(1, 20):
        updates, state = jax.jit(tx.update)(jnp.sin(params * t), state, params)
        params = optax.apply_updates(params, updates)
        if t > start and (t - start) % period == 0:
            collected.append(np.asarray(params, np.float64))
        n = np.arange(len(collected))
        rates = np.minimum(b, (1 + n) / (10 + n)) if warm_up else np.full(len(n), b)
        weights = (1 - rates) if debias else np.where(n == 0, 1.0, 1 - rates)
        weights = weights * np.array([np.prod(rates[i + 1 :]) for i in n])
        expected = params if not collected else weights / weights.sum() @ np.stack(collected)
        assert_close(aj.eval_params(state, params), expected)


@pytest.mark.parametrize("kind", ["equal", "weighted", "by number", "ema", "last"])
def test_averages(kind: str) -> None:
    """Against NumPy, at every step, also between collections."""
    start, period, window, decay = 3, 2, 2, 0.75
    weights = np.array([3.0, 0.0, 0.0, 2.0, 1.5, 4.0] * 3)
    options: Any = {
        "ema": {"decay": decay},
        "last": {"window": window},
        "weighted": {"weights": lambda count: jnp.asarray(weights, jnp.float32)[count]},
    }.get(kind, {})
    name = "weighted" if kind == "by number" else kind
    tx = aj.compose(aj.sgdw(0.1), aj.average_iterates(start, period, name, **options))
    params = jnp.array([1.0, -1.0])
    state, collected = tx.init(params), []
    rng = np.random.default_rng(1)
    for t in range(1, 15):
        gradient = jnp.asarray(rng.normal(size=2), jnp.float32)
        updates, state = jax.jit(tx.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
        if t > start and (t - start) % period == 0:
            collected.append(np.asarray(params))
        expected = np.asarray(params)
        if collected and kind == "equal":
            expected = np.mean(collected, axis=0)
        elif collected and kind == "last":
            expected = np.mean(collected[-window:], axis=0)
        elif collected and name == "weighted":
            numbers = start + period * np.arange(1, len(collected) + 1)
            shares = weights[numbers - 1] if kind == "weighted" else numbers
            expected = np.average(collected, axis=0, weights=shares)
        elif collected:
            expected = collected[0]
            for theta in collected[1:]:
                expected = decay * expected + (1 - decay) * theta
        np.testing.assert_allclose(aj.eval_params(state, params), expected, rtol=2e-6)


def test_average_is_float32_under_bfloat16_parameters() -> None:
    tx = aj.compose(aj.sgdw(1e-3), aj.average_iterates())
    params = jnp.ones(4, jnp.bfloat16)
    got, state = run(tx, params, jnp.ones((5, 4), jnp.bfloat16))
    assert state.stages["average_iterates"].mean.dtype == jnp.float32
    assert aj.eval_params(state, got).dtype == jnp.bfloat16


def test_restart_by_hand_is_the_restart_by_period() -> None:
    params, gradients = jnp.ones(3), sample_gradients(6)["dense"]["bias"]
    by_period, _ = run(aj.adan(0.05, restart_period=3), params, gradients)
    tx, theta = aj.adan(0.05), params
    state = tx.init(params)
    for t in range(6):
        if t == 3:
            state = aj.restart_moments(state)
        updates, state = tx.update(gradients[t], state, theta)
        theta = optax.apply_updates(theta, updates)
    assert_close(theta, by_period)


def test_adan_of_the_paper_starts_with_the_first_gradient() -> None:
    """Algorithm 1, whose betas are 1 minus ours: m_0 = g_0, v_1 = g_1 - g_0, n_0 = g_0^2."""
    gradients = sample_gradients(6)["dense"]["bias"]
    tx = aj.adan(0.05, 0.7, 0.6, 0.8, eps=1e-3, start="first_gradient")
    got, _ = run(tx, jnp.ones(3), gradients)
    g = np.asarray(gradients, np.float64)
    theta, m, v, n = np.ones(3), g[0], 0.0, g[0] ** 2
    for t in range(6):
        if t > 0:
            change = g[t] - g[t - 1]
            m = 0.7 * m + 0.3 * g[t]
            v = change if t == 1 else 0.6 * v + 0.4 * change
            n = 0.8 * n + 0.2 * (g[t] + 0.6 * change) ** 2
        theta = theta - 0.05 * (m + 0.6 * v) / (np.sqrt(n) + 1e-3)
    np.testing.assert_allclose(got, theta, rtol=1e-5)
    by_period, _ = run(
        aj.adan(0.05, 0.7, 0.6, 0.8, eps=1e-3, start="first_gradient", restart_period=6),
        jnp.ones(3),
        jnp.concatenate([gradients, gradients]),
    )
    np.testing.assert_allclose(by_period - got, got - 1.0, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r'start="first_gradient" leaves no bias to correct'):
        aj.adan(0.05, start="first_gradient", bias_correction="current")
    with pytest.raises(ValueError, match="start must be one of"):
        aj.adan(0.05, start="gradient")


def test_adan_takes_the_papers_betas() -> None:
    arguments = sample_params(), sample_gradients(5)
    theirs, _ = run(aj.adan(0.05, 0.3, 0.4, lambda t: 0.2, paper_betas=True), *arguments)
    ours, _ = run(aj.adan(0.05, 0.7, 0.6, 0.8), *arguments)
    assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    direction = aj.scale_by_adan(0.3, 0.4, 0.2, paper_betas=True)
    assert_close(run(direction, *arguments)[0], run(aj.scale_by_adan(0.7, 0.6, 0.8), *arguments)[0])
    for given in (0.98, np.float32(0.98), jnp.float32(0.98)):
        with pytest.raises(ValueError, match=r"b1 must be in \(0, 0.5\] .*0.98.*1 minus these"):
            aj.adan(0.05, given, 0.08, 0.01, paper_betas=True)
    with pytest.raises(TypeError, match="b1 must be"):
        aj.adan(0.05, None, paper_betas=True)


@pytest.mark.parametrize(
    "rate", [0.1, lambda t: 0.1 / (1.0 + jnp.asarray(t, jnp.float32))], ids=["number", "schedule"]
)
@pytest.mark.parametrize("start", [0, 3])
def test_iterates_weighed_by_the_step_that_leaves_them(start: int, rate: Any) -> None:
    """sum eta_k theta_k / sum eta_k with eta = lr / (m + floor), known one step later."""
    tx = aj.compose(
        aj.norm_adaptive_sgd(rate, 0.5, 0.1),
        aj.average_iterates(start, kind="weighted", weights="step_size"),
    )
    theta, gradients = jnp.array([1.0, -1.0]), np.random.default_rng(0).normal(size=(9, 2))
    state, square, left, sizes = tx.init(theta), None, [], []
    for t, g in enumerate(gradients.astype(np.float32)):
        square = float(g @ g) if square is None else square
        eta = (rate(t) if callable(rate) else rate) / (np.sqrt(square) + 0.1)
        square = 0.5 * square + 0.5 * float(g @ g)
        if t > start:  # theta is the outcome of step t, the first of which has number 1
            left.append(np.asarray(theta))
            sizes.append(eta)
        updates, state = jax.jit(tx.update)(jnp.asarray(g), state, theta)
        theta = optax.apply_updates(theta, updates)
        expected = np.average(left, axis=0, weights=sizes) if left else theta
        np.testing.assert_allclose(aj.eval_params(state, theta), expected, rtol=1e-5)


def test_the_size_of_steps_must_be_told() -> None:
    tail = aj.average_iterates(kind="weighted", weights="step_size")
    tx, params = aj.compose(aj.adamw(0.1), tail), jnp.ones(2)
    with pytest.raises(
        ValueError, match=r"needs a stage that reports its step size.* add scale_by_norm"
    ):
        tx.update(params, tx.init(params), params)
    with pytest.raises(TypeError, match=r"average_weight must be a number .* got 'steps'"):
        aj.average_iterates(kind="weighted", weights="steps")


def test_iterates_that_no_step_leaves_have_no_weight() -> None:
    """At a learning rate of 0 they are given until one has a weight."""
    rates = jnp.array([0.0, 0.0, 0.0, 0.1, 0.1, 0.1])
    tail = aj.average_iterates(kind="weighted", weights="step_size")
    tx = aj.compose(aj.norm_adaptive_sgd(lambda t: rates[t]), tail)
    params = start = jnp.array([1.0, 2.0])
    state = tx.init(params)
    for _ in range(4):
        assert_close(aj.eval_params(state, params), start)
        updates, state = tx.update(params, state, params)
        params = optax.apply_updates(params, updates)
    assert float(params[0]) < 1.0


def test_gradients_of_zero_give_no_weight() -> None:
    """Nothing divides them without a floor, and the step that does not move is no long one."""
    tail = aj.average_iterates(kind="weighted", weights="step_size")
    tx, params = aj.compose(aj.norm_adaptive_sgd(0.1, floor=0.0), tail), jnp.array([1.0, 2.0])
    state = tx.init(params)
    for t in range(4):
        updates, state = tx.update(params if t > 1 else jnp.zeros(2), state, params)
        params = optax.apply_updates(params, updates)
    assert float(aj.eval_params(state, params)[0]) < 1.0


@pytest.mark.parametrize("name", ["gadam", "gadamx"])
def test_other_averages_of_gadam(name: str) -> None:
    """Its average is ``average_iterates`` of any kind."""
    with pytest.raises(ValueError, match=r"average_decay is for kind=.* leave average_decay"):
        getattr(aj, name)(0.05, average_decay=0.9)
    arguments = sample_params(), sample_gradients(6)
    inner = {"gadam": aj.adamw(0.05, weight_decay=None), "gadamx": aj.padam(0.05, amsgrad=True)}
    for options, same in (
        ({"kind": "ema", "average_decay": 0.5}, {"kind": "ema", "decay": 0.5}),
        ({"kind": "last", "window": 2}, {"kind": "last", "window": 2}),
        ({"kind": "weighted", "average_weight": 2.0}, {}),
    ):
        theta, state = run(getattr(aj, name)(0.05, **options), *arguments)
        plain, kept = run(aj.compose(inner[name], aj.average_iterates(**same)), *arguments)
        assert_close(theta, plain)
        got, expected = aj.eval_params(state, theta), aj.eval_params(kept, plain)
        assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_two_averages_are_asked_for_by_part() -> None:
    """The error says to name the part of the state, and the part gives its average."""
    params, gradients = sample_params(), sample_gradients(5)
    tx = COMBINATIONS["diffGrad, Lookahead, averaging"]()
    theta, state = run(tx, params, gradients)
    with pytest.raises(ValueError, match=r"such as state\.stages\['lookahead'\]"):
        aj.eval_params(state, theta)
    mean = aj.eval_params(state.stages["average_iterates"], theta)
    slow = aj.eval_params(state.stages["lookahead"], theta)
    assert_finite((mean, slow))
    assert not np.allclose(mean["scale"], slow["scale"])


def test_averages_of_other_leaves_are_no_averages_of_these() -> None:
    """A tree with one level more, as Flax has it, would otherwise come back as it is."""
    tx = aj.compose(aj.adamw(0.1), aj.average_iterates())
    theta, state = run(tx, sample_params(), sample_gradients(3))
    with pytest.raises(ValueError, match=r"averages of \['dense/bias'.*give the tree that init"):
        aj.eval_params(state, {"params": theta})
    part = optax.masked(tx, {"dense": True, "scale": False})  # fewer averages than parameters
    theta, state = run(part, sample_params(), sample_gradients(3))
    np.testing.assert_array_equal(aj.eval_params(state, theta)["scale"], theta["scale"])


def test_pnm_without_its_negative_part_is_two_momenta_by_turns() -> None:
    """b0 = 0: odd and even steps have each a momentum of their own, with rate b1^2."""
    gradients = sample_gradients(6)["dense"]["bias"]
    got, _ = run(aj.pnm(0.1, b0=0.0, weight_decay=None), jnp.zeros(3), gradients)
    held, theta = [np.zeros(3), np.zeros(3)], np.zeros(3)
    for t in range(6):
        held[t % 2] = 0.81 * held[t % 2] + 0.19 * np.asarray(gradients[t])
        theta = theta - 0.1 * held[t % 2]
    np.testing.assert_allclose(got, theta, rtol=1e-5)


def test_iterates_of_no_weight() -> None:
    """They are given until one has a weight, which then stands alone."""
    seen, nothing = jnp.float32(0.25), jnp.float32(0.0)
    tx = aj.compose(
        aj.sgdw(0.1),
        aj.average_iterates(kind="weighted", weights=lambda t: jnp.where(t == 2, seen, nothing)),
    )
    params, states = jnp.array([1.0, -1.0]), []
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update(jnp.ones(2), state, params)
        params = optax.apply_updates(params, updates)
        states.append(params)
        expected = states[2] if len(states) > 2 else states[-1]
        assert_close(aj.eval_params(state, params), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["equal", "weighted", "ema", "last"])
def test_the_average_of_parameters_that_stand_still(kind: str) -> None:
    tx = aj.compose(aj.sgdw(0.1), aj.average_iterates(kind=kind))
    params = jnp.array([1.5, -2.0])
    got, state = run(tx, params, jnp.zeros((4, 2)))
    np.testing.assert_array_equal(aj.eval_params(state, got), params)


def test_lookahead_by_name_takes_the_fate_of_the_inner_state() -> None:
    """``inner_state`` makes the wrapper."""
    arguments = sample_params(), sample_gradients(5)
    made = aj.create("lookahead_adamw", 0.05, sync_period=2, inner_state="reset")
    wrapped = aj.lookahead(aj.adamw(0.05), 2, inner_state="reset")
    kept = aj.create("lookahead_adamw", 0.05, sync_period=2)
    assert_close(run(made, *arguments)[0], run(wrapped, *arguments)[0])
    assert not np.allclose(run(made, *arguments)[0]["scale"], run(kept, *arguments)[0]["scale"])


def test_decay_and_rules_are_not_clipped() -> None:
    """A huge gradient elsewhere leaves the decay, and a multiplier shortens a clipped step."""
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.full(2, 3.0)}
    gradient = {"a": jnp.array([600.0, 800.0]), "b": jnp.zeros(2)}

    def step(**options: Any) -> Any:
        tx = aj.clipped_sgd(0.1, max_step=0.5, **options)
        return tx.update(gradient, tx.init(params), params)[0]

    assert_close(step(weight_decay=0.1)["b"], -0.1 * 0.1 * params["b"])
    assert_close(optax.tree.norm(step()), 0.5)
    rules = aj.parameter_rules({"a": aj.Rule(learning_rate_factor=0.5), "b": aj.Rule()})
    assert_close(optax.tree.norm(step(rules=rules)), 0.25)


@pytest.mark.parametrize("name", ["clipped_sgd", "normalized_sgd"])
def test_lengths_leaf_by_leaf(name: str) -> None:
    """As one optimizer for every leaf."""
    params, gradient = sample_params(), jax.tree.map(lambda g: g[0], sample_gradients())
    options = {"max_step": 0.05} if name == "clipped_sgd" else {}
    tx = aj.create(name, 0.1, per_leaf=True, **options)
    alone = aj.create(name, 0.1, **options)
    got = tx.update(gradient, tx.init(params), params)[0]
    expected = jax.tree.map(lambda g, p: alone.update(g, alone.init(p), p)[0], gradient, params)
    assert_close(got, expected)


def test_clipped_sgd_is_a_clip_by_the_global_norm() -> None:
    """At the norm max_step / learning_rate."""
    params, gradients = sample_params(), sample_gradients(6)
    ours = aj.clipped_sgd(0.1, max_step=0.05)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
        expected, _ = run(theirs, params, gradients)
    assert_close(run(ours, params, gradients)[0], expected)


def test_normalized_sgd_is_optaxs_normalised_update() -> None:
    params, gradients = sample_params(), sample_gradients(6)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.chain(optax.normalize_by_update_norm(), optax.scale(-0.1))
        expected, _ = run(theirs, params, gradients)
    assert_close(run(aj.normalized_sgd(0.1), params, gradients)[0], expected)


def test_a_correction_that_would_not_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match="corrected=True"):
        aj.generalized_signsgd(0.1, bias_correction="current")
    aj.generalized_signsgd(0.1, bias_correction="current", corrected=True)
