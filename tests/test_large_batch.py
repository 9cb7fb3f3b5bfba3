"""Trust ratios: LARS and LAMB against optax and against the formulas, and the stage by itself."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import adamw_jax as aj
from adamw_jax._core.masks import except_named, matrices_only
from adamw_jax.direction import scale_by_trust_ratio
from adamw_jax.optimizers import lamb, lars
from benchmarks import hlo
from tests.catalogue import (
    assert_close,
    assert_equal,
    assert_finite,
    at,
    avals,
    one_step,
    run,
    sample_gradients,
    sample_params,
)
from tests.hand_written import usual_norms

pytestmark = pytest.mark.quick

STEPS = 8
FACTORIES = {"lamb": lamb, "lars": lars}
CHOSEN = {"kernel": True, "bias": False, "zero": True, "still": True, "scale": False}
SCHEDULE = optax.linear_schedule(0.1, 0.01, STEPS)


def tree(rng: Any, dtype: Any, zero: str | None) -> Any:
    """Leaves of three ranks with elements of many sizes, one of them 0 throughout."""
    shapes = {"kernel": (4, 3), "bias": (5,), "zero": (3,), "still": (2, 2), "scale": ()}
    size = {k: 10.0 ** rng.uniform(-2, 1, s) for k, s in shapes.items()}
    values = {k: rng.normal(size=s) * size[k] * (k != zero) for k, s in shapes.items()}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), values)


def problem(dtype: Any, steps: int = STEPS) -> tuple[Any, Any]:
    """Parameters of which one leaf is zero, and gradients of which another is."""
    rng = np.random.default_rng(3)
    gradients = [tree(rng, dtype, "still") for _ in range(steps)]
    return tree(rng, dtype, "zero"), jax.tree.map(lambda *g: jnp.stack(g), *gradients)


CASES = [
    ("lamb", {}),
    ("lamb", {"weight_decay": 0.1}),
    ("lamb", {"weight_decay": SCHEDULE, "mask": matrices_only, "b1": 0.8, "eps_root": 1e-6}),
    ("lars", {}),
    ("lars", {"weight_decay": 0.1}),
    ("lars", {"weight_decay": SCHEDULE, "weight_decay_mask": CHOSEN, "eps": 1e-3}),
    ("lars", {"trust_ratio_mask": matrices_only, "trust_coefficient": 0.02, "nesterov": True}),
    ("lars", {"weight_decay": 0.1, "weight_decay_mask": False, "trust_ratio_mask": False}),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "")
def test_equal_to_optax_in_float64(x64: None, name: str, options: Any) -> None:
    params, gradients = problem(jnp.float64)
    got, _ = run(FACTORIES[name](SCHEDULE, **options), params, gradients)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = run(getattr(optax, name)(SCHEDULE, **options), params, gradients)
    assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [CASES[1], CASES[4]], ids=["lamb", "lars"])
def test_equal_to_optax_in_float32(name: str, options: Any) -> None:
    params, gradients = problem(jnp.float32)
    got, _ = run(FACTORIES[name](0.05, **options), params, gradients)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = run(getattr(optax, name)(0.05, **options), params, gradients)
    assert_close(got, expected, rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_optaxs_arguments_in_optaxs_order(name: str) -> None:
    theirs = inspect.signature(getattr(optax, name)).parameters
    ours = list(inspect.signature(FACTORIES[name]).parameters.values())
    for mine, (argument, parameter) in zip(ours, theirs.items(), strict=False):
        assert mine.name == argument
        assert mine.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert mine.default == parameter.default or (mine.default, parameter.default) == (None, 0.0)
    assert all(p.kind is p.KEYWORD_ONLY for p in ours[len(theirs) :])


@pytest.mark.parametrize("min_norm", [0.0, 2.0])
def test_the_stage_is_optaxs(x64: None, min_norm: float) -> None:
    params, gradients = problem(jnp.float64)
    options = {"min_norm": min_norm, "trust_coefficient": 0.3, "eps": 1e-2}
    ours, theirs = scale_by_trust_ratio(**options), optax.scale_by_trust_ratio(**options)
    gradient = at(gradients, 0)
    got, _ = ours.update(gradient, ours.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = theirs.update(gradient, theirs.init(params), params)
    assert_close(got, expected, rtol=1e-13)


# What the ratio is for.

scales = st.floats(1e-6, 1e6)


def moved(tx: Any, scale: Any) -> Any:
    params, gradients = sample_params(), sample_gradients(STEPS)
    return run(tx, params, jax.tree.map(lambda g: g * jnp.asarray(scale, g.dtype), gradients))[0]


moved_by_lars = jax.jit(lambda scale: moved(lars(0.5), scale))


@given(scale=scales)
def test_the_scale_of_the_loss_does_not_change_lars(scale: float) -> None:
    """The first step and, momentum being linear, all that follow."""
    assert_close(moved_by_lars(jnp.float32(scale)), moved_by_lars(jnp.float32(1.0)), rtol=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("power", [-20, 7])
def test_the_scale_of_the_loss_is_lost_exactly(power: int) -> None:
    """For powers of two no bit changes."""
    for tx in (lars(0.5, momentum=None), lars(0.5), lamb(0.05, eps=0.0)):
        assert_equal(moved(tx, 2.0**power), moved(tx, 1.0))


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_every_leaf_of_lamb_steps_by_its_share(weight_decay: Any) -> None:
    """|step| = lr |theta|, leaf by leaf, whatever the direction."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = lamb(0.05, weight_decay=weight_decay)
    updates, _ = tx.update(gradient, tx.init(params), params)
    lengths = jax.tree.map(lambda u: float(jnp.linalg.norm(jnp.ravel(u))), updates)
    shares = jax.tree.map(lambda p: 0.05 * float(jnp.linalg.norm(jnp.ravel(p))), params)
    assert_close(lengths, shares)


