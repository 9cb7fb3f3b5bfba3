"""KOALA in use: what ``update`` needs, wrappers, errors, precision."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import (
    compensated_rounding,
    compose,
    eval_params,
    hyperparams,
    koala_m,
    koala_v,
    lookahead,
    quantize_state,
    scale_by_koala_v,
    stochastic_rounding,
)
from adamw_jax.moments import MomentumFilterState
from adamw_jax.moments._momentum_filter import Covariance
from tests.catalogue import (
    assert_close,
    assert_equal,
    assert_finite,
    at,
    avals,
    sample_gradients,
    sample_params,
)
from tests.test_kalman import ONE, both, memory, step

pytestmark = pytest.mark.quick

# What ``update`` needs.


@both
def test_a_missing_loss_is_named(factory: Any) -> None:
    params = sample_params()
    tx = factory()
    with pytest.raises(ValueError, match=r"got no value: call tx\.update\(gradients, state, params,"
                       r" value=loss\)"):  # fmt: skip
        tx.update(at(sample_gradients(), 0), tx.init(params), params)
    for bad, error in ((jnp.ones(2), ValueError), ("1.0", TypeError), (True, TypeError)):
        with pytest.raises(error, match="value, the loss, is"):
            tx.update(at(sample_gradients(), 0), tx.init(params), params, value=bad)
        with pytest.raises(error, match="value_sq_mean is"):
            tx.update(
                at(sample_gradients(), 0), tx.init(params), params, value=ONE, value_sq_mean=bad
            )


@pytest.mark.sample(1)
@both
def test_wrappers_pass_the_loss_on(factory: Any) -> None:
    params, gradient = sample_params(), at(sample_gradients(), 0)
    make = functools.partial(factory, r=1.0)
    plain, loss = make(), jnp.float32(2.5)
    expected, _ = plain.update(gradient, plain.init(params), params, value=loss)
    for tx in (
        optax.chain(optax.clip(1e9), make()),
        compose(optax.clip(1e9), make()),
        optax.masked(make(), jax.tree.map(lambda _: True, params)),
        optax.apply_if_finite(make(), 3),
        optax.inject_hyperparams(make)(learning_rate=1.0),
        optax.MultiSteps(make(), 1),
        lookahead(make(), 5, 0.5),
        optax.partition({"all": make()}, jax.tree.map(lambda _: "all", params)),
        quantize_state(make()),
        compose(make(), stochastic_rounding(0)),
        compose(make(), compensated_rounding()),
    ):
        with jax.numpy_dtype_promotion("standard"):  # for MultiSteps
            updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params, value=loss)
        assert_close(updates, expected, rtol=1e-5)


def test_the_direction_alone() -> None:
    params, gradient = sample_params(), at(sample_gradients(), 0)
    alone = optax.chain(scale_by_koala_v(r=1.0), optax.scale(-0.5))
    whole = koala_v(0.5, r=1.0)
    assert_close(
        alone.update(gradient, alone.init(params), value=ONE)[0],
        whole.update(gradient, whole.init(params), value=ONE)[0],
    )


@both
def test_what_has_no_meaning_is_refused(factory: Any) -> None:
    cases: dict[str, Any] = {
        "decay": "fixed", "l2": 0.1, "base_learning_rate": 0.1, "amsgrad": True, "rectify": True,
        "eps_hat": True,
    }  # fmt: skip
    if factory is koala_v:
        cases["state_dtype"] = jnp.bfloat16
    for name, value in cases.items():
        with pytest.raises(TypeError, match=f"does not take {name}: its decay is in the loss"):
            factory(**{name: value})
    with pytest.raises(ValueError, match="mask selects the leaves that decay"):
        factory(mask="*/kernel")
    with pytest.raises(TypeError, match="rules must be parameter_rules"):
        factory(rules={"*": 1.0})
    with pytest.raises(TypeError, match="did you mean 'learning_rate'"):
        factory(lr=1.0)


def test_numbers_out_of_range() -> None:
    for options in ({"sigma": -1.0}, {"q": -0.1}, {"r": -1.0}, {"alpha_r": 1.0},
                    {"target": float("inf")}):  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a"):
            koala_v(**options)
    for options in ({"kappa": 1.5}, {"sw": -1.0}, {"sv": -0.1}, {"qw": -1.0}, {"qv": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be a"):
            koala_m(**options)
    with pytest.raises(ValueError, match=r"must be at most sqrt\(sw sv\) = 0.1"):
        koala_m(sc=0.2)
    assert isinstance(koala_m(sc=-0.1), optax.GradientTransformation)


@both
def test_trees_that_do_not_fit(factory: Any) -> None:
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = factory()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"missing leaves \['scale'\]"):
        tx.update({"dense": gradient["dense"]}, state, params, value=ONE)
    with pytest.raises(ValueError, match=r"'scale' has shape \(4,\)"):
        tx.update({**gradient, "scale": jnp.ones(4)}, state, params, value=ONE)
    with pytest.raises(TypeError, match="int32"):
        tx.init({"w": jnp.ones(2, jnp.int32)})
    with pytest.raises(TypeError, match="int32"):
        tx.update({**gradient, "scale": jnp.int32(1)}, state, params, value=ONE)


# Precision.


@pytest.mark.parametrize("r", [None, 0.0], ids=["adaptive", "noiseless"])
@both
def test_zero_gradients(factory: Any, r: float | None) -> None:
    """Nothing moves and only P grows, without NaN, also in the derivative."""
    params = sample_params()
    zeros = jax.tree.map(jnp.zeros_like, params)
    tx = factory(r=r)
    state, kept = tx.init(params), params
    with jax.debug_nans(True):
        for _ in range(3):
            kept, state = step(tx, zeros, state, kept, value=ONE)
    assert_equal(kept, params)
    if factory is koala_v:
        assert float(memory(state).variance) == pytest.approx(3.1, rel=1e-6)

    def after(gradient: Any) -> Any:
        updates, _ = tx.update(gradient, tx.init(params), params, value=ONE)
        return sum(jnp.sum(u) for u in jax.tree.leaves(updates))

    assert_finite(jax.grad(after)(zeros))
    assert_finite(jax.grad(after)(at(sample_gradients(), 0)))


@both
def test_float32_stays_positive(factory: Any) -> None:
    """10^4 steps with gradients from 1e-6 to 1e3: P stays a covariance, and near float64's."""
    rng = np.random.default_rng(5)
    scales = 10.0 ** rng.uniform(-6, 3, size=(10_000, 1))
    gradients = rng.normal(size=(10_000, 4)) * scales
    losses = rng.uniform(0.0, 10.0, size=10_000)

    def covariances(dtype: Any) -> list[np.ndarray]:
        tx = factory(0.01)
        params = jnp.zeros(4, dtype)

        def one(carry: Any, given: Any) -> Any:
            params, state = step(tx, given[0], carry[1], carry[0], value=given[1])
            now = memory(state)
            kept = now.covariance if isinstance(now, MomentumFilterState) else (now.variance,)
            return (params, state), (*kept, now.noise)

        given = [jnp.asarray(x.astype(np.float32), dtype) for x in (gradients, losses)]
        scan = jax.jit(lambda given: jax.lax.scan(one, (params, tx.init(params)), given)[1])
        return [np.asarray(x, np.float64) for x in scan((given[0], given[1]))]

    low = covariances(jnp.float32)
    with jax.enable_x64(True):
        high = covariances(jnp.float64)
    assert_finite(low)
    assert np.all(low[0] > 0)
    assert np.all(low[-1] > 0)
    np.testing.assert_allclose(low[0], high[0], rtol=1e-3)
    if factory is koala_m:
        p, cross, velocity, _ = low
        assert np.all(velocity > 0)
        assert np.all(cross**2 <= p * velocity * (1 + 1e-5))


