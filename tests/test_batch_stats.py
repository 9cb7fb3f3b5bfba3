"""``refresh_batch_stats`` against the recorded case, and Flax models against NumPy."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adamw_jax import adam, average_iterates, compose, eval_params
from adamw_jax.update import refresh_batch_stats
from tests.catalogue import assert_close
from tests.golden_batch_norm import SYSTEM, replay_batch_norm
from tests.golden_cases import CASES, Case

pytestmark = pytest.mark.quick

SIZES, SPACE, CHANNELS = (8, 8, 5, 2), (3, 2), 4
WIDTH, OUT, MOMENTUM = 6, 3, 0.9
VALUES = {"first": SPACE[0] * SPACE[1], "second": 1}


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.system == SYSTEM], ids=lambda case: case.label
)
def test_golden(x64: None, case: Case) -> None:
    got = replay_batch_norm(case)
    rtol, atol = case.tolerance
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(got[name], case.arrays[name], rtol=rtol, atol=atol)


def images() -> list[Any]:
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(2.0, 3.0, (b, *SPACE, CHANNELS)), jnp.float32) for b in SIZES]


def by_hand(layers: Any, ddof: int) -> Any:
    """Two layers, each with a normalisation behind it: over space in the first, not the second."""
    (w1, b1), (scale, shift), (w2, b2) = jax.tree.map(lambda x: np.asarray(x, np.float64), layers)
    found: dict[str, list[Any]] = {"first": [], "second": []}
    for batch in images():
        x = np.asarray(batch, np.float64) @ w1 + b1
        axes = (0, 1, 2)
        found["first"].append((x.mean(axes), x.var(axes, ddof=ddof)))
        x = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5) * scale + shift
        x = np.maximum(x, 0.0).mean((1, 2)) @ w2 + b2
        found["second"].append((x.mean(0), x.var(0, ddof=ddof)))
    weights = np.array(SIZES) / sum(SIZES)
    return {
        layer: {
            name: sum(w * pair[i] for w, pair in zip(weights, pairs, strict=True))
            for i, name in enumerate(("mean", "var"))
        }
        for layer, pairs in found.items()
    }


class Linen(nn.Module):
    """A dense layer over images, their mean, and a dense layer, with a normalisation each."""

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        def norm(name: str) -> Any:
            return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, name=name)

        x = nn.relu(norm("first")(nn.Dense(WIDTH, name="dense1")(x)))
        return norm("second")(nn.Dense(OUT, name="dense2")(x.mean((1, 2))))


def linen() -> tuple[Any, Any]:
    model = Linen()
    variables = model.init(jax.random.key(0), images()[0], train=False)
    params = jax.tree.map(lambda p: p + 0.1, variables["params"])
    return model, {**variables, "params": params}


def linen_apply(model: Any, variables: Any) -> Any:
    empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])

    @jax.jit
    def apply_fn(batch: Any) -> Any:
        state = {"params": variables["params"], "batch_stats": empty}
        return model.apply(state, batch, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    return apply_fn


def layers_of(params: Any) -> Any:
    first, norm, second = (params[name] for name in ("dense1", "first", "dense2"))
    pair = (first["kernel"], first["bias"]), (norm["scale"], norm["bias"])
    return (*pair, (second["kernel"], second["bias"]))


@pytest.mark.parametrize("values", [None, VALUES], ids=["biased", "unbiased"])
def test_linen(values: Any) -> None:
    """Flax's own variances are biased; with the number of values they are PyTorch's."""
    with jax.numpy_rank_promotion("allow"):
        model, variables = linen()
        apply_fn = linen_apply(model, variables)
        got = refresh_batch_stats(apply_fn, images(), momentum=MOMENTUM, values_per_example=values)
    expected = by_hand(layers_of(variables["params"]), ddof=0 if values is None else 1)
    assert_close(got, jax.tree.map(np.float32, expected), rtol=1e-4, atol=1e-5)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, variables["batch_stats"])


class Nnx(nnx.Module):
    """The same model."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense1 = nnx.Linear(CHANNELS, WIDTH, rngs=rngs)
        self.first = nnx.BatchNorm(WIDTH, momentum=MOMENTUM, rngs=rngs)
        self.dense2 = nnx.Linear(WIDTH, OUT, rngs=rngs)
        self.second = nnx.BatchNorm(OUT, momentum=0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.first(self.dense1(x)))
        return self.second(self.dense2(x.mean((1, 2))))