DIRECTIONS = {
    "adam": aj.scale_by_adam(),
    "adan": aj.scale_by_adan(),
    "acprop": aj.scale_by_acprop(),
    "adapnm": aj.scale_by_adapnm(),
    "diffgrad": aj.scale_by_diffgrad(),
    "padam": aj.scale_by_padam(),
    "radam": aj.scale_by_radam(below="momentum"),
    "sgdw": aj.scale_by_sgdw(),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_after_any_direction(name: str) -> None:
    """Each step is lr times the share of the direction that stands before the stage."""
    direction = DIRECTIONS[name]
    tx = aj.compose(direction, scale_by_trust_ratio(0.5), aj.scale_by_learning_rate(0.1))
    params, state, alone = sample_params(), tx.init(sample_params()), None
    alone = direction.init(params)
    update, plain = jax.jit(tx.update), jax.jit(direction.update)
    for t in range(4):
        gradient = at(sample_gradients(4), t)
        updates, state = update(gradient, state, params)
        u, alone = plain(gradient, alone, params)

        def expected(u: Any, p: Any) -> np.ndarray:
            u, p = np.asarray(u, np.float64), np.asarray(p, np.float64)
            length = np.sqrt((u**2).sum())
            return -0.1 * 0.5 * np.sqrt((p**2).sum()) / length * u if length else 0 * u

        assert_close(updates, jax.tree.map(expected, u, params))
        params = optax.apply_updates(params, updates)


def test_adamw_with_a_ratio_is_lamb() -> None:
    """And the ratio scales the decay as well."""
    tx = aj.compose(
        aj.scale_by_adam(eps=1e-6),
        aj.decoupled_decay(0.1),
        scale_by_trust_ratio(),
        aj.scale_by_learning_rate(0.05),
    )
    arguments = sample_params(), sample_gradients()
    expected = run(lamb(0.05, weight_decay=0.1), *arguments)[0]
    assert_close(run(tx, *arguments)[0], expected, rtol=1e-6)
    direction = optax.chain(aj.scale_by_lamb(weight_decay=0.1), optax.scale(-0.05))
    assert_close(run(direction, *arguments)[0], expected, rtol=1e-6)


# Bounds, on a parameter of norm 5 and a direction of norm 1/2: a ratio of 10.

THETA, U = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([0.3, -0.4])}
ZERO = {"w": jnp.zeros(2)}