def test_the_correction_of_a_singular_covariance() -> None:
    """Perfect correlation, from which rounding would make a negative variance."""
    p = Covariance(*(jnp.float32(x) for x in (1.0, 1.1, 1.21)))
    got = p.corrected(jnp.float32(1e-7), (1 - jnp.float32(1e-7)) / p.parameter)
    assert float(got.velocity) > 0
    assert float(got.cross) ** 2 <= float(got.parameter) * float(got.velocity) * (1 + 1e-5)


@pytest.mark.sample(3)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
@both
def test_dtypes(factory: Any, dtype: Any) -> None:
    """Updates have the gradient's dtype, states keep theirs, in one compilation."""
    params, gradients = sample_params(dtype), sample_gradients(dtype=dtype)
    tx = factory(weight_decay=0.1)
    state = tx.init(params)
    shapes = jax.eval_shape(lambda: params)
    assert avals(tx.init(shapes)) == avals(state) == avals(jax.jit(tx.init)(params))
    update = jax.jit(tx.update)
    for t in range(3):
        updates, after = update(at(gradients, t), state, params, value=ONE, value_sq_mean=ONE)
        assert avals(updates) == avals(params)
        assert avals(after) == avals(state)
        assert {x.dtype for x in jax.tree.leaves(memory(after)) if x.ndim == 0} == {
            jnp.dtype(jnp.float32), *({jnp.dtype(dtype)} if dtype == jnp.complex64 and
                                      factory is koala_m else ())
        }  # fmt: skip
        state = after
    assert update._cache_size() == 1
    assert_finite(updates)


