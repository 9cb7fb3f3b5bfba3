"""``only``: one stage on some leaves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adamw_jax import (
    adam,
    adamw,
    amsgrad,
    amsgrad_max,
    compose,
    correct_bias,
    decoupled_decay,
    delay_second,
    estimate_moments,
    l2_decay,
    lookahead,
    only,
    precondition,
    radam,
    rectify_variance,
    scale_by_adam,
    scale_by_learning_rate,
    scale_by_parameter_rms,
    scale_by_sgdw,
)
from adamw_jax.extend import Kind, Step, stage
from adamw_jax.update._effective_decay import effective_decay
from tests.catalogue import (
    assert_close,
    at,
    run,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

KERNELS = {"dense": {"bias": False, "kernel": True}, "scale": False}


def kernels(tree: Any) -> Any:
    """The mask of matrices."""
    return jax.tree.map(lambda x: x.ndim > 1, tree)


@pytest.mark.parametrize(
    "where", [KERNELS, "*/kernel", kernels], ids=["tree", "pattern", "callable"]
)
def test_only_a_maximum_for_some(where: Any) -> None:
    """AMSGrad for kernels, Adam for the rest, with state for the kernels alone."""
    tx = compose(
        estimate_moments(), only(amsgrad_max(), where), correct_bias(), precondition(),
        scale_by_learning_rate(0.05),
    )  # fmt: skip
    arguments = sample_params(), sample_gradients(4)
    got, state = run(tx, *arguments)
    largest, plain = run(amsgrad(0.05), *arguments)[0], run(adam(0.05), *arguments)[0]
    assert_close(got["dense"]["kernel"], largest["dense"]["kernel"])
    assert_close(got["dense"]["bias"], plain["dense"]["bias"])
    assert_close(got["scale"], plain["scale"])
    assert [x.shape for x in jax.tree.leaves(state.stages["amsgrad_max"])] == [(2, 3)]


@pytest.mark.parametrize("below", ["skip", "decay", "momentum"])
def test_only_a_rectifier_for_some(below: str) -> None:
    """Gain, flag and the standing still of decay are leaf by leaf."""
    tx = compose(
        estimate_moments(), correct_bias(), only(rectify_variance(below=below), "*/kernel"),
        precondition(), decoupled_decay(0.1), scale_by_learning_rate(0.05),
    )  # fmt: skip
    arguments = sample_params(), sample_gradients(7)
    got, _ = run(tx, *arguments)
    rectified = run(radam(0.05, below=below, weight_decay=0.1), *arguments)[0]
    plain = run(adamw(0.05, weight_decay=0.1), *arguments)[0]
    assert_close(got["dense"]["kernel"], rectified["dense"]["kernel"])
    assert_close(got["dense"]["bias"], plain["dense"]["bias"])
    assert_close(got["scale"], plain["scale"])


def test_a_rectifier_of_some_leaves_the_settled_first_step_of_all() -> None:
    """ACProp's first step is the plain gradient, also where the rectifier skips."""
    tx = compose(
        estimate_moments(), delay_second(), correct_bias(), only(rectify_variance(), "*/kernel"),
        precondition(), scale_by_learning_rate(1.0),
    )  # fmt: skip
    params, gradients = sample_params(), sample_gradients(1)
    got, _ = run(tx, params, gradients)
    assert_close(got, jax.tree.map(lambda p, g: p - g[0], params, gradients))


def test_a_rectifier_of_some_behind_a_settled_step_leaves_decay_to_the_rest() -> None:
    """Where only some leaves may stand still, and not in the first step, the others decay."""

    def made(rectifier: Any) -> Any:
        return compose(
            estimate_moments(), delay_second(), correct_bias(), rectifier, precondition(),
            decoupled_decay(0.1), scale_by_learning_rate(0.05),
        )  # fmt: skip

    arguments = sample_params(), sample_gradients(7)
    got = run(made(only(rectify_variance(), "*/kernel")), *arguments)[0]
    rectified, plain = (run(made(x), *arguments)[0] for x in (rectify_variance(), None))
    assert_close(got["dense"]["kernel"], rectified["dense"]["kernel"])
    assert_close(got["dense"]["bias"], plain["dense"]["bias"])


def test_only_some_decay_and_some_momentum() -> None:
    """On directions, gradients and updates too."""
    arguments = sample_params(), sample_gradients()
    masked = adamw(0.05, weight_decay=0.1, mask="*/kernel")
    for decay in (
        only(decoupled_decay(0.1), "*/kernel"),
        decoupled_decay(0.1, "*/kernel"),
    ):
        tx = compose(scale_by_adam(), decay, scale_by_learning_rate(0.05))
        assert_close(run(tx, *arguments)[0], run(masked, *arguments)[0])
    coupled = compose(only(l2_decay(0.1), "*/kernel"), adam(0.05))
    assert_close(
        run(coupled, *arguments)[0], run(adam(0.05, l2=0.1, mask="*/kernel"), *arguments)[0]
    )
    tail = compose(adam(0.05), only(lookahead(sync_period=2), "*/kernel"))
    got = run(tail, *arguments)[0]
    whole = run(compose(adam(0.05), lookahead(sync_period=2)), *arguments)[0]
    plain = run(adam(0.05), *arguments)[0]
    assert_close(got["dense"]["kernel"], whole["dense"]["kernel"])
    assert_close(got["scale"], plain["scale"])