def found(params: Any = THETA, direction: Any = U, **options: Any) -> Any:
    """The ratio that the stage takes."""
    tx = scale_by_trust_ratio(**options)
    got, _ = tx.update(direction, tx.init(params), params)
    return np.asarray(got["w"]) / np.asarray(direction["w"])


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({}, 10.0),
        ({"eps": 0.5}, 5.0),
        ({"trust_coefficient": 0.1}, 1.0),
        ({"max_ratio": 2.0}, 2.0),
        ({"max_ratio": 20.0}, 10.0),
        ({"min_ratio": 30.0}, 30.0),
        ({"min_ratio": 0.5}, 10.0),
        ({"max_weight_norm": 1.0}, 2.0),
        ({"max_weight_norm": 10.0}, 10.0),
        ({"min_weight_norm": 8.0}, 16.0),
        ({"min_norm": 1.0}, 5.0),
        ({"trust_coefficient": 0.5, "max_weight_norm": 2.0, "max_ratio": 1.5}, 1.5),
        ({"weight_decay": 0.0}, 10.0),
    ],
    ids=str,
)
def test_bounds_of_the_ratio(options: Any, ratio: float) -> None:
    np.testing.assert_allclose(found(**options), ratio, rtol=1e-6)
    scheduled = {name: lambda count, x=value: x for name, value in options.items()}
    np.testing.assert_allclose(found(**scheduled), ratio, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({}, 1.0),
        ({"trust_coefficient": 1e-3, "eps": 1.0}, 1.0),
        ({"max_ratio": 0.5}, 0.5),
        ({"min_ratio": 2.0}, 2.0),
        ({"min_weight_norm": 0.0, "min_norm": 0.0}, 1.0),
        ({"min_weight_norm": 2.0}, 4.0),
        ({"min_norm": 2.0}, 1.0),
    ],
    ids=str,
)
def test_the_ratio_of_zero_parameters(options: Any, ratio: float) -> None:
    np.testing.assert_allclose(found(ZERO, **options), ratio, rtol=1e-6)


def test_zero_directions_stay_zero() -> None:
    for tx in (scale_by_trust_ratio(), scale_by_trust_ratio(min_norm=1.0, max_ratio=3.0)):
        assert_equal(tx.update(ZERO, tx.init(THETA), THETA)[0], ZERO)


# Exclusions.


@pytest.mark.parametrize(
    "mask",
    [
        "*/kernel",
        matrices_only,
        {"dense": {"bias": False, "kernel": True}, "scale": False},
        except_named("bias", "scale"),
    ],
    ids=["pattern", "function", "tree", "names"],
)
def test_left_out_leaves_take_the_plain_step(mask: Any) -> None:
    arguments = sample_params(), sample_gradients()
    got, _ = run(lamb(0.05, trust_ratio_mask=mask), *arguments)
    plain, _ = run(aj.adam(0.05, eps=1e-6), *arguments)
    scaled, _ = run(lamb(0.05), *arguments)
    assert_equal(got["dense"]["kernel"], scaled["dense"]["kernel"])
    assert_close(got["dense"]["bias"], plain["dense"]["bias"], rtol=1e-6)
    assert_close(got["scale"], plain["scale"], rtol=1e-6)
    got, _ = run(lars(0.05, trust_ratio_mask=mask), *arguments)
    plain, _ = run(aj.sgdw(0.05), *arguments)
    assert_close(got["dense"]["bias"], plain["dense"]["bias"], rtol=1e-6)
    assert not np.allclose(got["dense"]["kernel"], plain["dense"]["kernel"], rtol=1e-3)


def test_a_pattern_without_a_leaf_is_an_error() -> None:
    tx = lamb(0.05, trust_ratio_mask="*/weight")
    with pytest.raises(ValueError, match=r"mask has the pattern '\*/weight'"):
        tx.update(at(sample_gradients(), 0), tx.init(sample_params()), sample_params())


def test_rules_act_behind_the_ratio() -> None:
    """A multiplier of the learning rate is not cancelled, a frozen leaf has no state."""
    rules = aj.parameter_rules(
        {
            "dense/bias": aj.Rule(learning_rate_factor=0.5),
            "dense/kernel": aj.Rule(weight_decay=0.0),
            "scale": aj.Rule(freeze=True),
        }
    )
    params, gradients = sample_params(), sample_gradients(1)
    for factory in (lamb, lars):
        for options in ({}, {"sum_of_norms": True})[: 1 + (factory is lars)]:
            got, state = run(
                factory(0.05, weight_decay=0.1, rules=rules, **options), params, gradients
            )
            with_decay = run(factory(0.05, weight_decay=0.1, **options), params, gradients)[0]
            without = run(factory(0.05), params, gradients)[0]
            step, whole = (x["dense"]["bias"] - params["dense"]["bias"] for x in (got, with_decay))
            assert_close(step, 0.5 * whole, rtol=1e-3)
            assert_close(got["dense"]["kernel"], without["dense"]["kernel"], rtol=1e-6)
            assert_equal(got["scale"], params["scale"])
            kept = jax.tree.leaves(state.stages["estimate_moments"].first.moment)
            assert [x.shape for x in kept] == [(3,), (2, 3)]