def test_narrow_state_moves_by_what_it_keeps() -> None:
    """With a bfloat16 velocity the evaluated parameters stay where the measurement put them."""
    params, gradients = sample_params(), sample_gradients(6)
    exact, narrow = koala_m(qw=0.0), koala_m(qw=0.0, state_dtype=jnp.bfloat16)
    states, held = [exact.init(params), narrow.init(params)], [params, params]
    for t in range(6):
        for i, tx in enumerate((exact, narrow)):
            held[i], states[i] = step(tx, at(gradients, t), states[i], held[i], value=ONE)
    assert {x.dtype for x in jax.tree.leaves(memory(states[1]).velocity)} == {
        jnp.dtype(jnp.bfloat16)
    }
    a, b = (eval_params(s, p) for s, p in zip(states, held, strict=True))
    assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.sample(1)
@both
def test_numbers_may_be_schedules_tracers_and_pinned(factory: Any) -> None:
    params, gradient = sample_params(), at(sample_gradients(), 0)
    expected = step(factory(0.25), gradient, factory(0.25).init(params), params, value=ONE)[0]
    scheduled = factory(lambda count: 0.25)
    got = step(scheduled, gradient, scheduled.init(params), params, value=ONE)[0]
    assert_equal(got, expected)

    def displaced(rate: Any) -> Any:
        tx = factory(rate)
        return step(tx, gradient, tx.init(params), params, value=ONE)[0]

    lanes = jax.vmap(displaced)(jnp.array([0.25, 1.0]))
    assert_close(jax.tree.map(lambda x: x[0], lanes), expected, rtol=1e-6)
    assert_finite(jax.jacobian(displaced)(0.25))
    names = {"learning_rate", "target", "alpha_r"}
    own = {"q"} if factory is koala_v else {"kappa", "qv"}
    assert set(hyperparams(factory().init(params))) == names | own
    assert "r" in hyperparams(factory(r=1.0).init(params))


@both
@pytest.mark.parametrize(
    ("loud", "bad"),
    [
        ("gradient", 3e19),  # what is not finite there is seen in the parameters, as below
        *(("loss", bad) for bad in (3e19, np.inf, np.nan)),
        *(("mean of squares", bad) for bad in (np.inf, np.nan)),
    ],
)
def test_what_is_not_finite_is_not_remembered(factory: Any, bad: float, loud: str) -> None:
    """A loss or gradient that overflows squared says nothing: P and R stay, nothing is NaN."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = factory(alpha_r=0.5)
    _, state = step(tx, gradient, tx.init(params), params, value=ONE)
    error, value, extra = gradient, ONE, {}
    if loud == "gradient":
        error = jax.tree.map(lambda g: jnp.full_like(g, bad), gradient)
    elif loud == "loss":
        value = jnp.float32(bad)
    else:
        extra = {"value_sq_mean": jnp.float32(bad)}
    held, after = step(tx, error, state, params, value=value, **extra)
    kept = memory(after)._asdict()
    assert_finite([kept[name] for name in ("variance", "covariance", "noise") if name in kept])
    if not np.isnan(bad):
        assert_finite((held, after))
    if factory is koala_v:
        assert float(memory(after).variance) == pytest.approx(float(memory(state).variance) + 1)
        if loud != "gradient":
            assert float(memory(after).noise) == float(memory(state).noise)
    if not np.isnan(bad):
        assert_finite(step(tx, gradient, after, held, value=ONE))


@both
def test_a_nan_is_not_passed_over(factory: Any) -> None:
    """Not taken for a silent leaf: it is NaN at once, and all the next step is."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    bad = {**gradient, "scale": jnp.full_like(gradient["scale"], jnp.nan)}
    tx = factory()
    held, state = step(tx, bad, tx.init(params), params, value=ONE)
    assert np.isnan(held["scale"])
    held, _ = step(tx, gradient, state, params, value=ONE)
    assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(held))
    guarded = optax.apply_if_finite(factory(), 3)
    held, state = step(guarded, bad, guarded.init(params), params, value=ONE)
    assert_equal(held, params)
    assert_finite(step(guarded, gradient, state, held, value=ONE)[0])
