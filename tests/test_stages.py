"""The pipe: what stages are, the order they may stand in, and what each does on its own."""

from __future__ import annotations

import copy
import pickle
import re
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
    diffgrad,
    ema,
    ema_of_centered_squares,
    ema_of_squares,
    estimate_moments,
    heavy_ball,
    hyperparams,
    infinity_norm,
    l2_decay,
    lamb,
    lookahead,
    migrate_state,
    nesterov,
    no_moment,
    precondition,
    radam,
    rectify_variance,
    scale_by_adam,
    scale_by_learning_rate,
    set_hyperparams,
    summary,
)
from adamw_jax._core.compose import Composed
from adamw_jax._core.declare import Domain, decay_rate, declare, fraction, real
from adamw_jax._core.stage import Kind, Stage, stage, stage_of
from adamw_jax.moments._parts import average
from tests.catalogue import (
    PLAIN,
    Entry,
    assert_close,
    assert_equal,
    at,
    avals,
    label,
    run,
    sample_gradients,
    sample_params,
)

STAGES: dict[str, tuple[Stage, str, str]] = {
    "l2_decay": (l2_decay(0.1), "gradient", "gradient"),
    "estimate_moments": (estimate_moments(), "gradient", "moments"),
    "amsgrad_max": (amsgrad_max(), "moments", "moments"),
    "nesterov": (nesterov(), "moments", "moments"),
    "correct_bias": (correct_bias(), "moments", "moments"),
    "rectify_variance": (rectify_variance(), "moments", "moments"),
    "precondition": (precondition(), "moments", "direction"),
    "decoupled_decay": (decoupled_decay(0.1), "direction", "direction"),
    "scale_by_learning_rate": (scale_by_learning_rate(0.1), "direction", "update"),
    "decoupled_decay (fixed)": (decoupled_decay(0.1, form="fixed"), "update", "update"),
    "lookahead": (lookahead(), "update", "update"),
}
RANK = {"gradient": 0, "moments": 1, "direction": 2, "update": 3}


@pytest.mark.parametrize("name", STAGES)
def test_a_copy_of_a_stage_is_as_good(name: str) -> None:
    made, _, _ = STAGES[name]
    for twin in (copy.copy(made), copy.deepcopy(made)):
        assert isinstance(twin, Stage)
        assert twin.spec.name == made.spec.name
        assert tuple(twin) == tuple(made)
    assert tuple(jax.tree.map(lambda x: x, made)) == tuple(made)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_an_optax_transformation_and_declares_its_kinds(name: str) -> None:
    stage, takes, gives = STAGES[name]
    assert isinstance(stage, optax.GradientTransformationExtraArgs)
    assert isinstance(stage, Stage)
    assert (stage.spec.takes, stage.spec.gives) == (Kind(takes), Kind(gives))
    assert stage.spec.name == name.split(" ")[0]


@pytest.mark.parametrize("first", STAGES)
@pytest.mark.parametrize("second", STAGES)
def test_order(first: str, second: str) -> None:
    """Two stages may follow each other exactly if what one gives is what the other takes."""
    (one, takes, gives), (two, needs, last) = STAGES[first], STAGES[second]
    before = {
        "gradient": [],
        "moments": [estimate_moments()],
        "direction": [estimate_moments(), precondition()],
        "update": [adam(0.1)],
    }[takes]
    after = [precondition()] if last == "moments" else []
    recipe = [*before, ("one", one), ("two", two), *after]
    if gives == needs:
        kinds = [spec.kinds for spec in compose(*recipe).specs]
        assert kinds == sorted(kinds, key=lambda kind: [RANK[k] for k in kind.split(" -> ")])
        return
    with pytest.raises(ValueError, match=rf"two takes {needs}, but one gives {gives}\. \w+"):
        compose(*recipe)


def test_every_mismatch_has_a_remedy() -> None:
    """The message of a wrong order ends with what to write."""
    for stages, remedy in (
        ([correct_bias()], r"Put estimate_moments\(...\) before it"),
        (
            [scale_by_learning_rate(0.1)],
            r"Put estimate_moments\(...\) and precondition\(\) before it",
        ),
        ([lookahead()], r"Put a whole optimizer before it, such as adamw"),
        (
            [scale_by_adam(), lookahead()],
            r"Put scale_by_learning_rate\(...\) of adamw_jax before it",
        ),
        ([adam(0.1), l2_decay(0.1)], r"Move it before"),
        ([adam(0.1), scale_by_adam()], r"Move it before"),
        ([estimate_moments(), decoupled_decay(0.1)], r"Put precondition\(\) before it"),
    ):
        with pytest.raises(ValueError, match=remedy):
            compose(*stages)


