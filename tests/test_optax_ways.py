"""optax's own ways with a state: they work, or the error names ours."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import adamw_jax as aj
from tests.catalogue import PLAIN, Entry, rows, sample_params

pytestmark = pytest.mark.quick

PARAMS = {"w": jnp.ones(3)}


def moved(tx: Any, state: Any) -> float:
    """The first element of an update for a gradient of ones."""
    with jax.numpy_dtype_promotion("standard"):
        return float(jax.jit(tx.update)(PARAMS, state, PARAMS)[0]["w"][0])


@pytest.mark.parametrize("entry", rows(PLAIN))
def test_get_finds_the_one_count_and_every_hyperparameter(entry: Entry) -> None:
    tx = entry.make(0.05)
    state = tx.init(sample_params())
    assert int(optax.tree.get(state, "count")) == 0
    for name, value in aj.hyperparams(state).items():
        if "." not in name:
            assert float(optax.tree.get(state, name)) == float(value)
    for searched in ("value", "grad", "params"):
        assert optax.tree.get(state, searched) is None


def test_set_of_a_hyperparameter_names_ours() -> None:
    tx = aj.adam(1e-3)
    state = optax.tree.set(tx.init(PARAMS), learning_rate=0.5)
    for use in (lambda: tx.update(PARAMS, state, PARAMS), lambda: aj.hyperparams(state)):
        with pytest.raises(TypeError, match=r"as after optax\.tree\.set: .*set_hyperparams\(state"):
            use()
    assert int(optax.tree.set(tx.init(PARAMS), count=jnp.int32(3)).count) == 3


def test_assignment_pins() -> None:
    tx = aj.adam(optax.linear_schedule(1e-3, 0.0, 9))
    state = tx.init(PARAMS)
    state.hyperparams["learning_rate"] = 0.5
    assert moved(tx, state) == pytest.approx(-0.5)
    assert float(state.hyperparams["learning_rate"]) == 0.5
    with pytest.raises(ValueError, match=r"b2 must be a number in \[0, 1\)"):
        state.hyperparams["b2"] = 1.5
    with pytest.raises(KeyError, match="did you mean 'learning_rate'"):
        state.hyperparams["learning_rat"] = 0.5
    with pytest.raises(TypeError, match="clear_hyperparams"):
        del state.hyperparams["b1"]
    assert moved(tx, pickle.loads(pickle.dumps(state))) == pytest.approx(-0.5)
    assert dict(state.hyperparams) == dict(state.hyperparams.copy())


def test_injected_hyperparameters_are_found_once() -> None:
    tx = optax.inject_hyperparams(aj.adam)(learning_rate=1e-3)
    state = tx.init(PARAMS)
    assert float(optax.tree.get(state, "learning_rate")) == pytest.approx(1e-3)
    assert moved(tx, optax.tree.set(state, learning_rate=jnp.float32(0.5))) == pytest.approx(-0.5)
    state.hyperparams["learning_rate"] = jnp.float32(0.25)
    assert moved(tx, state) == pytest.approx(-0.25)


def test_arrays_are_hidden_from_get_and_read_by_ours() -> None:
    """The recipe cannot know whether ``inject_hyperparams`` gave an array, which keeps it, too."""
    state = aj.adam(jnp.float32(0.25), b1=0.5).init(PARAMS)
    assert optax.tree.get(state, "learning_rate") is None
    assert float(optax.tree.get(state, "b1")) == 0.5
    for read in (aj.hyperparams(state), state.hyperparams):
        assert float(read["learning_rate"]) == 0.25
    with pytest.raises(ValueError, match=r"learning_rate must be a scalar.* jax\.vmap"):
        aj.adam(jnp.ones(3))


SEARCHES = {
    "backtracking": lambda: optax.scale_by_backtracking_linesearch(15, store_grad=True),
    "zoom": lambda: optax.scale_by_zoom_linesearch(15),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("join", [optax.chain, aj.compose])
@pytest.mark.parametrize("search", SEARCHES)
def test_value_and_grad_from_state(search: str, join: Any) -> None:
    def loss(params: Any) -> jax.Array:
        return jnp.sum((params["w"] - 2.0) ** 2)

    def found(base: Any) -> float:
        tx = join(base, SEARCHES[search]())
        value_and_grad = optax.value_and_grad_from_state(loss)
        params, state = PARAMS, tx.init(PARAMS)
        for _ in range(5):
            value, grad = value_and_grad(params, state=state)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
        return float(loss(params))

    with jax.numpy_dtype_promotion("standard"):
        expected = found(optax.adam(1.0)) if join is optax.chain else 0.01
        assert found(aj.adam(1.0)) <= 1.01 * expected + 1e-6


def _spread() -> Any:
    mesh = jax.make_mesh((1,), ("d",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


TAKES = {
    "compose": lambda tx: aj.compose(tx),
    "probe": lambda tx: aj.probe(tx),
    "lookahead": lambda tx: aj.lookahead(tx),
    "quantize_state": lambda tx: aj.quantize_state(tx),
    "pack_small_leaves": lambda tx: aj.pack_small_leaves(tx, elementwise=True),
    "state_shardings": lambda tx: aj.state_shardings(tx, PARAMS, _spread()),
    "summary": lambda tx: aj.summary(tx, PARAMS),
    "migrate_state": lambda tx: aj.migrate_state(aj.adamw(1e-3).init(PARAMS), tx, PARAMS),
    "to_optax": lambda tx: aj.to_optax(
        aj.adam(1e-3).init(PARAMS), optax.MultiSteps(optax.adam(1e-3), 2), PARAMS
    ),
}


@pytest.mark.parametrize("name", TAKES)
def test_multi_steps_stands_wherever_a_transformation_does(name: str) -> None:
    with jax.numpy_dtype_promotion("standard"):
        TAKES[name](optax.MultiSteps(aj.adamw(1e-3), 4))


@pytest.mark.parametrize("name", sorted(TAKES.keys() - {"to_optax"}))
def test_what_is_no_transformation_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"transformation.*got 3"):
        TAKES[name](3)
