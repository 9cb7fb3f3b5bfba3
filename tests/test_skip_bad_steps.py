"""``skip_bad_steps``: a bad step leaves no trace but its count, whatever is inside."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import adamw_jax as aj
from adamw_jax import read_skips, skip_bad_steps
from adamw_jax.update import compensated_rounding, schedule_free, stochastic_rounding
from tests.catalogue import (
    PLAIN,
    VARIANTS,
    Entry,
    assert_equal,
    at,
    label,
    one_operation_at_a_time,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

LARGE = {"dense": {"bias": jnp.linspace(-1.0, 1.0, 64), "kernel": jnp.ones((64, 64))}}
"""Parameters of which the kernel is stored as codes."""


def spoilt(gradient: Any, value: float, leaf: int = 1) -> Any:
    """A gradient with one element replaced, in one leaf."""
    leaves, structure = jax.tree.flatten(gradient)
    leaves[leaf] = leaves[leaf].at[(0,) * leaves[leaf].ndim].set(value)
    return jax.tree.unflatten(structure, leaves)


def trained(tx: Any, params: Any, gradients: list[Any], losses: list[float]) -> tuple[Any, Any]:
    """Parameters and state after these steps, computed one operation at a time."""
    update = optax.with_extra_args_support(tx).update

    def step(params: Any, state: Any, gradient: Any, loss: Any) -> tuple[Any, Any]:
        updates, state = update(gradient, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    state, first = tx.init(params), (gradients[0], jnp.float32(losses[0]))
    step = one_operation_at_a_time(step, params, state, *first)
    for gradient, loss in zip(gradients, losses, strict=True):
        params, state = step(params, state, gradient, jnp.float32(loss))
    return params, state


BAD = {
    "NaN": (jnp.nan, 1.0, "by_gradient"),
    "infinity": (-jnp.inf, 1.0, "by_gradient"),
    "a lost loss": (0.5, jnp.nan, "by_loss"),
}


def check(tx: Any, params: Any, gradients: list[Any], bad: str = "NaN") -> None:
    """A bad step between two good ones: all is as without it, to the bit."""
    element, loss, cause = BAD[bad]
    given = [gradients[0], spoilt(gradients[1], element), gradients[1], gradients[2]]
    moved, state = trained(skip_bad_steps(tx), params, given, [1.0, loss, 1.0, 1.0])
    found = read_skips(state)
    assert {name: int(n) for name, n in found.items() if n} == {"skipped": 1, cause: 1}
    assert_equal((moved, state.inner), trained(tx, params, gradients, [1.0] * 3))


@pytest.mark.sample(4)
@pytest.mark.parametrize("bad", ["NaN", "a lost loss"])
@pytest.mark.parametrize("entry", PLAIN, ids=label)
def test_every_optimizer(entry: Entry, bad: str) -> None:
    gradients = [at(sample_gradients(), i) for i in range(3)]
    check(entry.make(), sample_params(), gradients, bad)


@pytest.mark.sample(2)
@pytest.mark.parametrize("entry", VARIANTS, ids=label)
def test_every_option(entry: Entry) -> None:
    gradients = [at(sample_gradients(), i) for i in range(3)]
    check(entry.make(), sample_params(), gradients, "infinity")


def test_no_number_of_bad_steps_is_applied() -> None:
    tx = skip_bad_steps(aj.adamw(0.1))
    params = sample_params()
    nan = jax.tree.map(lambda p: p * jnp.nan, params)
    state, before = tx.init(params), tx.init(params)
    update = jax.jit(tx.update, donate_argnums=1)
    for _ in range(20):
        updates, state = update(nan, state, params)
    assert_equal(updates, jax.tree.map(jnp.zeros_like, params))
    assert_equal(state.inner, before.inner)
    assert int(read_skips(state)["in_a_row"]) == 20
    _, state = update(params, state, params)
    assert (int(read_skips(state)["in_a_row"]), int(read_skips(state)["skipped"])) == (0, 20)


def test_spikes_of_loss_and_norm() -> None:
    """They are skipped at six deviations; a change that lasts is accepted."""
    tx = skip_bad_steps(aj.sgdw(0.1), loss_spike=6.0, norm_spike=6.0, window=8)
    params, rng, causes = {"w": jnp.ones(3)}, np.random.default_rng(0), []
    state, update = tx.init(params), jax.jit(tx.update)
    losses = 1.0 + 0.01 * rng.normal(size=40)
    losses[[2, 20]] += 5.0  # the first before there is a window to judge it
    losses[30:] += 3.0
    sizes = 1.0 + 0.01 * rng.normal(size=40)
    sizes[25] = 100.0
    losses[26], before = np.nan, None
    for i, (loss, size) in enumerate(zip(losses, sizes, strict=True)):
        given = jax.tree.map(lambda p, size=size: jnp.float32(size) * p, params)
        before, (updates, state) = state, update(given, state, params, value=jnp.float32(loss))
        if state.in_a_row:
            causes.append((i, [*np.asarray(state.skipped - before.skipped)]))
            assert not np.any(updates["w"])
            assert_equal(state.inner, before.inner)
    assert causes[:3] == [(20, [1, 0, 0, 0]), (25, [1, 0, 0, 0]), (26, [0, 0, 0, 1])]
    assert causes[3] == (30, [1, 0, 0, 0])
    assert len(causes) == 4  # the window has widened: the new loss is no spike any more
    assert state.losses is not None
    assert np.all(np.isfinite(state.losses.values))
    eager = tx.update(given, before, params, value=jnp.float32(losses[-1]))
    assert_equal(eager[1].inner, state.inner)
    with pytest.raises(ValueError, match=r"loss_spike needs the loss: call .* value=loss"):
        tx.update(params, state, params)


def test_it_maps_differentiates_and_scans() -> None:
    tx, params = skip_bad_steps(aj.adamw(0.1)), jnp.ones((2, 3))
    gradients = jnp.ones((2, 3)).at[1, 0].set(jnp.nan)
    state = jax.vmap(tx.init)(params)
    updates, after = jax.jit(jax.vmap(tx.update))(gradients, state, params)
    assert [*read_skips(after)["skipped"]] == [0, 1]
    assert np.all(updates[0] != 0)
    assert not np.any(updates[1])

    def moved(rate: Any) -> Any:
        guarded = skip_bad_steps(aj.adamw(rate))
        return jnp.sum(guarded.update(params, guarded.init(params), params)[0])

    expected = jax.grad(lambda rate: jnp.sum(aj.adamw(rate).update(
        params, aj.adamw(rate).init(params), params)[0]))(0.1)  # fmt: skip
    np.testing.assert_allclose(jax.jit(jax.grad(moved))(0.1), expected, rtol=1e-5)


def test_a_step_with_effects_runs_once() -> None:
    calls = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        jax.debug.callback(lambda: calls.append(1))
        return updates, state

    noted = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    tx = skip_bad_steps(optax.chain(noted, aj.sgdw(0.1)))
    params = jnp.ones(3)
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    jax.effects_barrier()
    assert len(calls) == 1
    assert np.all(updates != 0)


@pytest.mark.parametrize("name", ["spike", "deviation"])
def test_wrong_limits(name: str) -> None:
    options: Any = {"spike": {"loss_spike": 0.0}, "deviation": {"norm_spike": -1.0}}[name]
    with pytest.raises(ValueError, match="_spike must be a number > 0, got"):
        skip_bad_steps(aj.adamw(0.1), **options)
    with pytest.raises(ValueError, match="window must be a whole number >= 4, got 2"):
        skip_bad_steps(aj.adamw(0.1), window=2)
    with pytest.raises(ValueError, match="there is no skip_bad_steps in this state"):
        read_skips(aj.adamw(0.1).init(jnp.ones(2)))


def test_typed_random_keys() -> None:
    """They are kept like other arrays."""

    def noisy(updates: Any, key: Any, params: Any = None) -> Any:
        now, later = jax.random.split(key)
        return jax.tree.map(lambda g: g * jax.random.uniform(now, g.shape), updates), later

    params = jnp.ones(3)
    tx = skip_bad_steps(optax.GradientTransformation(lambda params: jax.random.key(0), noisy))
    state = tx.init(params)
    for update in (tx.update, jax.jit(tx.update)):
        _, same = update(params * jnp.nan, state, params)
        _, later = update(params, state, params)
        assert same.inner == state.inner
        assert later.inner != state.inner


@pytest.mark.slow
def test_a_line_search() -> None:
    search, x = skip_bad_steps(optax.lbfgs()), jnp.zeros(3)
    memory = search.init(x)

    def distance(x: Any) -> Any:
        return jnp.sum((x - 1) ** 2)

    with jax.numpy_dtype_promotion("standard"):
        for value in (jnp.nan, distance(x)):
            gradient = jax.grad(distance)(x)
            more = {"value": value, "grad": gradient, "value_fn": distance}
            updates, memory = search.update(gradient, memory, x, **more)
            x = optax.apply_updates(x, updates)
            assert bool(np.any(x)) != bool(jnp.isnan(value))


@pytest.mark.slow
def test_codes_in_boxes() -> None:
    model = nnx.Linear(64, 128, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, skip_bad_steps(aj.adamw(0.1, storage="8bit")), wrt=nnx.Param)
    gradient = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    for scale in (1.0, 1e20):
        optimizer.update(model, jax.tree.map(lambda g, scale=scale: scale * g, gradient))
    assert int(read_skips(optimizer.opt_state)["by_overflow"]) == 1


def _groups(params: Any) -> Any:
    return {"dense": "a"} if "scale" not in params else {"dense": "a", "scale": "b"}


INSIDE = {
    "lookahead": aj.compose(aj.adamw(0.1), aj.lookahead(sync_period=2)),
    "lookahead around": aj.lookahead(optax.adam(0.1), 2, inner_state="pullback"),
    **{
        f"average_iterates, {kind}": aj.compose(aj.sgdw(0.1), aj.average_iterates(kind=kind))
        for kind in ("equal", "weighted", "ema", "last")
    },
    "average every second": aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 2)),
    "schedule_free": aj.compose(aj.sgdw(0.1, momentum=None), schedule_free(0.1)),
    "a schedule": aj.adamw(aj.one_cycle(0.1, 10)),
    "percentile_clipping": aj.compose(aj.percentile_clipping(50, 4), aj.adamw(0.1)),
    "clip_gradient": aj.compose(aj.clip_gradient(1.0), aj.adamw(0.1)),
    "probe": aj.probe(aj.clip_gradient(1.0), aj.adamw(0.1)),
    "frozen": aj.compose(aj.adamw(0.1), frozen="scale"),
    "packed": aj.pack_small_leaves(aj.adamw(0.1)),
    "partition": optax.partition({"a": aj.adamw(0.1), "b": optax.sgd(0.1)}, _groups),
    "masked": optax.masked(aj.adamw(0.1), {"dense": True, "scale": False}),
    "optax.adam": optax.adam(0.1),
    "MultiSteps": optax.MultiSteps(aj.adamw(0.1), 2).gradient_transformation(),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", INSIDE)
def test_every_tail_and_wrapper(name: str) -> None:
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        check(INSIDE[name], sample_params(), [at(sample_gradients(), i) for i in range(3)])


STORED = {
    **{name: aj.adamw(0.1, storage=name) for name in ("8bit", "4bit", "float8", "bfloat16")},
    "quantize_state": aj.quantize_state(optax.adam(0.1)),
    "at random": aj.quantize_state(optax.adam(0.1), rounding="stochastic"),
    "root": aj.adamw(0.1, storage=aj.storage.eight_bit(root=True)),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", STORED)
def test_every_storage(name: str) -> None:
    gradients = [jax.tree.map(lambda p, i=i: (0.1 + i) * p, LARGE) for i in range(3)]
    with jax.numpy_dtype_promotion("standard"):
        check(STORED[name], LARGE, gradients)


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", STORED)
def test_a_square_that_overflows_in_codes_is_seen(name: str) -> None:
    """The gradient is finite, and codes have no infinity: their scales tell."""
    good = jax.tree.map(lambda p: 0.1 * p, LARGE)
    huge = spoilt(good, 1e20)
    tx = skip_bad_steps(STORED[name])
    with jax.numpy_dtype_promotion("standard"):
        moved, state = trained(tx, LARGE, [good, huge, good], [1.0] * 3)
        without = trained(STORED[name], LARGE, [good] * 2, [1.0] * 2)
    assert int(read_skips(state)["by_overflow"]) == 1
    assert_equal((moved, state.inner), without)


@pytest.mark.parametrize("rounding", [stochastic_rounding(0), compensated_rounding()])
def test_keys_and_errors_of_rounding_stay(rounding: Any) -> None:
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), sample_params())
    gradients = [jax.tree.map(lambda g: g.astype(jnp.bfloat16), at(sample_gradients(), i))
                 for i in range(3)]  # fmt: skip
    check(aj.compose(aj.adamw(0.1), rounding), params, gradients)


@pytest.mark.sample(3)
@pytest.mark.parametrize("entry", PLAIN, ids=label)
def test_a_finite_gradient_that_poisons_is_skipped(entry: Entry) -> None:
    """One element of 1e30, or a loss of 1e20: what stays finite takes the step, all else skips."""
    gradient, tx = at(sample_gradients(), 0), skip_bad_steps(entry.make())
    for given, loss in ((spoilt(gradient, 1e30), 1.0), (gradient, 1e20)):
        moved, state = trained(tx, sample_params(), [given, gradient], [loss, 1.0])
        for x in jax.tree.leaves((moved, state)):
            assert np.all(np.isfinite(np.asarray(x)))


def test_an_empty_array_in_a_state_hides_no_gradient() -> None:
    """It belongs to no parameter, and must not take the place of one."""

    def follow(updates: Any, state: Any, params: Any = None) -> Any:
        return updates, state

    tx = skip_bad_steps(
        optax.GradientTransformation(lambda params: {"buffer": jnp.zeros(0)}, follow)
    )
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    bad = params | {"b": jnp.full(3, jnp.nan)}
    for update in (tx.update, jax.jit(tx.update)):
        moved, state = update(bad, tx.init(params), params)
        assert int(read_skips(state)["skipped"]) == 1
        assert not any(x.any() for x in jax.tree.leaves(moved))