def test_foreign_stages_keep_the_kind() -> None:
    """optax's transformations may stand anywhere but between moments."""
    tx = compose(
        optax.clip(0.5),
        scale_by_adam(),
        optax.add_decayed_weights(0.1),
        scale_by_learning_rate(0.05),
    )
    expected = optax.chain(
        optax.clip(0.5), scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-0.05)
    )
    arguments = sample_params(), sample_gradients()
    assert_close(run(tx, *arguments)[0], run(expected, *arguments)[0])


def test_foreign_state_and_names() -> None:
    """A stateless foreign stage has no slot, one with state has one under its name or ours."""
    params = sample_params()
    tx = compose(optax.clip(1.0), optax.trace(0.9), ("second", optax.trace(0.5)), adam(0.1))
    assert sorted(tx.init(params).stages) == ["estimate_moments", "second", "trace"]
    with pytest.raises(ValueError, match=r"two stages with state are called 'trace': name one"):
        compose(optax.trace(0.9), optax.trace(0.5), adam(0.1)).init(params)
    with pytest.raises(TypeError, match=r"\('two', ...\) must name one transformation"):
        compose(("two", adam(0.1)))
    assert avals(compose(optax.clip(1.0), adam(0.1)).init(params)) == avals(adam(0.1).init(params))


def test_foreign_state_that_depends_on_the_tree() -> None:
    """Whether a foreign stage has a state is asked of the real parameters, not of a probe."""

    def biases(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.ndim < 2, tree)

    foreign = optax.masked(optax.trace(0.9), biases)
    plain = (estimate_moments(no_moment(), no_moment()), precondition(None))
    ours = compose(foreign, *plain, scale_by_learning_rate(0.1))
    theirs = optax.chain(foreign, optax.scale(-0.1))
    arguments = sample_params(), sample_gradients()
    assert_close(run(ours, *arguments)[0], run(theirs, *arguments)[0])
    state = ours.init(sample_params())
    stages = {name: kept for name, kept in state.stages.items() if name != "masked"}
    with pytest.raises(ValueError, match="the state has no entry for 'masked'"):
        ours.update(at(sample_gradients(1), 0), state._replace(stages=stages), sample_params())


def test_none_is_dropped_and_recipes_are_flattened() -> None:
    tx = compose(None, compose(scale_by_adam(), None), scale_by_learning_rate(0.05))
    assert [spec.name for spec in tx.specs] == [
        "estimate_moments", "correct_bias", "precondition", "scale_by_learning_rate"
    ]  # fmt: skip
    arguments = sample_params(), sample_gradients()
    assert_equal(run(tx, *arguments), run(adam(0.05), *arguments))
    assert_equal(run(compose(), *arguments)[0], run(optax.identity(), *arguments)[0])


@pytest.mark.sample(5)
@pytest.mark.parametrize("entry", PLAIN, ids=label)
def test_a_chain_of_the_stages_is_the_composed_recipe(entry: Entry) -> None:
    """Each stage alone in ``optax.chain`` counts and evaluates for itself: the same trajectory."""
    tx = entry.make(optax.linear_schedule(0.1, 0.02, 4))
    chained = optax.chain(*(stage_of(spec) for spec in tx.specs))
    arguments = sample_params(), sample_gradients(4)
    assert_close(run(chained, *arguments)[0], run(tx, *arguments)[0])


VECTOR = jnp.array([1.0, -2.0, 0.5])
SERIES = np.array([[1.0, -3.0, 0.0], [0.5, 2.0, 0.0], [-1.0, 0.1, 0.0], [2.0, -0.7, 0.0]])


def directions(*stages: Any) -> np.ndarray:
    """What a recipe makes of the series, step by step."""
    tx = compose(*stages)
    state, update, out = tx.init(VECTOR), jax.jit(tx.update), []
    for g in SERIES:
        direction, state = update(jnp.asarray(g, jnp.float32), state, VECTOR)
        out.append(np.asarray(direction))
    return np.stack(out)