def test_decay_knows_the_scale_of_some_parameters() -> None:
    """A decay as long as the step sees the scale where there is one, and 1 elsewhere."""
    params = {"a": jnp.array([3.0, -3.0]), "b": jnp.array([2.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = compose(
        scale_by_sgdw(momentum=None),
        only(scale_by_parameter_rms(), "a"),
        scale_by_learning_rate(0.1),
        effective_decay(0.5, 0.1),
    )
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1 * 0.5 * 3.0 * params["a"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], -0.1 * 0.5 * params["b"], rtol=1e-6)


def test_only_refuses_what_it_cannot_do() -> None:
    with pytest.raises(
        ValueError, match=r"keeps the kind, but precondition is moments -> direction"
    ):
        only(precondition(), "*/kernel")
    with pytest.raises(ValueError, match=r"estimate_moments is gradient -> moments"):
        only(estimate_moments(), "*/kernel")
    with pytest.raises(TypeError, match=r"only\(\) takes a stage of adamw_jax.*optax.masked"):
        only(optax.clip(1.0), "*/kernel")
    tx = compose(estimate_moments(), only(correct_bias(), "*/kernel"), precondition())
    params = sample_params()
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"only\(\) cannot correct the bias of some leaves"):
        tx.update(at(sample_gradients(), 0), state, params)


def test_a_stage_kept_to_some_hears_what_was_told() -> None:
    """Decay of some leaves stands still with the step, as decay with a mask does."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}

    def first_step(decay: Any) -> Any:
        tx = compose(
            estimate_moments(), correct_bias(), rectify_variance(), precondition(), decay,
            scale_by_learning_rate(0.1),
        )  # fmt: skip
        return tx.update(params, tx.init(params), params)[0]

    partial = first_step(only(decoupled_decay(0.5), "a"))
    assert_close(partial, first_step(decoupled_decay(0.5, mask="a")))
    assert_close(partial["a"], jnp.zeros(2))


def test_two_stages_kept_to_some_tell_of_both() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    tx = compose(
        estimate_moments(), correct_bias(), only(rectify_variance(), "a"),
        ("other", only(rectify_variance(), "b")), precondition(), decoupled_decay(0.5),
        scale_by_learning_rate(0.1),
    )  # fmt: skip
    updates, _ = tx.update(params, tx.init(params), params)
    assert_close(updates, {"a": jnp.zeros(2), "b": jnp.zeros(2)})


def test_a_maximum_for_some_is_emptied_at_a_restart() -> None:
    """Also one behind a stage that is kept to some leaves."""
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}

    def after(*stages: Any) -> Any:
        tx = compose(
            estimate_moments(restart_period=3), *stages, correct_bias(), precondition(),
            scale_by_learning_rate(0.1),
        )  # fmt: skip
        state, theta = tx.init(params), params
        for size in (100.0, 100.0, 100.0, 1.0, 1.0):
            updates, state = tx.update(jax.tree.map(lambda x, s=size: s * x, params), state, theta)
            theta = optax.apply_updates(theta, updates)
        return theta

    whole, plain = after(amsgrad_max()), after()
    partial = after(only(amsgrad_max(), "a"))
    assert_close(partial["a"], whole["a"])
    assert_close(partial["b"], plain["b"])
    both = after(only(amsgrad_max(), "a"), ("other", only(amsgrad_max(), "b")))
    assert_close(both, whole)


def test_a_hidden_leaf_is_hidden_in_every_field_of_the_record() -> None:
    """A field with a tree that does not declare how to map its leaves would show leaf ``b``."""
    params = {"a": jnp.ones(2), "b": jnp.ones(5)}
    seen: list[Any] = []

    def look(record: Any, state: Any, step: Step) -> tuple[Any, Any]:
        del step
        seen.append(vars(record))
        return record, state

    spy = stage("spy", Kind.MOMENTS, Kind.MOMENTS, look)
    tx = compose(
        estimate_moments(), delay_second(), correct_bias(), only(rectify_variance(), "b"),
        only(spy, "a"), precondition(),
    )  # fmt: skip
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["b"].shape == (5,)
    (fields,) = seen
    assert all(fields[name] is not None for name in ("numerator", "gain", "exceptions"))
    shown = [x for x in jax.tree.leaves(fields) if isinstance(x, jax.Array)]
    assert {x.shape for x in shown} == {(), (2,)}
    assert fields["gain"]["b"] == optax.MaskedNode()
    assert all(where["b"] == optax.MaskedNode() for where, _ in fields["exceptions"][1:])