# The papers' forms.


def sum_of_norms_by_hand(params: Any, gradients: Any, rate: float, decay: Any, eta: float) -> Any:
    params = jax.tree.map(np.asarray, params)
    buffers = jax.tree.map(np.zeros_like, params)

    def length(x: Any) -> Any:
        return np.sqrt((x**2).sum())

    for t in range(STEPS):
        for name, w in params.items():
            g = np.asarray(gradients[name][t])
            below = length(g) + decay[name] * length(w)
            local = eta * length(w) / below if below and length(w) else 1.0
            buffers[name] = 0.9 * buffers[name] + rate * local * (g + decay[name] * w)
            params[name] = w - buffers[name]
    return params


@pytest.mark.parametrize("mask", [None, CHOSEN], ids=["all", "some"])
def test_lars_with_the_sum_of_norms(x64: None, mask: Any) -> None:
    params, gradients = problem(jnp.float64)
    decay = {name: 0.1 * (mask is None or mask[name]) for name in params}
    expected = sum_of_norms_by_hand(params, gradients, 0.5, decay, 0.02)
    tx = lars(0.5, 0.1, True if mask is None else mask, 0.02, sum_of_norms=True)
    assert_close(run(tx, params, gradients)[0], expected, rtol=1e-12, atol=1e-14)
    norm_of_sum = run(lars(0.5, 0.1, True if mask is None else mask, 0.02), params, gradients)[0]
    assert not np.allclose(norm_of_sum["kernel"], expected["kernel"], rtol=1e-3)


def test_lars_with_the_learning_rate_outside() -> None:
    """For a constant rate it is the same; a moving one then scales what the buffer holds."""
    arguments = sample_params(), sample_gradients(STEPS)
    inside, outside = (run(lars(0.5, schedule_inside=x), *arguments)[0] for x in (True, False))
    assert_close(inside, outside)

    def stop(count: Any) -> Any:
        return jnp.where(count < 4, jnp.float32(0.5), jnp.float32(0.0))

    half = jax.tree.map(lambda g: g[:4], arguments[1])
    after = run(lars(stop, schedule_inside=False), *arguments)[0]
    assert_close(after, run(lars(0.5), arguments[0], half)[0])
    assert not np.allclose(run(lars(stop), *arguments)[0]["scale"], after["scale"], rtol=1e-6)


