"""A restart of the moments: the next step is the first step of a new optimizer."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
import pytest

import adamw_jax as aj
from adamw_jax._core.encoded import decode_state
from adamw_jax.update._average_iterates import KINDS
from tests.catalogue import (
    EXTRA,
    PLAIN,
    Entry,
    assert_close,
    assert_finite,
    at,
    label,
    one_operation_at_a_time,
    sample_gradients,
    sample_params,
)

pytestmark = pytest.mark.quick

STEPS = 4
OPTIONS: tuple[dict[str, Any], ...] = (
    {"bias_correction": "current"},
    {"amsgrad": True},
    {"momentum": 0.9, "dampening": 0.5},
)
ALONE = [entry for entry in PLAIN if not entry.keeps_weights]
HAVE_MOMENTS = [entry for entry in ALONE if not entry.name.startswith(("koala_", "norm_adaptive"))]


def takers(entry: Entry) -> list[Any]:
    """The optimizer with each of the ``OPTIONS`` that it takes."""
    made = [entry.make()]
    for options in OPTIONS:
        try:
            made.append(entry.make(**options))
        except (TypeError, ValueError):  # it does not take this one
            continue
    return made


def last_update(tx: Any, state: Any, restart: bool = False) -> Any:
    """The update of the last gradient, after the others, and perhaps a restart."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    update = one_operation_at_a_time(
        lambda g, s, p: tx.update(g, s, p, **EXTRA), at(gradients, 0), state, params
    )
    for i in range(STEPS - 1):
        _, state = update(at(gradients, i), state, params)
    state = aj.restart_moments(state) if restart else state
    return update(at(gradients, STEPS - 1), state, params)[0]


def first_update(tx: Any) -> Any:
    """The update of the last gradient as the first one."""
    params, gradient = sample_params(), at(sample_gradients(STEPS), STEPS - 1)
    return tx.update(gradient, tx.init(params), params, **EXTRA)[0]


@pytest.mark.sample(5)
@pytest.mark.parametrize("entry", HAVE_MOMENTS, ids=label)
def test_by_hand(entry: Entry) -> None:
    """AMSGrad's maximum and the previous gradient are forgotten as well."""
    for tx in takers(entry):
        assert_close(last_update(tx, tx.init(sample_params()), restart=True), first_update(tx))


@pytest.mark.sample(5)
@pytest.mark.parametrize("entry", HAVE_MOMENTS, ids=label)
def test_by_lookahead(entry: Entry) -> None:
    """A Lookahead that resets its inner state, which synced after three steps."""
    tx = aj.lookahead(entry.make(), STEPS - 1, inner_state="reset")
    assert_close(last_update(tx, tx.init(sample_params())), first_update(entry.make()))


WARM_UP = optax.linear_schedule(0.0, 1.0, 10)
BESIDE_MOMENTS: dict[str, Any] = {
    **{entry.name: entry.make for entry in ALONE},
    **{
        f"{kind} mean": lambda kind=kind: aj.compose(aj.adam(0.1), aj.average_iterates(kind=kind))
        for kind in KINDS
    },
    "stochastic rounding": lambda: aj.compose(aj.adam(0.1), aj.stochastic_rounding()),
    "compensated rounding": lambda: aj.compose(aj.adam(0.1), aj.compensated_rounding()),
    "percentile clipping": lambda: aj.compose(aj.percentile_clipping(50, 10), aj.adam(0.1)),
    "foreign schedule": lambda: aj.compose(
        aj.scale_by_adam(), optax.scale_by_learning_rate(WARM_UP)
    ),
    "probe": lambda: aj.probe(aj.adam(0.1)),
    "quantized": lambda: aj.quantize_state(aj.adam(0.1), min_size=1, rounding="stochastic"),
    "packed": lambda: aj.pack_small_leaves(aj.adam(0.1)),
    "accumulated": lambda: optax.MultiSteps(aj.adam(0.1), 2).gradient_transformation(),
}


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=pytest.mark.slow if x in aj.list_optimizers() else ())
        for x in BESIDE_MOMENTS
    ],
)
def test_a_reset_is_a_restart_of_the_moments(name: str) -> None:
    """Averages, keys, histories, counts and filters go on, as after ``restart_moments``."""
    inner, params = BESIDE_MOMENTS[name](), sample_params()
    tx = aj.lookahead(inner, STEPS - 1, 1.0, inner_state="reset")
    state, plain = tx.init(params), inner.init(params)
    assert_finite(plain)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps is not strict
        for i in range(STEPS - 1):
            gradient = at(sample_gradients(STEPS), i)
            _, state = tx.update(gradient, state, params, **EXTRA)
            _, plain = inner.update(gradient, plain, params, **EXTRA)
    wanted = aj.restart_moments(plain)
    assert_close(decode_state(state.inner), decode_state(wanted), rtol=1e-6)


