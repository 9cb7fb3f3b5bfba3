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
from adamw_jax import communication as comm, read_skips, skip_bad_steps
from adamw_jax._core import stage
from adamw_jax.storage._formats import FORMATS
from adamw_jax.update import compensated_rounding, stochastic_rounding
from tests.catalogue import (
    PLAIN,
    TAILS,
    VARIANTS,
    WITH_WORKERS,
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
        more = {"value": loss, "micro_square_norm": jnp.float32(1.0)}
        updates, state = update(gradient, state, params, **more)
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
    lasting = [i for i, cause in causes[3:] if cause == [1, 0, 0, 0]]
    assert lasting == [*range(30, 30 + len(lasting))]  # each widens the window a little,
    assert 3 <= len(lasting) <= 7  # until the new loss is no spike any more
    assert state.losses is not None
    assert np.all(np.isfinite(state.losses.values))
    eager = tx.update(given, before, params, value=jnp.float32(losses[-1]))
    assert_equal(eager[1].inner, state.inner)
    with pytest.raises(ValueError, match=r"loss_spike needs the loss: call .* value=loss"):
        tx.update(params, state, params)


@pytest.mark.parametrize("size", [1e6, 1e25])
def test_no_spike_makes_room_for_the_next(size: float) -> None:
    """However large it is: it enters the window as the largest loss that is none."""
    tx = skip_bad_steps(aj.sgdw(0.1), loss_spike=6.0)
    params, rng = jnp.ones(3), np.random.default_rng(0)
    state, update = tx.init(params), jax.jit(tx.update)
    losses = 1.0 + 0.01 * rng.normal(size=200)
    spikes = [*range(100, 110), 115, 150, 199]
    losses[spikes] = size
    for i, loss in enumerate(losses):
        _, state = update(params, state, params, value=jnp.float32(loss))
        assert (i in spikes) == bool(state.in_a_row), i
    assert int(read_skips(state)["by_spike"]) == len(spikes)


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
    **TAILS,
    "lookahead around": aj.lookahead(optax.adam(0.1), 2, inner_state="pullback"),
    "average every second": aj.compose(aj.sgdw(0.1), aj.average_iterates(1, 2)),
    "a schedule": aj.adamw(aj.one_cycle(0.1, 10)),
    "percentile_clipping": aj.compose(aj.percentile_clipping(50, 4), aj.adamw(0.1)),
    "clip_gradient": aj.compose(aj.clip_gradient(1.0), aj.adamw(0.1)),
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


def test_the_tables_have_every_tail() -> None:
    """A tail that is declared anywhere needs a row; storages are rows by themselves."""
    assert {name.partition(",")[0] for name in TAILS} | {*WITH_WORKERS} == stage.TAILS
    assert {*WORKERS} == {*WITH_WORKERS}


WORKERS = {
    "compressed_mean": aj.compose(
        comm.compressed_mean(comm.scaled_sign(), "data", workers=2), aj.adamw(0.1)
    ),
    "local_sgd": aj.compose(aj.adamw(0.1), comm.local_sgd(2, "data")),
}


@pytest.mark.parametrize(
    "name", [pytest.param("compressed_mean", marks=pytest.mark.slow), "local_sgd"]
)
def test_tails_with_workers(name: str) -> None:
    """One worker has a bad gradient, and both go on as without this step, to the bit."""

    def ends(tx: Any, gradients: list[Any]) -> tuple[Any, Any]:
        params = jax.tree.map(lambda p: jnp.stack([p, p + 1]), sample_params())
        if name == "compressed_mean":
            params = jax.tree.map(lambda p: jnp.stack([p[0]] * 2), params)
        state = jax.vmap(tx.init, axis_name="data")(params)
        update = jax.vmap(tx.update, axis_name="data")
        update = one_operation_at_a_time(update, gradients[0], state, params)
        for gradient in gradients:
            updates, state = update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    both = [
        jax.tree.map(lambda g, i=i: jnp.stack([g[i], g[i + 1]]), sample_gradients(4))
        for i in range(3)
    ]
    bad = jax.tree.map(lambda g: g.at[1].set(jnp.nan), both[1])
    guarded = skip_bad_steps(WORKERS[name], axis_name="data")
    moved, state = ends(guarded, [both[0], bad, *both[1:]])
    assert [*read_skips(state)["by_gradient"]] == [1, 1]
    assert_equal((moved, state.inner), ends(WORKERS[name], both))


STORED = {
    **{name: aj.adamw(0.1, storage=name) for name in FORMATS},
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


@pytest.mark.sample(2)
@pytest.mark.parametrize("size", [1e20, 1e30])
@pytest.mark.parametrize("name", ["norm_adaptive_sgd", "adamax", "sgdw", "pnm"])
def test_a_huge_gradient_that_stays_finite_is_a_spike(name: str, size: float) -> None:
    """Its update is as long, or a maximum keeps it; with ``norm_spike`` both are refused.

    That takes half a window of norms. Before, and without the option, the step is taken.
    """
    inner = Entry(name, name).make()
    good = [at(sample_gradients(8), i) for i in range(8)]
    huge, losses = spoilt(good[4], size), [1.0] * 8
    tx = skip_bad_steps(inner, norm_spike=6.0, window=8)
    moved, state = trained(tx, sample_params(), [*good[:4], huge, *good[4:]], [*losses, 1.0])
    found = read_skips(state)
    assert {name: int(n) for name, n in found.items() if n} == {"skipped": 1, "by_spike": 1}
    assert_equal((moved, state.inner), trained(inner, sample_params(), good, losses))
    for early in (tx, skip_bad_steps(inner)):
        taken = trained(early, sample_params(), [good[0], huge], [1.0] * 2)[1]
        assert int(read_skips(taken)["skipped"]) == 0


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