def test_lamb_without_correction_and_with_clipped_norms(x64: None) -> None:
    params, gradients = problem(jnp.float64)
    tx = lamb(0.05, weight_decay=0.1, correct=False, max_weight_norm=2.0)
    got, _ = run(tx, params, gradients)
    expected = jax.tree.map(np.array, params)
    for name, w in expected.items():
        m, v = np.zeros_like(w), np.zeros_like(w)
        for g in np.asarray(gradients[name]):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = m / (np.sqrt(v) + 1e-6) + 0.1 * w
            above, below = min(np.sqrt((w**2).sum()), 2.0), np.sqrt((u**2).sum())
            w = w - 0.05 * (above / below if above and below else 1.0) * u
        expected[name] = w
    assert_close(got, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("factory", [lamb, lars])
def test_other_forms_of_decay_stay_outside(factory: Any) -> None:
    """Fixed decay takes its share of the parameters, whatever ratio and momentum."""
    params, gradients = sample_params(), sample_gradients(1)
    got = run(factory(0.05, weight_decay=0.01, decay="fixed"), params, gradients)[0]
    plain = run(factory(0.05), params, gradients)[0]
    assert_close(got, jax.tree.map(lambda x, p: x - jnp.float32(0.01) * p, plain, params))


def test_l2_is_part_of_the_gradient() -> None:
    params, gradients = sample_params(), sample_gradients()
    got = run(lars(0.05, l2=0.1, mask=matrices_only), params, gradients)[0]
    expected = run(lars(0.05, 0.1, matrices_only), params, gradients)[0]
    assert_equal(got, expected)
    assert_equal(run(lars(0.05, 0.1, mask=matrices_only), params, gradients)[0], expected)


# Precision, kinds of leaves, derivatives.


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_are_float32_under_narrow_parameters(dtype: Any) -> None:
    """In 16 bits a sum of 40,000 squares would stop growing, or overflow."""
    params = {"w": jnp.full(40_000, 3.0, dtype)}
    u = {"w": jnp.full(40_000, 0.5, dtype)}
    tx = scale_by_trust_ratio(0.25)
    updates, _ = tx.update(u, tx.init(params), params)
    assert updates["w"].dtype == dtype
    np.testing.assert_array_equal(np.asarray(updates["w"], np.float32), 0.75)


@pytest.mark.parametrize("factory", [lamb, lars])
def test_bfloat16_parameters(factory: Any) -> None:
    """The step is that of float32 but for its rounding, the accumulators are float32."""
    wide = sample_params(), sample_gradients(1)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide)
    tx = factory(0.05, weight_decay=0.1)
    got, state = run(tx, *narrow)
    assert_close(got, run(tx, *wide)[0], rtol=2e-2, atol=1e-3)
    before, after = avals(tx.init(narrow[0])), avals(state)
    assert before == after
    assert all(x.dtype != jnp.bfloat16 for x in jax.tree.leaves(state))


@pytest.mark.parametrize("factory", [lamb, lars])
def test_complex_leaves_have_the_norm_of_their_absolute_values(factory: Any) -> None:
    """Turned by a phase the step turns; its length is that of the real problem."""
    real = sample_params(), sample_gradients()
    turned = sample_params(jnp.complex64), sample_gradients(dtype=jnp.complex64)
    phase = turned[0]["scale"] / real[0]["scale"].astype(jnp.complex64)
    for options in ({}, {"weight_decay": 0.1}):
        got = run(factory(0.05, **options), *turned)[0]
        expected = run(factory(0.05, **options), *real)[0]
        assert_close(got, jax.tree.map(lambda x: x.astype(jnp.complex64) * phase, expected))


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "make",
    [
        lambda rate: lamb(rate, eps=0.0),
        lambda rate: lamb(rate, weight_decay=0.1),
        lars,
        lambda rate: lars(rate, 0.1, sum_of_norms=True, nesterov=True),
    ],
    ids=["lamb", "lamb-decay", "lars", "lars-sum"],
)
def test_derivatives_through_the_step_are_finite(make: Any) -> None:
    """Also where a parameter, a gradient or both are zero."""
    params, gradients = problem(jnp.float32, 2)
    params = {**params, "nothing": jnp.zeros(2)}
    gradients = {**gradients, "nothing": jnp.zeros((2, 2))}

    def loss(rate: Any, params: Any, gradients: Any) -> Any:
        after = run(make(rate), params, gradients)[0]
        return sum(jnp.sum(x * x) for x in jax.tree.leaves(after))

    with jax.debug_nans(True):
        slope = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        slopes = slope(jnp.float32(0.05), params, gradients)
    assert_finite(slopes)
    assert float(jnp.max(jnp.abs(slopes[2]["kernel"]))) > 0


@pytest.mark.devices
def test_a_sharded_leaf_has_the_norm_of_the_whole() -> None:
    mesh = jax.make_mesh((8,), ("data",))
    params = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(16, 4)}
    gradients = {"w": jnp.cos(jnp.arange(64.0)).reshape(16, 4)}
    spread = NamedSharding(mesh, PartitionSpec("data"))
    for tx in (lamb(0.05), lars(0.05)):
        step = jax.jit(one_step(tx))
        state = tx.init(params)
        expected = step(params, state, gradients)[0]
        got = step(*jax.device_put((params, state, gradients), _sharding(spread, state)))[0]
        assert_close(got, expected)
        assert got["w"].sharding.is_equivalent_to(spread, 2)


def _sharding(spread: NamedSharding, state: Any) -> Any:
    whole = NamedSharding(spread.mesh, PartitionSpec())
    return (
        {"w": spread},
        jax.tree.map(lambda x: spread if x.ndim else whole, state)._replace(
            hyperparams=jax.tree.map(lambda _: whole, state.hyperparams)
        ),
        {"w": spread},
    )