FOREIGN = {
    "adam": optax.adam, "amsgrad": optax.amsgrad, "adabelief": optax.adabelief, "lion": optax.lion,
    "adafactor": optax.adafactor, "adadelta": optax.adadelta, "adagrad": optax.adagrad,
    "adan": optax.adan, "novograd": optax.novograd, "rmsprop": optax.rmsprop,
    "sgd": lambda rate: optax.sgd(rate, 0.9),
    "rms": lambda rate: optax.rmsprop(rate, bias_correction=True, centered=True),
    "injected": lambda rate: optax.inject_hyperparams(optax.adam)(rate),
    "in a recipe": lambda rate: aj.compose(
        optax.scale_by_adam(), optax.scale_by_learning_rate(rate)
    ),
}  # fmt: skip


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", FOREIGN)
def test_schedules_of_optax_go_on(name: str) -> None:
    """The update of the first moments, at the step size of the present step."""
    params, gradients = sample_params(), sample_gradients(STEPS)
    with jax.numpy_dtype_promotion("standard"):  # optax itself is not strict
        tx = aj.lookahead(FOREIGN[name](WARM_UP), STEPS - 1, 1.0, inner_state="reset")
        late = FOREIGN[name](lambda count: WARM_UP(count + STEPS - 1))
        state = tx.init(params)
        for i in range(STEPS - 1):
            _, state = tx.update(at(gradients, i), state, params)
        got = tx.update(at(gradients, STEPS - 1), state, params)[0]
        wanted = late.update(at(gradients, STEPS - 1), late.init(params), params)[0]
    assert_close(got, wanted)


def test_a_reset_of_nothing_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not know which arrays .* restarts = True"):
        aj.lookahead(optax.contrib.dog(1.0), inner_state="reset").init(sample_params())
    aj.lookahead(optax.sgd(WARM_UP), inner_state="reset").init(sample_params())


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=str)
def test_by_period(options: dict[str, Any]) -> None:
    tx = aj.adan(0.1, restart_period=STEPS - 1, **options)
    assert_close(last_update(tx, tx.init(sample_params())), first_update(tx))
    later = aj.adan(0.1, restart_period=STEPS, **options)
    kept = last_update(later, later.init(sample_params()))
    fresh = first_update(later)
    assert not np.allclose(kept["dense"]["kernel"], fresh["dense"]["kernel"], rtol=1e-2)


def test_friction_by_period() -> None:
    """diffGrad's previous gradient is a memory too."""
    tx = aj.compose(
        aj.estimate_moments(restart_period=STEPS - 1),
        aj.friction(),
        aj.correct_bias(),
        aj.precondition(),
        aj.scale_by_learning_rate(0.1),
    )
    assert_close(last_update(tx, tx.init(sample_params())), first_update(tx))


def test_steps_and_schedules_go_on() -> None:
    """Only the moments are emptied."""
    tx = aj.adamw(aj.one_cycle(0.1, 10))
    params = sample_params()
    state = tx.init(params)
    for i in range(3):
        _, state = tx.update(at(sample_gradients(), i), state, params)
    restarted = aj.restart_moments(state)
    assert int(restarted.count) == 3
    assert_close(aj.hyperparams(restarted), aj.hyperparams(state))
    assert not any(np.any(x) for x in jax.tree.leaves(restarted.stages["estimate_moments"]))
