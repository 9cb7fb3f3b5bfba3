"""``probe``: what it records, and that the step does not notice."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import adamw_jax as aj
from adamw_jax._core.state import ComposeState
from adamw_jax.diagnostics import probe, read_probe
from tests.catalogue import assert_equal

pytestmark = pytest.mark.quick

PARAMS = {"dense": {"kernel": 0.5 * jnp.ones((2, 3)), "bias": jnp.ones(3)}, "out": jnp.float32(2.0)}
STEPS = 4


def gradients(scale: float = 1.0) -> Any:
    """Four gradients, stacked; the second is small and the others are long."""
    sizes = scale * np.array([3.0, 0.01, 2.0, 4.0])

    def leaf(p: jax.Array) -> jax.Array:
        draws = np.random.default_rng(p.size).normal(size=(STEPS, *p.shape))
        return jnp.asarray(draws * sizes.reshape(-1, *[1] * p.ndim), p.dtype)

    return jax.tree.map(leaf, PARAMS)


def norm(tree: Any) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(tree))))


def train(tx: Any, params: Any = None, given: Any = None) -> tuple[Any, Any, Any]:
    """Four steps in one scan: the updates, stacked, and parameters and state at the end."""

    def step(carry: Any, g: Any) -> Any:
        params, state = carry
        updates, state = tx.update(g, state, params)
        return (optax.apply_updates(params, updates), state), (updates, params)

    params = PARAMS if params is None else params
    scanned = jax.jit(lambda p, s, g: jax.lax.scan(step, (p, s), g))
    (_, state), (updates, before) = scanned(
        params, tx.init(params), gradients() if given is None else given
    )
    return updates, before, state


RECIPE = (aj.clip_gradient(1.0), aj.adamw(0.1, weight_decay=0.1), aj.lookahead(sync_period=2))


@functools.cache
def probed(per_leaf: bool) -> tuple[Any, Any, dict[str, Any]]:
    updates, before, state = train(probe(*RECIPE, per_leaf=per_leaf))
    return updates, before, read_probe(state, PARAMS if per_leaf else None)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_step_is_the_same(dtype: Any, compiled: bool) -> None:
    """To the bit; what XLA fuses in another way may be rounded in another way (jax 0.12)."""
    params, given = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, gradients()))
    with jax.disable_jit(not compiled):
        plain, _, bare = train(aj.compose(*RECIPE), params, given)
        updates, _, state = train(probe(*RECIPE), params, given)
    assert set(state.stages) == {*bare.stages, "probe"}
    got = updates, {k: v for k, v in state.stages.items() if k != "probe"}, state.hyperparams
    expected = plain, bare.stages, bare.hyperparams
    if compiled:
        chex.assert_trees_all_close(got, expected, rtol=2e-7, atol=0)
    else:
        assert_equal(got, expected)
    held = jax.tree.leaves(state.stages["probe"])
    assert [(x.shape, x.dtype.itemsize) for x in held] == [((), 4)] * 5


def test_what_is_recorded() -> None:
    updates, before, found = probed(False)
    last = jax.tree.map(lambda x: x[-1], (gradients(), updates, before))
    g, u, theta = (norm(tree) for tree in last)
    expected = {
        "gradient_norm": g,
        "update_norm": u,
        "param_norm": theta,
        "update_ratio": u / theta,
        "effective_learning_rate": u / g,
        "clip_rate": 0.75,
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_every_leaf() -> None:
    updates, _, found = probed(True)
    _, _, whole = probed(False)
    assert list(found["update_norm"]) == ["dense/bias", "dense/kernel", "out"]
    np.testing.assert_allclose(
        found["update_norm"]["dense/kernel"], norm(updates["dense"]["kernel"][-1]), rtol=1e-5
    )
    for name in ("gradient_norm", "update_norm", "param_norm"):
        np.testing.assert_allclose(norm(found[name]), whole[name], rtol=1e-5)
    for name, over in (
        ("update_ratio", "param_norm"),
        ("effective_learning_rate", "gradient_norm"),
    ):
        for leaf, ratio in found[name].items():
            expected = found["update_norm"][leaf] / found[over][leaf]
            np.testing.assert_allclose(ratio, expected, rtol=1e-6)
    np.testing.assert_allclose(found["clip_rate"], 0.75)


@pytest.mark.parametrize(
    ("stages", "rate"),
    [
        ((optax.clip_by_global_norm(1.0), aj.sgdw(0.1, momentum=None)), 0.75),
        ((aj.sgdw(0.1, momentum=None),), 0.0),
        ((optax.clip_by_global_norm(1.0), optax.sgd(0.1)), 0.75),
        ((optax.sgd(0.1),), None),
    ],
    ids=["foreign clip", "no clip", "foreign only", "nothing known"],
)
def test_clip_rate(stages: Any, rate: float | None) -> None:
    updates, _, state = train(probe(*stages))
    found = read_probe(state)
    assert found.get("clip_rate") == rate
    g = norm(jax.tree.map(lambda x: x[-1], gradients()))
    clipped = min(1.0, g) if len(stages) > 1 else g
    np.testing.assert_allclose(found["effective_learning_rate"], 0.1 * clipped / g, rtol=1e-5)
    np.testing.assert_allclose(
        found["update_norm"], norm(jax.tree.map(lambda x: x[-1], updates)), rtol=1e-5
    )


PLAIN = aj.sgdw(0.1, momentum=None)


@pytest.mark.parametrize(
    ("stages", "rate"),
    [
        ((aj.clip_gradient(1.0), aj.sgdw(0.1, momentum=None, l2=10.0)), 0.75),
        ((aj.sgdw(0.1, momentum=None, l2=1e-3),), 0.0),
        ((optax.scale(0.5), PLAIN), 0.0),
        ((optax.clip(0.1), optax.scale(100.0), aj.clip_gradient(1e9), PLAIN), 0.75),
        ((optax.scale(100.0), aj.clip_gradient(1.0), PLAIN), 1.0),
        ((optax.chain(optax.clip(0.1), optax.scale(2.0)), PLAIN), 0.0),
        ((("clip", optax.chain(optax.clip(0.1))), PLAIN), 0.75),
        ((aj.only(aj.clip_gradient(1.0), "dense/*"), PLAIN), 0.75),
        ((aj.clipped_sgd(0.1, max_step=0.1),), 0.75),
        ((aj.clipped_sgd(0.1, max_step=1e9),), 0.0),
        ((PLAIN, optax.clip_by_global_norm(0.1)), 0.75),
    ],
    ids=[
        *("l2 behind", "l2", "scaled", "of two", "scaled before", "hidden", "named", "only"),
        *("of the step", "of no step", "of the update"),
    ],
)
def test_what_is_a_clipping(stages: Any, rate: float) -> None:
    """Norms are compared around what is called a clipping, and around nothing else."""
    _, _, state = train(probe(*stages))
    assert float(read_probe(state)["clip_rate"]) == rate


def test_orbax_round_trip(tmp_path: Any) -> None:
    """What a probe has recorded is saved and restored bit by bit, and goes on the same."""
    tx = probe(*RECIPE, per_leaf=True)
    _, _, state = train(tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(tx.init, PARAMS))
    assert_equal(restored, state)
    assert_equal(read_probe(restored, PARAMS), read_probe(state, PARAMS))
    update, g = jax.jit(tx.update), jax.tree.map(lambda x: x[0], gradients())
    assert_equal(update(g, restored, PARAMS), update(g, state, PARAMS))


def test_where_the_norms_are_extreme() -> None:
    """Nothing divides by zero, and a NaN is gone a step later."""
    tx = probe(aj.clip_gradient(1.0), aj.sgdw(0.1))
    zeros, params = jnp.zeros(2), jnp.ones(2)
    state = tx.init(params)
    with jax.debug_nans(True):
        assert all(float(x) == 0 for x in read_probe(state).values())
        _, state = tx.update(zeros, state, params)
        found = read_probe(state)
    assert float(found["effective_learning_rate"]) == 0 == float(found["clip_rate"])
    _, state = tx.update(zeros * jnp.nan, state, params)
    assert np.isnan(read_probe(state)["gradient_norm"])
    _, state = tx.update(zeros, state, params)
    assert float(read_probe(state)["gradient_norm"]) == 0


def test_gradients_through_a_step() -> None:
    tx = probe(aj.sgdw(0.1))

    def moved(g: Any) -> Any:
        updates, state = tx.update(g, tx.init(PARAMS), PARAMS)
        return optax.tree.sum(updates) + 0.0 * read_probe(state)["param_norm"]

    with jax.debug_nans(True):
        found = jax.grad(moved)(jax.tree.map(jnp.zeros_like, PARAMS))
    np.testing.assert_allclose(found["out"], -0.1, rtol=1e-6)


def test_one_trace_and_donation() -> None:
    tx, traces = probe(*RECIPE, per_leaf=True), []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, g: Any) -> Any:
        traces.append(1)
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, PARAMS)
    state, g = tx.init(params), jax.tree.map(lambda x: x[0], gradients())
    for _ in range(3):
        params, state = step(params, state, g)
    assert len(traces) == 1
    assert int(state.stages["probe"].steps) == 3


def test_a_checkpoint_goes_with_and_without() -> None:
    bare, tx = aj.adamw(0.1), probe(aj.adamw(0.1))
    g = jax.tree.map(lambda x: x[0], gradients())
    _, saved = bare.update(g, bare.init(PARAMS), PARAMS)
    state, report = aj.migrate_state(saved, tx, PARAMS)
    assert all(name.startswith("stages/probe/") for name in report.started)
    _, state = tx.update(g, state, PARAMS)
    back, report = aj.migrate_state(state, bare, PARAMS)
    assert all(name.startswith("stages/probe/") for name in report.dropped)
    assert_equal(back.stages["estimate_moments"], state.stages["estimate_moments"])


@pytest.mark.parametrize("per_leaf", [False, True])
def test_trees_that_wrappers_make(per_leaf: bool) -> None:
    """Frozen leaves do not count; partitions have one probe each; params-like leaves are known."""
    tx = probe(aj.compose(aj.sgdw(0.1), frozen="out"), per_leaf=per_leaf)
    g = jax.tree.map(lambda x: x[0], gradients())
    updates, state = tx.update(g, tx.init(PARAMS), PARAMS)
    assert float(updates["out"]) == 0
    found = read_probe(state)["param_norm"]
    whole = norm(found) if per_leaf else found
    np.testing.assert_allclose(whole, norm(PARAMS["dense"]), rtol=1e-6)

    parts = optax.partition(
        {"a": probe(aj.sgdw(0.1), per_leaf=per_leaf), "b": probe(aj.sgdw(0.2))},
        {"dense": "a", "out": "b"},
    )
    _, state = parts.update(g, parts.init(PARAMS), PARAMS)
    found = read_probe(state)
    (name,) = [name for name in found if "/b/" in name and name.endswith("param_norm")]
    assert float(found[name]) == 2.0

    tx = probe(aj.adamw(0.1), per_leaf=per_leaf)
    marked = optax.tree.map_params(tx, lambda _: "param", tx.init(PARAMS))
    assert isinstance(marked, ComposeState)
    assert "param" not in jax.tree.leaves(marked.stages["probe"])
    assert jax.tree.leaves(marked.stages["estimate_moments"]).count("param") == 6


def test_errors() -> None:
    with pytest.raises(ValueError, match="no probe in this state, a ComposeState"):
        read_probe(aj.adamw(0.1).init(PARAMS))
    with pytest.raises(ValueError, match="two stages with state are called 'probe'"):
        probe(probe(aj.adamw(0.1)))
    with pytest.raises(ValueError, match="per_leaf must be True or False, got 1"):
        probe(aj.adamw(0.1), per_leaf=1)  # type: ignore[arg-type]
    tx = probe(aj.sgdw(0.1), per_leaf=True)
    with pytest.raises(ValueError, match=r"params has 1 leaves .*, but the probe saw 3"):
        read_probe(tx.init(PARAMS), {"x": 0})
    with pytest.raises(ValueError, match="probe needs the parameters"):
        tx.update(PARAMS, tx.init(PARAMS))
    with pytest.raises(ValueError, match="Put a whole optimizer before it"):
        probe(aj.lookahead())