def test_live_hyperparameters() -> None:
    """Those in use are in the state by name, and setting one compiles nothing."""
    params, gradient = sample_params(), at(sample_gradients(), 0)
    tx = lars(0.5, 0.1)
    step = jax.jit(one_step(tx))
    state = tx.init(params)
    names = {"learning_rate", "weight_decay", "trust_coefficient", "eps", "momentum"}
    assert set(aj.hyperparams(state)) == names
    slow = step(params, state, gradient)[0]
    fast = step(params, aj.set_hyperparams(state, trust_coefficient=0.002), gradient)[0]
    assert_close(
        jax.tree.map(lambda a, p: a - p, fast, params),
        jax.tree.map(lambda a, p: 2 * (a - p), slow, params),
        rtol=1e-3,
    )
    assert step._cache_size() == 1
    assert set(aj.hyperparams(lamb(1e-3).init(params))) == {"learning_rate", "b1", "b2", "eps"}


# Errors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scale_by_trust_ratio(0.0), "trust_coefficient must be a number > 0"),
        (lambda: scale_by_trust_ratio(max_ratio=-1.0), "max_ratio must be a number > 0"),
        (lambda: scale_by_trust_ratio(min_weight_norm=-1.0), "min_weight_norm must be a number"),
        (lambda: scale_by_trust_ratio(of="update"), "of must be one of"),
        (lambda: scale_by_trust_ratio(weight_decay_mask="*"), "need weight_decay"),
        (
            lambda: lamb(1e-3, correct=False, rectify=True),
            "correct=False does not correct the moments",
        ),
        (lambda: lamb(1e-3, mask="*"), "neither weight_decay nor l2 is given"),
        (lambda: lamb(1e-3, correct=1), "correct must be True or False"),
        (lambda: lars(1e-3, weight_decay_mask="*"), "neither weight_decay nor l2 is"),
        (lambda: lars(1e-3, 0.1, "*", mask="*"), "mean the same: give only one of them"),
        (lambda: lars(1e-3, decay="other"), "decay must be one of"),
        (lambda: lars(1e-3, sum_of_norms="yes"), "sum_of_norms must be True or False"),
        (
            lambda: aj.compose(aj.scale_by_learning_rate(1e-3), scale_by_trust_ratio()),
            "takes direction",
        ),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("factory", [lamb, lars])
def test_parameters_are_needed(factory: Any) -> None:
    params = sample_params()
    tx = factory(1e-3)
    with pytest.raises(ValueError, match="scale_by_trust_ratio needs the parameters"):
        tx.update(at(sample_gradients(), 0), tx.init(params))


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_lars_refuses_gradients_of_another_tree(weight_decay: Any) -> None:
    tx, params = lars(1e-3, weight_decay), sample_params()
    with pytest.raises(ValueError, match="do not have the structure of the parameters"):
        tx.update({"scale": jnp.ones([])}, tx.init(params), params)


# Cost.


def _compiled(tx: Any) -> Any:
    shapes = {f"layer{i}": jax.ShapeDtypeStruct((256, 128), jnp.float32) for i in range(4)}
    with jax.numpy_dtype_promotion("standard"):
        return hlo.compile_step(one_step(tx), shapes, jax.eval_shape(tx.init, shapes), shapes)


@pytest.mark.parametrize(
    ("name", "weight_decay", "scratch"),
    [("lamb", 0.0, 1), ("lamb", 0.1, 1), ("lars", 0.0, 0), ("lars", 0.1, 1)],
)
def test_traffic_and_scratch(
    name: str, weight_decay: float, scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than optax's: at most the one array whose norm is taken, on a single device."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    options = {"weight_decay": weight_decay} if weight_decay else {}
    ours = _compiled(FACTORIES[name](1e-3, **options))
    with usual_norms():
        moved = hlo.bytes_accessed(_compiled(FACTORIES[name](1e-3, **options)))
    theirs = _compiled(getattr(optax, name)(1e-3, **options))
    size, scalars = 4 * 256 * 128, 8192
    assert hlo.scratch_bytes(ours) <= scratch * size + scalars
    assert hlo.scratch_bytes(theirs) >= 8 * size
    assert moved <= 0.8 * hlo.bytes_accessed(theirs)