def moments_by_hand(
    b1: float = 0.9, b2: float = 0.999
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First and second moments, uncorrected, and the steps."""
    m, v, first, second = np.zeros(3), np.zeros(3), [], []
    for g in SERIES:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        first.append(m)
        second.append(v)
    return np.stack(first), np.stack(second), np.arange(1, len(SERIES) + 1)[:, None]


def test_each_order_is_a_variant() -> None:
    """AMSGrad's maximum before, after, or without the correction: three formulas."""
    m, v, t = moments_by_hand()
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    largest = np.maximum.accumulate(v)
    cases = {
        "raw": ([amsgrad_max(), correct_bias()], (m / c1) / (np.sqrt(largest / c2) + 1e-8)),
        "corrected": (
            [correct_bias(), amsgrad_max(corrected=True)],
            (m / c1) / (np.sqrt(np.maximum.accumulate(v / c2)) + 1e-8),
        ),
        "paper": ([amsgrad_max()], m / (np.sqrt(largest) + 1e-8)),
    }
    got = {}
    for name, (stages, expected) in cases.items():
        got[name] = directions(estimate_moments(), *stages, precondition())
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-7)
    assert not np.allclose(got["raw"], got["corrected"], rtol=1e-3)
    assert not np.allclose(got["raw"], got["paper"], rtol=1e-3)
    for name, options in {
        "raw": {},
        "corrected": {"maximum": "corrected"},
        "paper": {"bias_correction_mu": False, "bias_correction_nu": False},
    }.items():
        made = directions(amsgrad(1.0, **options))
        np.testing.assert_allclose(made, -got[name], rtol=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_a_maximum_says_where_it_stands(corrected: bool) -> None:
    stages = [amsgrad_max(corrected), correct_bias()]
    wrong = stages if corrected else stages[::-1]
    with pytest.raises(ValueError, match=f"give corrected={not corrected}, or put the stage"):
        directions(estimate_moments(), *wrong, precondition())
    words = ("raw", "corrected")
    other, tx = (amsgrad(0.1, maximum=words[x]) for x in (not corrected, corrected))
    params = jnp.ones(2)
    with pytest.raises(ValueError, match=f"gets a state with corrected={not corrected}"):
        tx.update(params, other.init(params), params)
    uncorrected = amsgrad(0.1, maximum=words[corrected], bias_correction_nu=False)
    uncorrected.update(params, uncorrected.init(params), params)


def test_eps_forms_and_power() -> None:
    """eps outside, under the root, on the uncorrected root; and another power."""
    m, v, t = moments_by_hand()
    c1, c2 = 1 - 0.9**t, 1 - 0.999**t
    for options, expected in (
        ({"eps": 0.1}, (m / c1) / (np.sqrt(v / c2) + 0.1)),
        ({"eps": 0.1, "eps_root": 0.2}, (m / c1) / (np.sqrt(v / c2 + 0.2) + 0.1)),
        ({"eps": None, "eps_root": 0.2}, (m / c1) / np.sqrt(v / c2 + 0.2)),
        ({"eps": 0.1, "eps_hat": True}, np.sqrt(c2) / c1 * m / (np.sqrt(v) + 0.1)),
        ({"eps": 0.1, "power": 0.25}, (m / c1) / ((v / c2) ** 0.25 + 0.1)),
    ):
        got = directions(estimate_moments(), correct_bias(), precondition(**options))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_parts() -> None:
    """Infinity norm, heavy ball, centred squares, none."""
    m, _, t = moments_by_hand()
    u = np.zeros(3)
    norm = []
    for g in SERIES:
        u = np.maximum(0.999 * u, np.abs(g) + 1e-8)
        norm.append(u)
    got = directions(
        estimate_moments(ema(0.9), infinity_norm(0.999, 1e-8)), correct_bias(), precondition(None)
    )
    np.testing.assert_allclose(got, m / (1 - 0.9**t) / np.stack(norm), rtol=1e-4, atol=1e-7)

    buffer, ball, ahead = np.zeros(3), [], []
    for g in SERIES:
        buffer = 0.9 * buffer + g
        ball.append(buffer)
        ahead.append(g + 0.9 * buffer)
    for options, expected in (({}, ball), ({"nesterov": True}, ahead)):
        part = heavy_ball(0.9, **options)
        got = directions(estimate_moments(part, no_moment()), precondition(None))
        np.testing.assert_allclose(got, np.stack(expected), rtol=1e-5)

    s, centred = np.zeros(3), []
    for g, first in zip(SERIES, m, strict=True):
        s = 0.999 * s + 0.001 * (g - first) ** 2 + 1e-3
        centred.append(s)
    got = directions(
        estimate_moments(ema(0.9), ema_of_centered_squares(0.999, 1e-3)),
        correct_bias(),
        precondition(0.0),
    )
    expected = (m / (1 - 0.9**t)) / np.sqrt(np.stack(centred) / (1 - 0.999**t))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
    assert_equal(
        directions(estimate_moments(no_moment(), no_moment()), precondition()), np.float32(SERIES)
    )


def test_no_moment_stores_nothing() -> None:
    """A recipe without a part has no array for it."""
    sizes = {}
    for first in (ema(0.9), no_moment()):
        for second in (ema_of_squares(0.999), no_moment()):
            state = estimate_moments(first, second).init(jnp.zeros((8, 8)))
            arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
            sizes[first.name, second.name] = len(arrays)
    assert list(sizes.values()) == [2, 1, 1, 0]


def test_nesterov_has_its_place() -> None:
    """Before the correction, and on a moving average."""
    arguments = sample_params(), sample_gradients()
    tx = compose(
        *(estimate_moments(), nesterov(), correct_bias(), precondition()),
        scale_by_learning_rate(0.05),
    )
    assert_close(run(adam(0.05, nesterov=True), *arguments)[0], run(tx, *arguments)[0])
    params, gradient = sample_params(), at(sample_gradients(), 0)
    for stages, message in (
        ([estimate_moments(), correct_bias(), nesterov()], r"must come before correct_bias\(\)"),
        ([estimate_moments(heavy_ball(0.9)), nesterov()], r"heavy_ball has its own nesterov=True"),
        ([estimate_moments(no_moment()), nesterov()], r"needs a moving average as first moment"),
    ):
        tx = compose(*stages, precondition())
        state = tx.init(params)
        with pytest.raises(ValueError, match=message):
            tx.update(gradient, state, params)


def test_stages_that_need_a_second_moment_say_so() -> None:
    params, gradient = sample_params(), at(sample_gradients(), 0)
    for second, late, message in (
        (no_moment(), amsgrad_max(), r"amsgrad_max\(\) needs a second moment"),
        (no_moment(), rectify_variance(), r"needs a moving average as second moment"),
        (infinity_norm(), rectify_variance(), r"such as ema_of_squares"),
    ):
        tx = compose(estimate_moments(second=second), late, precondition())
        state = tx.init(params)
        with pytest.raises(ValueError, match=message):
            tx.update(gradient, state, params)
    for factory, argument in (
        (correct_bias, "convention"),
        (lambda x: rectify_variance(below=x), "below"),
    ):
        with pytest.raises(ValueError, match=rf"{argument} must be one of .*got 'no'"):
            factory("no")


def test_order_of_a_correction_twice() -> None:
    """What is corrected stays as it is: the stage is idempotent."""
    once = directions(estimate_moments(), correct_bias(), precondition())
    twice = directions(
        estimate_moments(), correct_bias(), ("again", correct_bias()), precondition()
    )
    assert_equal(once, twice)


def test_names_of_hyperparameters_are_shared_or_told_apart() -> None:
    """One learning rate for decay and step; two decays of different strength are two names."""
    schedule = optax.constant_schedule(0.1)
    tx = adamw(schedule, weight_decay=0.1, decay="proximal")
    assert sorted(tx.hyperparams) == ["b1", "b2", "eps", "learning_rate", "weight_decay"]

    def two(kernels: Any, others: Any) -> Composed:
        return compose(
            scale_by_adam(),
            ("kernels", decoupled_decay(kernels, "*/kernel")),
            ("others", decoupled_decay(others, "*/bias")),
            scale_by_learning_rate(0.1),
        )

    # Whether they are equal, or numbers at all, is no matter of the state.
    for kernels, others in ((0.1, 0.2), (0.1, 0.1), (schedule, 0.1), (schedule, schedule)):
        names = set(two(kernels, others).hyperparams)
        assert names == {"b1", "b2", "eps", "learning_rate"} | {
            f"{stage}.weight_decay" for stage in ("kernels", "others")
        }
    for other in (0.1, 0.2):
        with pytest.raises(ValueError, match=r"have a hyperparameter 'weight_decay': name one"):
            compose(scale_by_adam(), decoupled_decay(0.1), decoupled_decay(other))


def test_tails_take_updates_and_params() -> None:
    """A tail after the learning rate; the wrapper form gives the same parameters."""
    arguments = sample_params(), sample_gradients(4)
    tail, _ = run(compose(adam(0.05), lookahead(sync_period=2)), *arguments)
    wrapped, _ = run(lookahead(adam(0.05), 2), *arguments)
    chained, _ = run(optax.chain(adam(0.05), lookahead(sync_period=2)), *arguments)
    assert_close(tail, wrapped)
    assert_close(tail, chained)


def test_summary() -> None:
    """A row per stage, with kinds, hyperparameters, dtypes and bytes; nothing is allocated."""
    shapes = {"w": jax.ShapeDtypeStruct((1 << 20, 1 << 12), jnp.bfloat16)}
    tx = compose(
        optax.clip(1.0), adamw(optax.constant_schedule(0.1), mu_dtype=jnp.bfloat16), lookahead()
    )
    text, leaves = summary(tx, shapes).split("\n\n")
    assert leaves.splitlines()[2].split() == ["w", "4,294,967,296", "yes"]
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == [spec.name for spec in tx.specs]
    (moments,) = [line for line in lines if line.startswith("estimate_moments")]
    assert moments.endswith("6.00")
    assert "bfloat16, float32" in moments
    assert "learning_rate=schedule" in text
    assert lines[-1].startswith("sum over 4,294,967,296 parameters")
    assert lines[-1].endswith("10.00")
    assert "sum over 3 parameters" in summary(optax.sgd(0.1), jnp.zeros(3))


@pytest.mark.parametrize("eps_hat", [False, True])
def test_a_magnitude_of_one_s_own_is_corrected_as_one(eps_hat: bool) -> None:
    """A mean of |g|, on its own scale: its first reading is |g| itself, and the step 1 long."""
    part = average(
        "mean_of_magnitudes",
        "b2",
        declare(b2=decay_rate(0.99)),
        lambda gradient, first: jax.tree.map(jnp.abs, gradient),
        real=True,
    )._replace(magnitude=True)
    tx = compose(
        estimate_moments(no_moment(), part), correct_bias(), precondition(1e-6, eps_hat=eps_hat)
    )
    gradient = jnp.array([0.3, -0.1])
    direction, _ = tx.update(gradient, tx.init(gradient), gradient)
    added = 1e-6 / 0.01 if eps_hat else 1e-6
    expected = gradient / (jnp.abs(gradient) + added)
    np.testing.assert_allclose(direction, expected, rtol=1e-5)


def ranged(name: str, value: Any, domain: Domain) -> Any:
    """A recipe with a stage whose hyperparameter has a range of its own."""

    def apply(direction: Any, state: Any, step: Any) -> Any:
        return jax.tree.map(lambda d: d * step[name], direction), state

    declared = declare(**{name: domain(value)})
    mine = stage("mine", Kind.DIRECTION, Kind.DIRECTION, apply, hyperparams=declared)
    return compose(scale_by_adam(), mine, scale_by_learning_rate(1e-3))


def carried(tx: Any) -> Any:
    """States that went through what takes them apart."""
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    return [
        state,
        pickle.loads(pickle.dumps(state)),
        jax.tree.map(lambda x: x, state),
        jax.jit(tx.update)(params, state, params)[1],
    ]


def test_the_range_of_a_hyperparameter_is_where_it_was_declared() -> None:
    with pytest.raises(ValueError, match=r"gamma must be a number in \[0, 1\] or a schedule, got"):
        ranged("gamma", 9.0, fraction)
    with pytest.raises(ValueError, match="threshold must be a number >= 0"):
        radam(1e-3, threshold=-1.0)
    for state in carried(ranged("gamma", 0.5, fraction)):
        with pytest.raises(ValueError, match=r"gamma must be a number in \[0, 1\], got 7"):
            set_hyperparams(state, gamma=7.0)
    for own, rectified in zip(
        carried(ranged("threshold", -2.0, real)), carried(radam(1e-3)), strict=True
    ):
        assert hyperparams(set_hyperparams(own, threshold=-1.0))["threshold"] == -1
        with pytest.raises(ValueError, match="threshold must be a number >= 0"):
            set_hyperparams(rectified, threshold=-1.0)


def test_a_pinned_value_outside_a_range_that_became_narrower_is_refused() -> None:
    params = {"w": jnp.ones(2)}
    state = set_hyperparams(ranged("gamma", 0.5, real).init(params), gamma=-1.0)
    tx = ranged("gamma", 0.5, fraction)
    for use in (tx.update, lambda g, s, p: migrate_state(s, tx, p)):
        with pytest.raises(ValueError, match=r"gamma is pinned to -1.0, but must be a number in"):
            use(params, state, params)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: adamw(0.1), ("estimate_moments", "decoupled_decay", "scale_by_learning_rate")),
        (lambda: lamb(0.1), ("precondition", "scale_by_trust_ratio")),
        (lambda: adamw(0.1, storage="8bit"), ("estimate_moments", "precondition")),
        (lambda: diffgrad(0.1), ("friction",)),
    ],
    ids=["adamw", "lamb", "8 bits", "diffgrad"],
)
def test_a_compiled_step_names_its_stages(
    make: Any, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the metadata of its instructions, from which a profile takes the names."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    params, tx = {"a": jnp.ones((64, 128)), "b": jnp.ones((64, 128))}, make()
    text = jax.jit(tx.update).lower(params, tx.init(params), params).compile().as_text()
    assert text is not None
    for name in names:
        assert re.search(rf'op_name="[^"]*/{name}/', text), name