@pytest.mark.parametrize("values", [None, VALUES], ids=["biased", "unbiased"])
def test_nnx(values: Any) -> None:
    """Here the two layers differ in their momentum, and the model takes the statistics back."""
    with jax.numpy_rank_promotion("allow"):
        net = Nnx(nnx.Rngs(0))
        definition, params, stats, others = nnx.split(net, nnx.Param, nnx.BatchStat, ...)
        empty = jax.tree.map(jnp.zeros_like, stats)

        @jax.jit
        def apply_fn(batch: Any) -> Any:
            copy = nnx.merge(definition, params, empty, others, copy=True)
            copy.train()
            copy(batch)
            return nnx.state(copy, nnx.BatchStat)

        def like(numbers: dict[str, Any]) -> Any:
            """Numbers of the layers as a tree of the statistics' structure."""
            return jax.tree_util.tree_map_with_path(lambda path, _: numbers[path[0].key], stats)

        new = refresh_batch_stats(
            apply_fn,
            images(),
            momentum=like({"first": MOMENTUM, "second": 0.5}),
            values_per_example=None if values is None else like(values),
        )
        nnx.update(net, new)
    layers = (
        (net.dense1.kernel[...], net.dense1.bias[...]),
        (net.first.scale[...], net.first.bias[...]),
        (net.dense2.kernel[...], net.dense2.bias[...]),
    )
    expected = by_hand(layers, ddof=0 if values is None else 1)
    for name, layer in (("first", net.first), ("second", net.second)):
        got = {"mean": layer.mean[...], "var": layer.var[...]}
        assert_close(got, jax.tree.map(np.float32, expected[name]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_averaged_weights_get_their_statistics() -> None:
    """From the average in the optimizer's state to the statistics that go with it."""
    with jax.numpy_rank_promotion("allow"):
        model, variables = linen()
        params = variables["params"]
        tx = compose(adam(0.05), average_iterates())
        state = tx.init(params)
        for step in range(3):
            updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = jax.tree.map(jnp.add, params, updates)
            if step == 0:
                early = params
        averaged = eval_params(state, params)
        got, of_last, of_first = (
            refresh_batch_stats(
                linen_apply(model, {**variables, "params": p}), images(), momentum=MOMENTUM
            )
            for p in (averaged, params, early)
        )
    expected = by_hand(layers_of(averaged), ddof=0)
    assert_close(got, jax.tree.map(np.float32, expected), rtol=1e-4, atol=1e-5)
    for other in (of_last, of_first):
        assert not np.allclose(other["first"]["mean"], got["first"]["mean"], rtol=1e-3)


# The function by itself.


def moments(batch: Any) -> dict[str, Any]:
    return {"mean": batch.mean(0), "var": batch.var(0)}


def vectors(sizes: Any = SIZES) -> list[Any]:
    rng = np.random.default_rng(2)
    return [jnp.asarray(rng.normal(1.0, 2.0, (b, 3)), jnp.float32) for b in sizes]


def test_variances_are_averaged_not_pooled() -> None:
    """Two constant batches have no variance, however far apart."""
    got = refresh_batch_stats(moments, [jnp.zeros((2, 3)), jnp.full((6, 3), 4.0)])
    assert_close(got, {"mean": jnp.full(3, 3.0), "var": jnp.zeros(3)})


def test_the_order_and_the_kind_of_iterable_do_not_matter() -> None:
    batches = vectors()
    expected = refresh_batch_stats(moments, batches)
    assert_close(refresh_batch_stats(moments, reversed(batches)), expected, rtol=1e-6)
    assert_close(refresh_batch_stats(moments, (b for b in batches)), expected, rtol=1e-6)


def test_unbiased_variances_pass_unchanged() -> None:
    unbiased = refresh_batch_stats(
        lambda x: {"mean": x.mean(0), "var": x.var(0, ddof=1)}, vectors()
    )
    assert_close(refresh_batch_stats(moments, vectors(), values_per_example=1), unbiased)


def test_other_names_of_variances() -> None:
    def apply_fn(batch: Any) -> Any:
        return {"bn": {"m": batch.mean(0), "v": batch.var(0)}}

    got = refresh_batch_stats(apply_fn, vectors(), values_per_example=1, variances="*/v")
    expected = refresh_batch_stats(moments, vectors(), values_per_example=1)
    assert_close(got["bn"], {"m": expected["mean"], "v": expected["var"]})


def test_size_of_a_batch_that_is_padded() -> None:
    """Weights come from ``size``; without it from the first array of the batch."""
    batches = [{"x": x, "rows": n} for x, n in zip(vectors((8, 8)), (6, 2), strict=True)]

    def apply_fn(batch: Any) -> Any:
        return moments(batch["x"][: batch["rows"]])

    got = refresh_batch_stats(apply_fn, batches, size=lambda batch: batch["rows"])
    parts = [apply_fn(batch) for batch in batches]
    expected = jax.tree.map(lambda a, b: (6 * a + 2 * b) / 8, *parts)
    assert_close(got, expected)


def test_narrow_statistics_are_averaged_in_float32() -> None:
    """A thousand batches in bfloat16: a running sum there would stop long before the end."""
    batches = [jnp.full((1, 2), 1.0 + i % 2, jnp.bfloat16) for i in range(1000)]
    got = refresh_batch_stats(lambda x: {"mean": x.mean(0)}, batches)
    assert got["mean"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got["mean"], np.float32), 1.5)


def grow(batch: Any) -> Any:
    return {"mean": jnp.zeros(len(batch))}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"momentum": 1.0}, "momentum must be a number >= 0 and < 1, got 1.0"),
        ({"momentum": {"average": 0.9}}, "momentum must be a number or a tree of numbers"),
        ({"values_per_example": 0}, "values_per_example must be a whole number >= 1"),
        ({"values_per_example": 1, "batches": vectors((1,))}, "a batch of one value"),
        ({"apply_fn": grow}, "the same structure"),
        ({"apply_fn": grow, "values_per_example": 1}, "no leaf is known to be a variance"),
        ({"batches": [3.0]}, "give size, a function of the batch"),
        ({"size": lambda batch: 0}, "size must be a whole number >= 1"),
    ],
)
def test_errors(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refresh_batch_stats(**{"apply_fn": moments, "batches": vectors(), **arguments})
