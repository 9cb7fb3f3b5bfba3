"""A whole Equinox model, with functions and None among its leaves, given as parameters or a state.

Every public function gives what it gives for the arrays of the model, or an error with the remedy.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import adamw_jax as aj
from adamw_jax import communication, curvature, diagnostics, initialization, storage
from tests.catalogue import assert_close
from tests.test_docstrings import PUBLIC
from tests.test_pytrees import MAKERS

pytestmark = pytest.mark.quick

MODEL = eqx.nn.MLP(2, 2, 3, 1, use_final_bias=False, key=jax.random.key(0))
ARRAYS = eqx.filter(MODEL, eqx.is_inexact_array)
GRADIENT = jax.tree.map(jnp.ones_like, ARRAYS)
KEY = jax.random.key(1)
BATCHES = [jnp.ones(()), jnp.full((), 2.0)]
SHARDING = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec())


def loss_fn(model: Any, batch: Any) -> Any:
    return sum(jnp.sum(batch * jnp.cos(x)) for x in jax.tree.leaves(model) if eqx.is_array(x))


COMPOSITE = curvature.CompositeLoss(lambda model, batch: loss_fn(model, batch), lambda z, _: z**2)
RULES = aj.parameter_rules({"*bias": aj.Rule(freeze=True)}, default=aj.Rule())
GRADINIT: dict[str, Any] = {"eta": 0.1, "gamma": 1.0, "scale_lr": 0.1}
SEARCH = initialization.GradInit(loss_fn, **GRADINIT)

ADAM, ADAM_OF_OPTAX, SGD = aj.adam(0.1), optax.adam(0.1), aj.sgdw(0.1)
PACKED = aj.pack_small_leaves(ADAM)
AVERAGED = aj.compose(ADAM, aj.average_iterates())
PROBED = aj.probe(ADAM, per_leaf=True)
GUARDED, SCALED = aj.skip_bad_steps(ADAM), aj.update.dynamic_loss_scale(ADAM)
METER = optax.chain(diagnostics.measure_noise_scale(8, 16), ADAM)
MEASURE = diagnostics.RunningMeasure()


def after_a_step(tx: Any, **extra: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.with_extra_args_support(tx)
        return tx.update(GRADIENT, tx.init(ARRAYS), ARRAYS, **extra)[1]


STATE = after_a_step(ADAM)


def stacked(model: Any) -> Any:
    """Two micro-batches of the gradient."""
    return jax.tree.map(lambda x: jnp.stack([x, 2 * x]) if eqx.is_array(x) else x, model)


def measured_steps(model: Any) -> Any:
    def step(state: Any, rate: Any, batch: Any) -> Any:
        state = model, aj.set_hyperparams(state[1], learning_rate=rate)
        return state, loss_fn(state[0], batch)

    return aj.lr_range_test(step, (model, STATE), BATCHES * 3, num_steps=6).losses


OF_TORCH = {
    "state": {
        i: {"step": 1, "exp_avg": np.asarray(x), "exp_avg_sq": np.asarray(x) ** 2}
        for i, x in enumerate(jax.tree.leaves(ARRAYS))
    },
    "param_groups": [{"params": [*range(len(jax.tree.leaves(ARRAYS)))], "betas": (0.9, 0.999)}],
}

ONE_BIT = communication.one_bit()
ERRORS = aj.compose(communication.compressed_mean(ONE_BIT, "data", workers=4), ADAM).init(ARRAYS)


def restored(saved: Any, params: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        aj.state.save_checkpoint(folder, 1, ADAM, saved, STATE)
        return aj.state.restore_checkpoint(folder, ADAM, params).params


OF_PARAMS: dict[str, Callable[[Any], Any]] = {
    "gauss_newton_fn": lambda m: curvature.gauss_newton_fn(COMPOSITE, m, 1.0)(GRADIENT),
    "gauss_newton_product": lambda m: curvature.gauss_newton_product(COMPOSITE, m, 1.0, GRADIENT),
    "hessian_diag": lambda m: curvature.hessian_diag(loss_fn, m, 1.0),
    "hessian_trace": lambda m: curvature.hessian_trace(loss_fn, m, 1.0, key=KEY),
    "hvp": lambda m: curvature.hvp(loss_fn, m, 1.0, GRADIENT),
    "hvp_fn": lambda m: curvature.hvp_fn(loss_fn, m, 1.0)(GRADIENT),
    "preconditioned_sharpness": lambda m: curvature.preconditioned_sharpness(
        loss_fn, m, 1.0, ADAM, STATE, key=KEY
    ),
    "preconditioner": lambda m: curvature.preconditioner(ADAM, STATE, m),
    "sharpness": lambda m: curvature.sharpness(loss_fn, m, 1.0, key=KEY),
    "spectral_density": lambda m: curvature.spectral_density(loss_fn, m, 1.0, k=2, key=KEY),
    "top_eigenvalues": lambda m: curvature.top_eigenvalues(loss_fn, m, 1.0, k=1, key=KEY),
    "curvature_noise_scale": lambda m: diagnostics.curvature_noise_scale(
        stacked(m), lambda v: v, 2
    ),
    "hessian_noise": lambda m: diagnostics.hessian_noise(loss_fn, m, BATCHES, key=KEY),
    "layer_gradient_norms": lambda m: diagnostics.layer_gradient_norms(m),
    "learn_rates": lambda m: diagnostics.learn_rates(after_a_step(SGD), loss_fn, m, 1.0, key=KEY),
    "micro_square_norms": lambda m: diagnostics.micro_square_norms(stacked(m)),
    "read_probe": lambda m: diagnostics.read_probe(after_a_step(PROBED), m),
    "stationarity_report": lambda m: diagnostics.stationarity_report(loss_fn, m, BATCHES, 0.1),
    "ParameterRules.for_tree": lambda m: RULES.for_tree(m).layers,
    "ParameterRules.frozen": lambda m: RULES.frozen(m).layers,
    "ParameterRules.settings": lambda m: RULES.settings(m)["rule"].layers,
    "layer_decay": lambda m: list(aj.direction.layer_decay(0.5, "layers/{}/*", m).tables[0].rules),
    "discriminative_rates": lambda m: list(
        aj.direction.discriminative_rates(0.1, 1.0, "layers/{}/*", m).tables[0].rules
    ),
    "mup": lambda m: list(aj.direction.mup(m, m).tables[0].rules),
    "matrices_only": lambda m: aj.matrices_only(m).layers,
    "GradInit.blocks": lambda m: SEARCH.blocks(m).names,
    "GradInit.init": lambda m: SEARCH.init(m),
    "GradInit.rescaled": lambda m: SEARCH.rescaled(m, SEARCH.init(ARRAYS)),
    "GradInit.step": lambda m: SEARCH.step(m, SEARCH.init(ARRAYS), (BATCHES[0], BATCHES[1])),
    "gradinit": lambda m: aj.gradinit(m, loss_fn, [(BATCHES[0], BATCHES[1])], **GRADINIT)[0],
    "repack_state": lambda m: aj.repack_state(after_a_step(PACKED), ADAM, m),
    "from_optax": lambda m: aj.from_optax(after_a_step(ADAM_OF_OPTAX), ADAM, m),
    "from_torch": lambda m: aj.from_torch(OF_TORCH, ADAM, m),
    "migrate_state": lambda m: aj.migrate_state(STATE, AVERAGED, m)[0],
    "state_shardings": lambda m: aj.state_shardings(ADAM, m, SHARDING),
    "summary": lambda m: aj.summary(ADAM, m),
    "to_optax": lambda m: aj.to_optax(STATE, ADAM_OF_OPTAX, m),
    "Choice.check_names": lambda m: storage.choose("8bit", exempt="*weight").check_names(STATE, m),
    "encode_state": lambda m: storage.encode_state(STATE, m, storage.choose("8bit", min_size=1)),
    "eval_params": lambda m: aj.eval_params(after_a_step(AVERAGED), m),
    "payload_bytes": lambda m: communication.payload_bytes(ONE_BIT, m),
    "received_bytes": lambda m: communication.received_bytes(ONE_BIT, m, 4),
    "restore_checkpoint": lambda m: restored(ARRAYS, m),
    "save_checkpoint": lambda m: restored(m, ARRAYS),
    "restart_averages": lambda m: aj.update.restart_averages(after_a_step(AVERAGED), AVERAGED, m),
}
OF_STATE: dict[str, Callable[[Any], Any]] = {
    "lr_range_test": measured_steps,
    "read_noise_scale": lambda m: diagnostics.read_noise_scale(
        (m, after_a_step(METER, micro_square_norm=jnp.float32(2.0)))
    ),
    "restart_moments": lambda m: aj.restart_moments((m, STATE))[1],
    "clear_hyperparams": lambda m: aj.clear_hyperparams((m, STATE))[1],
    "hyperparams": lambda m: aj.hyperparams((m, STATE)),
    "loss_scale": lambda m: aj.update.loss_scale((m, after_a_step(SCALED))),
    "read_skips": lambda m: aj.read_skips((m, after_a_step(GUARDED))),
    "set_hyperparams": lambda m: aj.set_hyperparams((m, STATE), learning_rate=0.5)[1],
    "resize_workers": lambda m: communication.resize_workers((m, ERRORS), 2)[1],
    "worker_specs": lambda m: [
        float(spec == PartitionSpec("data"))
        for spec in jax.tree.leaves(communication.worker_specs((m, ERRORS), "data")[1])
    ],
    "decode_state": lambda m: storage.decode_state((m, STATE))[1],
}
OTHERS = {"RunningMeasure.update", "RunningMeasure.read"}
"""Functions of a state that belongs to no parameters."""


def test_the_tables_have_every_public_function_of_a_tree() -> None:
    trees = {"params", "tree", "gradients", "state", "saved", "opt_state"}
    takers = {
        thing.__qualname__
        for thing in PUBLIC.values()
        if inspect.isfunction(thing)
        and not thing.__module__.startswith("adamw_jax.lab")
        and trees & set(inspect.signature(thing).parameters)
    }
    assert takers == {*OF_PARAMS, *OF_STATE, *OTHERS}


def assert_same_or_refused(call: Callable[[Any], Any]) -> None:
    expected = jax.tree.leaves(call(ARRAYS))
    try:
        got = call(MODEL)
    except TypeError as error:
        assert "'activation' is a " in str(error)  # noqa: PT017
        assert "eqx.filter(model, eqx.is_inexact_array)" in str(error)  # noqa: PT017
        return
    assert_alike([x for x in jax.tree.leaves(got) if not callable(x)], expected)


def assert_alike(got: list[Any], expected: list[Any]) -> None:
    for x, y in zip(got, expected, strict=True):
        assert x == y if isinstance(y, str | aj.direction.LeafRules) else np.allclose(x, y)


@pytest.mark.parametrize("name", OF_PARAMS)
def test_as_parameters(name: str) -> None:
    assert_same_or_refused(OF_PARAMS[name])


@pytest.mark.parametrize("name", OF_STATE)
def test_beside_a_state(name: str) -> None:
    """A training state may hold the model; functions of a state find the recipe in it."""
    assert_close(OF_STATE[name](MODEL), OF_STATE[name](ARRAYS))


ALONE = {
    "accumulator": aj.amsgrad_max(),
    "average": aj.average_iterates(),
    "friction": aj.moments.friction(),
    "lookahead around optax": aj.lookahead(optax.adam(0.1)),
    "lookahead": aj.lookahead(),
    "noise scale": diagnostics.measure_noise_scale(8, 16),
    "without state": aj.decoupled_decay(0.1),
}
INITS: dict[str, Callable[[], Any]] = {**MAKERS, **{k: lambda tx=tx: tx for k, tx in ALONE.items()}}


@pytest.mark.parametrize("name", INITS)
def test_given_to_init(name: str) -> None:
    tx = INITS[name]()
    with jax.numpy_dtype_promotion("standard"):  # optax's own are not strict
        assert_same_or_refused(lambda m: tx.init(m))
