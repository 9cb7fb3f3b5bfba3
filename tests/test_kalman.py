"""KOALA: the filters' recorded trajectories, formulas and limits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import Rule, compose, eval_params, lookahead, parameter_rules
from adamw_jax.moments import LossFilterState
from adamw_jax.optimizers import koala_m, koala_v
from tests.catalogue import (
    assert_close,
    assert_equal,
    at,
    sample_gradients,
    sample_params,
)
from tests.golden_cases import CASES, Case
from tests.golden_koala import ROWS
from tests.golden_replay import assert_matches, assert_matches_in_float32, replay

pytestmark = pytest.mark.quick

both = pytest.mark.parametrize("factory", [koala_v, koala_m], ids=["koala_v", "koala_m"])
RECORDED = [case for case in CASES if case.system in ("KOALA-V", "KOALA-M")]
ONE = jnp.float32(1.0)


def arguments(case: Case) -> dict[str, Any]:
    row = next(row for row in ROWS[case.system, ""] if row.fits(case))
    return row.arguments(case)


def function(case: Case) -> Any:
    return next(row for row in ROWS[case.system, ""] if row.fits(case)).function


def memory(state: Any) -> Any:
    """The state of the one stage with a state."""
    (found,) = state.stages.values()
    return found


def step(tx: Any, gradient: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
    updates, state = tx.update(gradient, state, params, **extra)
    return optax.apply_updates(params, updates), state


# Recorded trajectories.


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.label)
def test_recorded_parameters(case: Case) -> None:
    with jax.enable_x64(True):
        assert_matches(case, replay(case, function(case)(**arguments(case))))
    assert_matches_in_float32(case, replay(case, function(case)(**arguments(case))))


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.label)
@pytest.mark.usefixtures("x64")
def test_recorded_state_and_predictions(case: Case) -> None:
    """The point of every gradient, covariance, noises and velocity, not only the parameters."""
    options = arguments(case)
    loss, mean_square = options.pop("loss"), options.pop("mean_square")
    tx = (koala_v if case.system == "KOALA-V" else koala_m)(**options)
    rtol, atol = case.tolerance

    def check(name: str, t: int, got: Any) -> None:
        want = case.arrays[name][t]
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=f"{name}, step {t}")

    params = {leaf: jnp.asarray(case.arrays[f"params_0_{leaf}"]) for leaf in case.leaves}
    state, update = tx.init(params), jax.jit(functools.partial(step, tx))
    for t in range(len(case.arrays["loss"])):
        for leaf in case.leaves:
            check(f"params_pred_{leaf}", t, params[leaf])
        gradient = {leaf: jnp.asarray(case.arrays[f"grads_{leaf}"][t]) for leaf in case.leaves}
        count = jnp.int32(t)
        params, state = update(
            gradient, state, params, value=loss(count), value_sq_mean=mean_square(count)
        )
        now = memory(state)
        check("R", t, now.noise)
        if isinstance(now, LossFilterState):
            check("P", t, now.variance)
            continue
        p = now.covariance
        check("P", t, np.array([[p.parameter, p.cross], [p.cross, p.velocity]]))
        check("Qw", t, now.drift)
        for leaf in case.leaves:
            check(f"velocity_{leaf}", t, now.velocity[leaf])


# Formulas and limits of KOALA-V.


@pytest.mark.parametrize("target", [0.0, -1.5])
def test_without_noise_it_is_polyaks_step(target: float) -> None:
    """(loss - target) / |g|^2 g in every leaf, whatever the variance is."""
    params, gradients = sample_params(), sample_gradients(4)
    tx = koala_v(0.5, r=0.0, sigma=0.3, q=0.2, target=target)
    state = tx.init(params)
    for t, loss in enumerate([3.0, 0.5, 1e-3, 40.0]):
        gradient = at(gradients, t)
        updates, state = tx.update(gradient, state, params, value=jnp.float32(loss))
        expected = jax.tree.map(lambda g: -0.5 * (loss - target) / jnp.sum(g * g) * g, gradient)  # noqa: B023
        assert_close(updates, expected, rtol=1e-5)
        assert float(memory(state).variance) == 0.0


@pytest.mark.parametrize(("q", "r", "norm"), [(1.0, 1.0, 1.0), (0.1, 4.0, 3.0), (2.0, 1e-3, 0.1)])
def test_the_variance_settles(q: float, r: float, norm: float) -> None:
    """At (q + sqrt(q^2 + 4 q R / |g|^2)) / 2 before a measurement."""
    gradient = norm * jnp.array([0.6, 0.8])
    tx = koala_v(q=q, r=r, sigma=7.0)

    def many(state: Any) -> Any:
        body = lambda _, state: tx.update(gradient, state, gradient, value=ONE)[1]  # noqa: E731
        return jax.lax.fori_loop(0, 200, body, state)

    predicted = float(memory(jax.jit(many)(tx.init(gradient))).variance) + q
    assert predicted == pytest.approx((q + np.sqrt(q**2 + 4 * q * r / norm**2)) / 2, rel=1e-5)


def test_no_step_exceeds_polyaks() -> None:
    params, gradients = sample_params(), sample_gradients(8)
    tx = koala_v()
    state = tx.init(params)
    for t in range(8):
        gradient = at(gradients, t)
        updates, state = tx.update(gradient, state, params, value=jnp.float32(2.0))
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(gradient), strict=True):
            assert float(jnp.linalg.norm(u)) <= 2.0 / float(jnp.linalg.norm(g)) * (1 + 1e-5)


def test_the_leaf_that_says_most_sets_the_variance() -> None:
    """P - P^2 max(|g|^2 / S), while every leaf moves by its own S."""
    gradient = {"large": jnp.array([3.0, 4.0]), "small": jnp.array([0.5]), "zero": jnp.zeros(2)}
    tx = koala_v(sigma=1.0, q=1.0, r=2.0)
    updates, state = tx.update(gradient, tx.init(gradient), gradient, value=jnp.float32(3.0))
    assert_close(
        updates,
        {
            "large": -3.0 * 2.0 / (2.0 * 25 + 2) * gradient["large"],
            "small": -3.0 * 2.0 / (2.0 * 0.25 + 2) * gradient["small"],
            "zero": jnp.zeros(2),
        },
        rtol=1e-6,
    )
    assert float(memory(state).variance) == pytest.approx(2.0 - 4.0 * 25 / 52, rel=1e-6)


def test_a_loss_below_the_target_turns_the_step_around() -> None:
    gradient = jnp.array([1.0, -2.0])

    def update(loss: float, **options: Any) -> Any:
        tx = koala_v(r=1.0, **options)
        return tx.update(gradient, tx.init(gradient), gradient, value=jnp.float32(loss))[0]

    assert_equal(update(-2.0), -update(2.0))
    assert float(update(-2.0)[0]) > 0 > float(update(-2.0, target=-3.0)[0])
    assert_close(update(-2.0, target=-3.0), update(1.0), rtol=1e-6)


@pytest.mark.parametrize("target", [0.0, 0.75])
@both
def test_the_noise_is_the_mean_square_over_the_examples(factory: Any, target: float) -> None:
    """R = 0.9 R + 0.1 mean (loss_i - target)^2; the square of the mean where only that is given."""
    losses = np.array([0.5, 3.0, 1.0, 0.25])
    gradient = jnp.ones(2)
    tx = factory(target=target)
    given = {"value": jnp.float32(losses.mean())}
    exact = {**given, "value_sq_mean": jnp.float32((losses**2).mean())}
    for extra, square in ((exact, ((losses - target) ** 2).mean()),
                          (given, (losses.mean() - target) ** 2)):  # fmt: skip
        _, state = tx.update(gradient, tx.init(gradient), gradient, **extra)
        assert float(memory(state).noise) == pytest.approx(0.9 + 0.1 * square, rel=1e-6)


# Decay is a term of the loss.


@pytest.mark.parametrize(
    "factory",
    [functools.partial(koala_v, decay_in_direction=True), koala_m],
    ids=["koala_v", "koala_m"],
)
def test_decay_is_the_l2_term_of_the_loss(factory: Any) -> None:
    """As if loss and gradient had it, of a single leaf."""
    wd, params, gradients = 0.3, jnp.array([1.0, -2.0, 0.5]), sample_gradients(4)["dense"]["bias"]
    decayed, plain = factory(weight_decay=wd), factory()
    a = b = params
    state_a, state_b = decayed.init(params), plain.init(params)
    for t in range(4):
        extra = {"value_sq_mean": jnp.float32(2.0)}
        g = gradients[t]
        a_next = step(decayed, g, state_a, a, value=ONE, **extra)
        loss = ONE + 0.5 * wd * jnp.sum(b * b)
        b, state_b = step(plain, g + wd * b, state_b, b, value=loss, **extra)
        a, state_a = a_next
        assert_close(a, b, rtol=1e-5)


def test_the_authors_decay_of_koala_v_is_not_in_the_direction() -> None:
    params, gradient = jnp.array([1.0, -2.0]), jnp.array([0.0, 3.0])
    for along, moves in ((False, False), (True, True)):
        tx = koala_v(weight_decay=0.5, decay_in_direction=along)
        updates, _ = tx.update(gradient, tx.init(params), params, value=ONE)
        assert bool(updates[0] != 0) is moves
        assert float(updates[1]) != 0


@both
def test_masks_and_rules(factory: Any) -> None:
    """Decay by name, a multiplier of the step, and leaves that stand still."""
    params, gradient = sample_params(), at(sample_gradients(), 0)

    def after(**options: Any) -> Any:
        tx = factory(r=1.0, **options)
        return tx.update(gradient, tx.init(params), params, value=ONE)[0]

    plain, decayed = after(), after(weight_decay=0.5)
    masked = after(weight_decay=0.5, mask="*/kernel")
    assert_equal(masked["scale"], plain["scale"])
    assert_equal(masked["dense"]["kernel"], decayed["dense"]["kernel"])
    assert not np.array_equal(decayed["scale"], plain["scale"])
    slow = {"dense/*": Rule(learning_rate_factor=0.5, weight_decay=0.0), "scale": Rule()}
    ruled = after(weight_decay=0.5, rules=parameter_rules(slow))
    assert_close(ruled["dense"], jax.tree.map(lambda u: 0.5 * u, plain["dense"]), rtol=1e-6)
    assert_close(ruled["scale"], decayed["scale"], rtol=1e-6)
    frozen = after(rules=parameter_rules({"dense/*": Rule(), "scale": Rule(freeze=True)}))
    assert_equal(frozen["scale"], jnp.zeros_like(frozen["scale"]))
    assert np.all(frozen["dense"]["kernel"] * gradient["dense"]["kernel"] <= 0)


@both
def test_stacked_layers_are_as_layers_of_their_own(factory: Any) -> None:
    """Also a silent one, and one that alone has a gradient worth hearing."""
    options: dict[str, Any] = {"weight_decay": 0.1}
    rows = [jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])]
    alone = {"b": jnp.ones(2), **{f"w{i}": row for i, row in enumerate(rows)}}
    held = {"b": jnp.ones(2), "w": jnp.stack(rows)}
    one, other = factory(**options), factory(stacked="w", **options)
    state, other_state = one.init(alone), other.init(held)
    for t in range(3):
        value = jnp.float32(2.0 - t)
        gradients = {"b": 0.1 * alone["b"], "w0": alone["w0"], "w1": 9.0 * alone["w1"]}
        gradients["w2"] = jnp.zeros(2)
        both_gradients = {
            "b": gradients["b"],
            "w": jnp.stack([gradients[f"w{i}"] for i in range(3)]),
        }
        alone, state = step(one, gradients, state, alone, value=value)
        held, other_state = step(other, both_gradients, other_state, held, value=value)
        assert_close(held["w"], jnp.stack([alone[f"w{i}"] for i in range(3)]), rtol=1e-6)
        assert_close(held["b"], alone["b"], rtol=1e-6)
    shared = factory(**options)
    updates = shared.update(both_gradients, shared.init(held), held, value=ONE)[0]
    own = other.update(both_gradients, other.init(held), held, value=ONE)[0]
    assert not np.allclose(updates["w"], own["w"])
    assert_equal(updates["b"], own["b"])


@both
def test_one_layer_of_all_leaves_is_one_long_leaf(factory: Any) -> None:
    options: dict[str, Any] = {"weight_decay": 0.1, "r": 0.3}
    apart, long = (
        {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])},
        jnp.array([1.0, -2.0, 0.5]),
    )
    tx, other = factory(per_leaf=False, **options), factory(**options)
    state, other_state = tx.init(apart), other.init(long)
    for value in (3.0, 2.0, 2.5):
        gradient = 0.7 * long + 0.1
        pieces = {"a": gradient[:2], "b": gradient[2:].reshape(1, 1)}
        apart, state = step(tx, pieces, state, apart, value=jnp.float32(value))
        long, other_state = step(other, gradient, other_state, long, value=jnp.float32(value))
        assert_close(jnp.append(apart["a"], apart["b"]), long, rtol=1e-5)
    with pytest.raises(ValueError, match="stacked names leaves of several layers"):
        factory(per_leaf=False, stacked="*")


@both
def test_a_scalar_stacks_no_layers(factory: Any) -> None:
    tx = factory(stacked=lambda params: jax.tree.map(lambda _: True, params))
    params = {"scale": jnp.ones([])}
    with pytest.raises(ValueError, match="stacked names 'scale', a scalar"):
        tx.update(params, tx.init(params), params, value=ONE)


# KOALA-M.


def test_without_kappa_there_is_no_velocity() -> None:
    """Then it is KOALA-V with the process noise Q + qv, the velocity variance being qv."""
    gradients = np.asarray(sample_gradients(5)["dense"]["bias"])
    theta = params = jnp.array([0.5, -1.0, 0.25])
    tx = koala_m(kappa=0.0, r=1.5, sw=0.2, sv=0.3, qv=0.05)
    state = tx.init(params)
    p, p_velocity = 0.2, 0.3
    for g in gradients:
        params, state = step(tx, jnp.asarray(g), state, params, value=jnp.float32(2.0))
        now = memory(state)
        p, p_velocity = p + p_velocity + float(now.drift), 0.05
        spread = p * float(g @ g) + 1.5
        theta = np.asarray(theta) - p * 2.0 / spread * g
        p = p * 1.5 / spread
        np.testing.assert_allclose(params, theta, rtol=1e-5)
        assert_equal(eval_params(state, params), params)
        assert float(now.covariance.parameter) == pytest.approx(p, rel=1e-5)
        assert float(now.covariance.velocity) == pytest.approx(p_velocity, rel=1e-5)


def test_the_velocity_moves_what_has_no_gradient() -> None:
    """By kappa p at every step, and ``eval_params`` lags one such move behind."""
    tx = koala_m(kappa=0.5)
    params, gradient = jnp.array([1.0, -1.0]), jnp.array([2.0, 1.0])
    state = tx.init(params)
    assert_equal(eval_params(state, params), params)
    before = params
    params, state = step(tx, gradient, state, params, value=ONE)
    velocity = memory(state).velocity
    assert_close(params - velocity, eval_params(state, params), rtol=1e-6)
    assert not np.allclose(velocity, 0)
    assert float(jnp.sum((eval_params(state, params) - before) * gradient)) < 0
    for i in range(1, 4):
        held = params
        params, state = step(tx, jnp.zeros(2), state, params, value=ONE)
        assert_close(params - held, velocity * 0.5**i, rtol=1e-4, atol=1e-7)
        assert_close(eval_params(state, params), held, rtol=1e-6)


def test_the_papers_process_noise() -> None:
    """|E - theta|^2 / n, E holding the present parameters, of the parameters before prediction."""
    tx = koala_m(squared_drift=True, r=1.0)
    params, gradients = jnp.array([0.5, -1.0, 2.0]), sample_gradients(5)["dense"]["bias"]
    average = np.asarray(params, np.float64)
    state = tx.init(params)
    for t in range(5):
        present = np.asarray(eval_params(state, params), np.float64)
        average = 0.9 * average + 0.1 * present if t else present
        params, state = step(tx, gradients[t], state, params, value=ONE)
        expected = np.sum((average - present) ** 2) / 3
        assert float(memory(state).drift) == pytest.approx(expected, rel=1e-3, abs=1e-12)
        np.testing.assert_allclose(memory(state).average, average, rtol=1e-5)


def test_evaluation_under_wrappers() -> None:
    """Leaves of other optimizers are as they are; a second average is refused."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    labels = {"dense": "koala", "scale": "sgd"}
    tx = optax.partition({"koala": koala_m(), "sgd": optax.sgd(0.1)}, labels)
    params, state = step(tx, gradient, tx.init(params), params, value=ONE)
    got = eval_params(state, params)
    assert_equal(got["scale"], params["scale"])
    assert not np.allclose(got["dense"]["kernel"], params["dense"]["kernel"])
    doubled = compose(koala_m(), lookahead())
    with pytest.raises(ValueError, match="several averages"):
        eval_params(doubled.init(params), params)


# They learn.


@pytest.mark.parametrize("factory", [koala_v, koala_m], ids=["koala_v", "koala_m"])
def test_least_squares(factory: Any) -> None:
    """Loss and gradient at the parameters held; from noise-free data to a hundredth of the loss."""
    rng = np.random.default_rng(2)
    features = jnp.asarray(rng.normal(size=(64, 5)), jnp.float32)
    targets = features @ jnp.asarray(rng.normal(size=5), jnp.float32)

    def loss_of(w: Any) -> Any:
        each = 0.5 * jnp.square(features @ w - targets)
        return jnp.mean(each), jnp.mean(jnp.square(each))

    tx = factory()

    def one(carry: Any, _: Any) -> Any:
        w, state = carry
        (loss, square), gradient = jax.value_and_grad(loss_of, has_aux=True)(w)
        return step(tx, gradient, state, w, value=loss, value_sq_mean=square), loss

    start = jnp.zeros(5)
    (w, state), losses = jax.jit(
        lambda: jax.lax.scan(one, (start, tx.init(start)), None, length=200)
    )()
    assert float(loss_of(eval_params(state, w))[0]) < 0.01 * float(losses[0])
